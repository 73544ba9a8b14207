"""Which texts are addresses that calls can be sent to."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

__all__ = ["is_address"]


def is_address(url: str) -> bool:
    """Tells whether `url` is an http:// or https:// address with a host whose name can be looked up."""
    try:
        urlsplit(url)
        parts = httpx.URL(url)
        parts.host.encode("idna")  # As the look-up does, which refuses labels that are empty or too long.
    except (httpx.InvalidURL, ValueError):
        return False
    return parts.scheme in ("http", "https") and bool(parts.host) and parts.port != 0
