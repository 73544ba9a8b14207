"""Where a command writes, and whether it can."""

from __future__ import annotations

import tempfile
from pathlib import Path

from themis_ray.errors import ConfigError

__all__ = ["check_file", "check_folder", "free_path"]


def free_path(base: Path) -> Path:
    """Return `base`, or the first of `base-2`, `base-3` and so on that does not exist."""
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be written before a command works for it; nothing is made.

    Args:
        option: The option that names it, for the message.
        folder: It may be missing.

    Raises:
        ConfigError: It cannot be written, or made.
    """
    _check(option, folder, folder)


def check_file(option: str, path: Path) -> None:
    """Refuse a file as `check_folder` does a folder.

    Raises:
        ConfigError: It is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder. Give a file.")
    _check(option, path, path.parent)


def _check(option: str, path: Path, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be written ({error.strerror}). Give another that you may write to."
        ) from error
