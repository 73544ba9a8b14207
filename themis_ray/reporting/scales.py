"""What a score of 0 and one of 1 stand for: random actions, and the runs that were paid the true reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from themis_ray.reporting.runs import Run
from themis_ray.reporting.settings import differing_settings, learner_settings

__all__ = ["Scale", "Scales", "is_scale"]

# What a true reward has to reach to be a scale: so many standard errors above random actions, and no run above this.
MIN_ERRORS = 2.0
MAX_SCORE = 10.0


@dataclass(frozen=True)
class Scale:
    """What a score of 0 and one of 1 stand for.

    Attributes:
        random: Mean return of random actions.
        true: Mean return of the matching runs that were paid the true reward.
        num_true_runs: How many those are.
        differs: Settings in which these differ nevertheless; empty where they match.
    """

    random: float
    true: float
    num_true_runs: int
    differs: tuple[str, ...] = ()

    def score(self, returns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (return - random) / (true - random)."""
        return (returns - self.random) / (self.true - self.random)


class Scales:
    """Finds the runs of the true reward that a run is compared with."""

    def __init__(self, true: Sequence[Run], table: Mapping[Run, Mapping[str, str]], tasks: Mapping[Run, str]) -> None:
        self._table = table
        self._tasks = tasks
        self._true: dict[str, dict[tuple[tuple[str, str], ...], list[Run]]] = {}
        for run in true:
            learner = tuple(sorted(learner_settings(table[run]).items()))
            self._true.setdefault(tasks[run], {}).setdefault(learner, []).append(run)

    def of(self, run: Run, same_task: Sequence[Run]) -> Scale | None:
        """Return the scale by the true-reward runs with the fewest other settings, of these by the most runs."""
        candidates = self._true.get(self._tasks[run], {})
        if not candidates:
            return None
        mine = learner_settings(self._table[run])
        best = min(
            candidates, key=lambda theirs: (len(differing_settings(mine, dict(theirs))), -len(candidates[theirs]))
        )
        runs = list({other.seed: other for other in candidates[best]}.values())
        random_returns = np.array([other.random_return for other in same_task], np.float64)
        true_returns = np.array([other.true_return for other in runs], np.float64)
        highest = max(other.true_return for other in same_task)
        if not is_scale(random_returns, true_returns, highest):
            return None
        differs = tuple(differing_settings(mine, dict(best)))
        return Scale(float(random_returns.mean()), float(true_returns.mean()), len(runs), differs)


def is_scale(random_returns: NDArray[np.float64], true_returns: NDArray[np.float64], highest: float) -> bool:
    """Return whether the true reward is far enough above random actions for scores to be told by it.

    The distance has to be more than `MIN_ERRORS` standard errors of the difference of both means, and no run may score
    more than `MAX_SCORE`.

    Args:
        random_returns: Of random actions, for each run of the task.
        true_returns: Of the runs that were paid the true reward.
        highest: The highest return of a run of the task.
    """
    random, true = float(random_returns.mean()), float(true_returns.mean())
    spread = float(random_returns.std(ddof=1)) if len(random_returns) > 1 else 0.0
    # Of one run no spread is known; its evaluation is as exact as one of random actions at best.
    true_spread = float(true_returns.std(ddof=1)) if len(true_returns) > 1 else spread
    error = math.sqrt(spread**2 / len(random_returns) + true_spread**2 / len(true_returns))
    # Numbers of this size are not exact either.
    least = max(MIN_ERRORS * error, 1e-9 * max(1.0, abs(true), abs(random)))
    return true - random > least and highest - random <= MAX_SCORE * (true - random)
