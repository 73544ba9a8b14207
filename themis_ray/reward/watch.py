"""Does the policy please the reward model more and more while the model is right less and less?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Segment

__all__ = ["RewardWatch", "WatchPoint"]

WINDOW = 3
ACCURACY_DROP = 0.1
ACCURACY_RECOVERY = 0.05
RISE_IN_STDS = 1.0
NEAR_CHANCE = 0.6


@dataclass(frozen=True)
class WatchPoint:
    """What one look at a run saw.

    Attributes:
        num_env_steps: When.
        true_return: Mean true return of the newest episodes.
        fresh_accuracy: Share of fresh queries about the current policy that the ensemble orders as the teacher would.
        disagreement: Mean std over members of the preference probability of these queries.
        segments: Some of the current policy's, to be predicted again at later looks; empty once they are not needed.
    """

    num_env_steps: int
    true_return: float
    fresh_accuracy: float
    disagreement: float
    segments: tuple[Segment, ...]


class RewardWatch:
    """Tells when a policy exploits its reward model (Gao et al. 2023, arXiv 2210.10760, call it overoptimisation).

    Compared are the newest three looks and the three in a row with the best mean accuracy so far. Exploitation is
    reported when the accuracy is at least 0.1 lower now, while the predicted return is higher by more than the pooled
    standard deviation of both; unless the true return is higher by as much, too, and the accuracy above 0.6: a policy
    that gets better makes its segments harder to tell apart. Each time is reported once; another report needs the
    accuracy to come back to within 0.05 of its best first.

    A fit may shift and stretch all predictions, which preferences leave open. So the segments of both times are
    predicted anew at every look, by the ensemble as it is then.
    """

    def __init__(self) -> None:
        self._points: list[WatchPoint] = []
        self._is_reported = False
        self._growth_ratio = float("nan")

    def add(self, point: WatchPoint, predict: Callable[[Sequence[Segment]], NDArray[Any]]) -> str | None:
        """Takes a look in and returns the evidence in one line when hacking begins, else None.

        Looks without an accuracy or a true return (NaN) are left out.

        Args:
            point: The look.
            predict: Returns the predicted returns (K, S) of S segments under every member; called once at most.
        """
        if not np.isfinite([point.fresh_accuracy, point.true_return]).all():
            return None
        self._points.append(point)
        num_points = len(self._points)
        if num_points < WINDOW:
            return None
        best = self._find_best()
        newest = range(num_points - WINDOW, num_points)
        before = range(0) if best is None else range(best, best + WINDOW)
        returns = self._predict(sorted({0, *before, *newest}), predict)
        self._growth_ratio = self._measure_growth(returns[0], returns[num_points - 1])
        if best is None:
            return None
        self._forget_segments({0, *before, *range(num_points - 2 * WINDOW + 1, num_points)})
        then, now = self._points[best : best + WINDOW], self._points[-WINDOW:]
        accuracy_before, accuracy = _mean_accuracy(then), _mean_accuracy(now)
        drop = accuracy_before - accuracy
        if drop < ACCURACY_RECOVERY:
            self._is_reported = False
        is_honest = accuracy > NEAR_CHANCE and _rises(*([p.true_return for p in part] for part in (then, now)))
        predicted_before, predicted_after = ([float(returns[i].mean()) for i in part] for part in (before, newest))
        if self._is_reported or drop < ACCURACY_DROP or is_honest or not _rises(predicted_before, predicted_after):
            return None
        self._is_reported = True
        true_before, true_after = (np.mean([p.true_return for p in part]) for part in (then, now))
        return (
            f"the reward model may be exploited: from env step {then[-1].num_env_steps} to {now[-1].num_env_steps} the "
            f"predicted return of a segment rose from {np.mean(predicted_before):.2f} to "
            f"{np.mean(predicted_after):.2f}, while the accuracy on fresh queries fell from {accuracy_before:.2f} to "
            f"{accuracy:.2f} (true return {true_before:.2f} to {true_after:.2f}). Ask about the current policy: more "
            "budget, feedback.until_share=1, or feedback.sampler=newest."
        )

    def _find_best(self) -> int | None:
        """Returns where the three looks with the best accuracy begin that the newest three do not overlap."""
        starts = [
            start
            for start in range(len(self._points) - 2 * WINDOW + 1)
            if all(point.segments for point in self._points[start : start + WINDOW])
        ]
        accuracies = [_mean_accuracy(self._points[start : start + WINDOW]) for start in starts]
        return starts[int(np.argmax(accuracies))] if starts else None

    def _predict(
        self, indices: Sequence[int], predict: Callable[[Sequence[Segment]], NDArray[Any]]
    ) -> dict[int, NDArray[Any]]:
        """Returns the predicted returns (S,) of the looks' segments, mean over members, by index of the look."""
        segments = [segment for i in indices for segment in self._points[i].segments]
        returns = np.asarray(predict(segments), np.float64).mean(axis=0)
        stops = np.cumsum([len(self._points[i].segments) for i in indices])
        return dict(zip(indices, np.split(returns, stops[:-1]), strict=True))

    def _measure_growth(self, first: NDArray[Any], newest: NDArray[Any]) -> float:
        true_first, true_newest = (
            np.array([segment.true_return for segment in self._points[i].segments]) for i in (0, -1)
        )
        predicted, true = _growth(first, newest), _growth(true_first, true_newest)
        return predicted / true if true else float("nan")

    def _forget_segments(self, kept: set[int]) -> None:
        """Drops the segments of looks that no later comparison can be about."""
        for i, point in enumerate(self._points):
            if point.segments and i not in kept:
                self._points[i] = replace(point, segments=())

    @property
    def growth_ratio(self) -> float:
        """Growth of the predicted return over growth of the true one, of the newest look's segments since the first's.

        Each is measured in standard deviations over the segments of the first look. Near 1: both move together. Far
        above 1 or negative: the prediction grows and the truth does not. NaN before three looks, or when the true
        return has not moved.
        """
        return self._growth_ratio

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs."""
        points = [dict(vars(point)) for point in self._points]
        return {"points": points, "is_reported": self._is_reported, "growth_ratio": self._growth_ratio}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; looks of a time when they kept no segments are left out."""
        self._points = [WatchPoint(**point) for point in state["points"] if "segments" in point]
        self._is_reported = state["is_reported"]
        self._growth_ratio = state.get("growth_ratio", float("nan"))


def _mean_accuracy(points: Sequence[WatchPoint]) -> float:
    return float(np.mean([point.fresh_accuracy for point in points]))


def _growth(first: NDArray[Any], newest: NDArray[Any]) -> float:
    """Returns how far the mean went, in standard deviations of `first`; NaN where that has none."""
    spread = float(first.std())
    return float(newest.mean() - first.mean()) / spread if spread > 0 else float("nan")


def _rises(before: Sequence[float], after: Sequence[float]) -> bool:
    """Tells whether the mean went up by more than the pooled standard deviation."""
    spread = float(np.sqrt((np.var(before) + np.var(after)) / 2))
    return float(np.mean(after) - np.mean(before)) > RISE_IN_STDS * spread
