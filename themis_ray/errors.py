"""Errors a user can cause, and the look-up of names in registries.

The text of every error is one line that says what was given, what is allowed and what
to do. The command line prints that line and exits with code 2; anything that is not a
`ThemisError` is a defect of the program.
"""

import difflib
from collections.abc import Mapping
from typing import TypeVar

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "RunFolderError",
    "TeacherError",
    "ThemisError",
    "TooFewSegmentsError",
    "UnknownNameError",
    "lookup",
]

T = TypeVar("T")


class ThemisError(Exception):
    """A mistake of the user, told in one line; the base of every error below."""

    def __str__(self) -> str:
        """The message with every run of white space, line breaks included, as one space."""
        return " ".join(super().__str__().split())


class ConfigError(ThemisError):
    """A setting that is wrong, or settings that do not go together."""


class UnknownNameError(ThemisError):
    """A name that is in no registry; the message carries the closest known one."""


class DataError(ThemisError):
    """Stored or collected data that cannot be used: corrupt, foreign version, too little."""


class TooFewSegmentsError(DataError):
    """Episodes that hold too few distinct segments to draw from; later ones may hold enough."""


class CheckpointError(ThemisError):
    """A checkpoint that is incomplete, corrupt or of another run."""


class ClusterError(ThemisError):
    """A Ray cluster that is not where it should be, or does not start."""


class RunFolderError(ThemisError):
    """A run folder that is missing, not empty, or of another format version."""


class TeacherError(ThemisError):
    """A teacher that cannot answer: its function failed, or its endpoint refuses."""


def lookup(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Returns `registry[name]`.

    Args:
        kind: What the registry holds, for the message, e.g. "sampler".
        name: The name the user gave.
        registry: Known names and their values.

    Raises:
        UnknownNameError: The name is not in the registry. The message names the closest
            known name, where one is close, and all known names.
    """
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(name, registry, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise UnknownNameError(f"no {kind} {name!r}.{suggestion} Known: {', '.join(sorted(registry))}.")
