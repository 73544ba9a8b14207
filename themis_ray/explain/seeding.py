"""Captum's random draws, made to come from a generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded_globals"]


@contextmanager
def seeded_globals(rng: np.random.Generator) -> Iterator[None]:
    """Seeds the generators that torch and numpy share with everybody; Captum draws from them.

    They are left as they were.

    Args:
        rng: Draws the seed.
    """
    seed = int(rng.integers(2**31))
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
