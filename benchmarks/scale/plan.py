"""A model of large sweeps: one driver, which starts trials and hears of them one after the other, and places for them.

It knows nothing of disks, networks and other users: what it says is a model, not a measurement.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

__all__ = ["NUM_PLANNED", "plan", "wall_s"]

NUM_PLANNED = 1000
NUM_AT_ONCE = (2, 16, 64, 256)
TRIAL_S = (60.0, 600.0)


def wall_s(
    num_trials: int, num_at_once: int, trial_s: float, start_s: float, driver_s: Callable[[int], float]
) -> float:
    """Returns how long a sweep takes.

    Args:
        num_trials: In all.
        num_at_once: Places; each holds a trial for its start and its duration.
        trial_s: Duration of a trial.
        start_s: From the moment the driver lets a trial go to the moment its experiment begins.
        driver_s: From a trial's number to the driver's time for it, during which no other trial is let go.
    """
    places, driver_is_free_at = [0.0] * min(num_at_once, num_trials), 0.0
    for number in range(num_trials):
        driver_is_free_at = max(driver_is_free_at, heapq.heappop(places)) + driver_s(number)
        heapq.heappush(places, driver_is_free_at + start_s + trial_s)
    return max(places)


def plan(start_s: float, driver_s: Callable[[int], float]) -> list[dict[str, Any]]:
    """Returns the wall time of `NUM_PLANNED` trials and what of it is not training."""
    return [_row(num_at_once, trial_s, start_s, driver_s) for trial_s in TRIAL_S for num_at_once in NUM_AT_ONCE]


def _row(num_at_once: int, trial_s: float, start_s: float, driver_s: Callable[[int], float]) -> dict[str, Any]:
    ideal = math.ceil(NUM_PLANNED / num_at_once) * trial_s
    wall = wall_s(NUM_PLANNED, num_at_once, trial_s, start_s, driver_s)
    return {
        "num_trials": NUM_PLANNED,
        "num_at_once": num_at_once,
        "trial_s": trial_s,
        "wall_s": wall,
        "training_s": ideal,
        "scheduler_share": 1 - wall_s(NUM_PLANNED, num_at_once, trial_s, start_s, lambda _: 0.0) / wall,
        "start_share": 1 - ideal / wall_s(NUM_PLANNED, num_at_once, trial_s, start_s, lambda _: 0.0),
    }
