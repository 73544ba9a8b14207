"""Temporal crops of segments: a pass sees a random window of each side of a pair (SURF, Park et al. 2022)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from themis_ray.errors import ConfigError


class Windows(NamedTuple):
    """One window of steps for each side of each pair."""

    starts: NDArray[np.int64]
    """(2, *pairs), first step on the left and on the right."""
    lengths: NDArray[np.int64]
    """(*pairs), steps, the same on both sides: returns of unlike lengths cannot be compared."""

    def take(self, columns: slice) -> "Windows":
        """Returns the windows of some columns of the last axis."""
        return Windows(self.starts[..., columns], self.lengths[..., columns])


def random_windows(shape: tuple[int, ...], length: int, most_cut: int, rng: np.random.Generator) -> Windows:
    """Draws windows: lengths uniform from `length` - `most_cut` to `length`, then starts uniform among those that fit.

    Args:
        shape: Shape of the array of pairs.
        length: Steps of a segment.
        most_cut: Most steps that are cut off, on both ends together.
        rng: Draws lengths and starts.

    Raises:
        ConfigError: Nothing would be left of a segment.
    """
    if most_cut >= length:
        raise ConfigError(
            f"reward.temporal_crop={most_cut} leaves nothing of segments of {length} steps. Give at most {length - 1}."
        )
    lengths = rng.integers(length - most_cut, length, size=shape, endpoint=True)
    return Windows(rng.integers(0, length - lengths, size=(2, *shape), endpoint=True), lengths)


def window_mask(windows: Windows, length: int) -> NDArray[np.float32]:
    """Returns 1 inside and 0 outside of the windows, (2, *pairs, length)."""
    offsets = np.arange(length) - windows.starts[..., None]
    return ((offsets >= 0) & (offsets < windows.lengths[..., None])).astype(np.float32)
