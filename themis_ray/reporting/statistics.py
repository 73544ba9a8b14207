"""Statistics of a few runs on a few tasks, after Agarwal et al. 2021 (arXiv 2108.13264).

Runs of one task are a stratum, and strata may differ in size. The numbers are those of the authors' library rliable,
with which a test compares them. rliable 1.2.0 itself wants the same number of runs on every task, draws its samples one
by one, and cannot be imported beside pandas 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FEW_SEEDS",
    "MIN_SEEDS",
    "NUM_BOOTSTRAP_SAMPLES",
    "Estimate",
    "bootstrap",
    "difference",
    "estimate",
    "improvement",
    "interquartile_mean",
    "interval",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
]

Array = NDArray[np.float64]
Strata = Sequence[Array]
Statistic = Callable[[Array], Array]

NUM_BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95
# Below these an interval is too narrow, and means nothing.
MIN_SEEDS, FEW_SEEDS = 5, 3


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the ends are None where there are too few runs for one."""

    value: float
    low: float | None = None
    high: float | None = None


def interquartile_mean(scores: Array) -> Array:
    """Return the mean of the middle half of the last axis: a quarter of the values, rounded down, is cut off each end.

    With fewer than four values nothing is cut off.
    """
    num_cut = scores.shape[-1] // 4
    kept = np.sort(scores, axis=-1)[..., num_cut : scores.shape[-1] - num_cut]
    return np.asarray(kept.mean(axis=-1))


def optimality_gap(scores: Array, target: float = 1.0) -> Array:
    """Return how far the last axis is below the target on average, where what is above it counts as the target."""
    return np.asarray(target - np.minimum(scores, target).mean(axis=-1))


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Return the share of the last axis that is above each threshold, along a new last axis."""
    shares = [(scores > threshold).mean(axis=-1) for threshold in thresholds]
    return np.stack(shares, axis=-1)


def probability_of_improvement(left: Strata, right: Strata) -> Array:
    """Return how probably a run of the left beats one of the right on the same task, mean over tasks.

    P(X > Y) + P(X = Y) / 2, which is the Mann-Whitney U statistic over the number of pairs.

    Args:
        left: Runs along the last axis, an array per task.
        right: The same of the other side; as many tasks and the same leading axes.
    """
    shares = []
    for x, y in zip(left, right, strict=True):
        is_more = x[..., :, None] > y[..., None, :]
        is_equal = x[..., :, None] == y[..., None, :]
        shares.append(is_more.mean(axis=(-2, -1)) + is_equal.mean(axis=(-2, -1)) / 2)
    return np.asarray(np.mean(shares, axis=0))


def bootstrap(strata: Strata, rng: np.random.Generator, num_samples: int = NUM_BOOTSTRAP_SAMPLES) -> list[Array]:
    """Return an array (num_samples, runs) per stratum, whose rows are drawn from its runs with replacement."""
    return [runs[rng.integers(len(runs), size=(num_samples, len(runs)))] for runs in strata]


def interval(samples: Array, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Return the ends of the percentile interval over the first axis."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def has_interval(*sides: Strata) -> bool:
    """Return whether every stratum has the two runs without which it seems to have no spread."""
    return all(len(runs) > 1 for strata in sides for runs in strata)


def estimate(strata: Strata, statistic: Statistic, rng: np.random.Generator) -> Estimate:
    """Return a statistic of all runs together, with its stratified bootstrap interval."""
    value = float(statistic(np.concatenate(strata)))
    if not has_interval(strata):
        return Estimate(value)
    low, high = interval(statistic(np.concatenate(bootstrap(strata, rng), axis=-1)))
    return Estimate(value, float(low), float(high))


def improvement(left: Strata, right: Strata, rng: np.random.Generator) -> Estimate:
    """Return the probability of improvement with its interval; both sides are drawn apart from each other."""
    value = float(probability_of_improvement(left, right))
    if not has_interval(left, right):
        return Estimate(value)
    low, high = interval(probability_of_improvement(bootstrap(left, rng), bootstrap(right, rng)))
    return Estimate(value, float(low), float(high))


def difference(left: Strata, right: Strata, statistic: Statistic, rng: np.random.Generator) -> Estimate:
    """Return the statistic of the left minus that of the right with its interval."""
    value = float(statistic(np.concatenate(left)) - statistic(np.concatenate(right)))
    if not has_interval(left, right):
        return Estimate(value)
    samples = [statistic(np.concatenate(bootstrap(side, rng), axis=-1)) for side in (left, right)]
    low, high = interval(samples[0] - samples[1])
    return Estimate(value, float(low), float(high))
