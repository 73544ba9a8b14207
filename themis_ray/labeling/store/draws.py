"""Chances that are the same whenever they are taken: by which side something is shown, and what comes next."""

import hashlib

__all__ = ["draw"]


def draw(*names: str | int) -> float:
    """Returns a number in [0, 1) that depends on the names alone and looks like chance (BLAKE2b, 64 bits)."""
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
