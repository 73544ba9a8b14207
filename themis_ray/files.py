"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole", "write_whole"]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a name to write a file or a folder under, which takes the place of `path` when the block ends.

    What was written is on the disk before it takes its place, so that whoever reads `path`, even after the power went,
    finds what was there before or all of the new. An error in the block leaves `path` as it was and nothing beside it.

    Args:
        path: Of the file, which may exist, or of the folder, which must be missing or empty. Folders above it are made.
            Until the end its name has a dot in front, which readers of a run, a dataset or a storage pass over.

    Raises:
        OSError: It cannot be written, or `path` cannot be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in (*names, "."):
                _sync(Path(folder, name))
        if temporary.is_file():
            _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file with `whole`; text in UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
