"""Processes that ask the reward actor, as learners do: one call at a time each, and the next when it is answered."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray

__all__ = ["Caller", "draw_steps"]


def draw_steps(num_rows: int) -> tuple[Any, Any]:
    """Returns observations and actions of HalfCheetah's shape."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((num_rows, 17)).astype(np.float32)
    return observations, rng.uniform(-1, 1, (num_rows, 6)).astype(np.float32)


class Caller:
    """One caller; a Ray actor."""

    def __init__(self, name: str) -> None:
        self._actor = ray.get_actor(name)

    def ask(self, num_rows: int, begin_at: float, end_at: float) -> list[float]:
        """Asks from one moment to another, by the clock of the machine, and returns what each call took in seconds."""
        steps = draw_steps(num_rows)
        time.sleep(max(0.0, begin_at - time.time()))
        times: list[float] = []
        while not times or time.time() < end_at:
            start = time.perf_counter()
            ray.get(self._actor.predict.remote(*steps))
            times.append(time.perf_counter() - start)
        return times
