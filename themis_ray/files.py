"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["drop_leftovers", "whole", "write_whole"]


@contextlib.contextmanager
def whole(path: Path, *, replaces_folder: bool = False) -> Iterator[Path]:
    """Yield a name to write a file or a folder under, which takes the place of `path` when the block ends.

    What was written is on the disk before it takes its place, so that whoever reads `path`, even after the power went,
    finds what was there before or all of the new. An error in the block leaves `path` as it was and nothing beside it.

    Args:
        path: Of the file, which may exist, or of the folder, which must be missing or empty. Folders above it are made,
            and a link keeps leading to it. Until the end its name has a dot in front, which readers of a run, a dataset
            or a storage pass over.
        replaces_folder: Whether a folder that holds something is replaced too.

    Raises:
        OSError: It cannot be written, or `path` cannot be replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp") for _ in range(2))
    try:
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in (*names, "."):
                _sync(Path(folder, name))
        if temporary.is_file():
            _sync(temporary)
        if replaces_folder and path.is_dir():
            path.replace(old)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        _delete(temporary)
        _delete(old)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file with `whole`; text in UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def drop_leftovers(path: Path) -> None:
    """Delete what killed programs left of `whole`.

    Args:
        path: What they wrote, which no other program may be writing now. The name may be a pattern.
    """
    path = Path(os.path.realpath(path))
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        _delete(leftover)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
