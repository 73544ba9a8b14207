"""How far a tracker's own record goes, noted beside it."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["read_mark", "write_mark"]

MARK_FILE = "num_env_steps.json"


def read_mark(folder: Path, place: str = "") -> int:
    """Return the env steps of the newest line that the record in a folder holds; -1 where that is not known.

    Args:
        folder: Of the tracker.
        place: Where its lines went to, if that can change.
    """
    return _read(folder).get(place, -1)


def write_mark(folder: Path, num_env_steps: int, place: str = "") -> None:
    """Note how far the record goes."""
    if num_env_steps >= 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK_FILE).write_text(json.dumps(_read(folder) | {place: num_env_steps}) + "\n")


def _read(folder: Path) -> dict[str, int]:
    try:
        marks = json.loads((folder / MARK_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}
