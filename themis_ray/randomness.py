"""Named random streams: every draw of a run comes from one of them, and all of them go into a checkpoint."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np

__all__ = ["RandomStreams"]


class RandomStreams:
    """Generators by name, each spawned from one seed and independent of the order in which they are first used.

    Args:
        seed: The experiment's seed; the same seed and name give the same stream.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, np.random.Generator] = {}

    def __getitem__(self, name: str) -> np.random.Generator:
        """Return the stream called `name`, spawned on first use."""
        if name not in self._streams:
            entropy = np.random.SeedSequence([self._seed, zlib.crc32(name.encode())])
            self._streams[name] = np.random.default_rng(entropy)
        return self._streams[name]

    def draw_seed(self, name: str) -> int:
        """Draw a seed in [0, 2**31) from the stream `name`, for something that wants an int."""
        return int(self[name].integers(2**31))

    def get_state(self) -> dict[str, Any]:
        """Return the state of every stream used so far."""
        return {name: stream.bit_generator.state for name, stream in self._streams.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put every stream back to where `get_state` found it."""
        self._streams.clear()
        for name, stream_state in state.items():
            self[name].bit_generator.state = stream_state


def seed_python(seed: int) -> None:
    """Seed the generators of `random` and NumPy that libraries draw from without asking."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - RLlib shuffles its minibatches with the legacy generator.
