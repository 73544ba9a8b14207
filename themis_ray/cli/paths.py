"""Where a command writes when it was not told where."""

from __future__ import annotations

from pathlib import Path


def free_path(base: Path) -> Path:
    """Return `base`, or the first of `base-2`, `base-3` and so on that does not exist."""
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
