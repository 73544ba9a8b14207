"""How far a tracker's own record goes, noted beside it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_mark", "write_mark"]

MARK_FILE = "num_env_steps"


def read_mark(folder: Path) -> int:
    """Return the env steps of the newest line that the record in a folder holds; -1 where that is not known."""
    try:
        return int((folder / MARK_FILE).read_text())
    except (OSError, ValueError):
        return -1


def write_mark(folder: Path, num_env_steps: int) -> None:
    """Note how far the record goes."""
    if num_env_steps >= 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK_FILE).write_text(f"{num_env_steps}\n")
