"""Code to copy and change."""
