"""Folders that one process at a time may work in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from themis_ray.errors import ThemisError

__all__ = ["held"]


@contextlib.contextmanager
def held(path: Path, refusal: ThemisError) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, while the block runs; it is free again when the process ends.

    A disk that knows no locks, as some network disks, holds nobody off.

    Args:
        path: Of the file, in a folder that exists. It stays there, empty.
        refusal: Raised where another process holds it.

    Raises:
        ThemisError: `refusal`.
        OSError: The file cannot be opened.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise
        yield
