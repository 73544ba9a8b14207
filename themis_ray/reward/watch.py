"""Does the policy please the reward model more and more while the model is right less and less?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
        predicted_return: Mean predicted return of the newest episodes.
        true_return: Mean true return of the newest episodes.
        fresh_accuracy: Share of fresh queries about the current policy that the ensemble orders as the teacher would.
        disagreement: Mean std over members of the preference probability of these queries.
    """

    num_env_steps: int
    predicted_return: float
    true_return: float
    fresh_accuracy: float
    disagreement: float


class RewardWatch:
    """Tells when a policy exploits its reward model (Gao et al. 2023, arXiv 2210.10760, call it overoptimisation).

    Compared are the newest three looks and the three in a row with the best mean accuracy so far. Exploitation is
    reported when the accuracy is at least 0.1 lower now, while the predicted return is higher by more than the pooled
    standard deviation of both; unless the true return is higher by as much, too, and the accuracy above 0.6: a policy
    that gets better makes its segments harder to tell apart. Each time is reported once; another report needs the
    accuracy to come back to within 0.05 of its best first.
    """

    def __init__(self) -> None:
        self._points: list[WatchPoint] = []
        self._is_reported = False

    def add(self, point: WatchPoint) -> str | None:
        """Takes a look in and returns the evidence in one line when hacking begins, else None.

        Looks without an accuracy or a predicted return (NaN) are left out.
        """
        if not np.isfinite([point.fresh_accuracy, point.predicted_return]).all():
            return None
        self._points.append(point)
        if len(self._points) < 2 * WINDOW:
            return None
        accuracies = np.convolve([p.fresh_accuracy for p in self._points], np.full(WINDOW, 1 / WINDOW), "valid")
        best = int(accuracies[:-WINDOW].argmax())
        drop = accuracies[best] - accuracies[-1]
        if drop < ACCURACY_RECOVERY:
            self._is_reported = False
        then, now = self._points[best : best + WINDOW], self._points[-WINDOW:]
        is_honest = accuracies[-1] > NEAR_CHANCE and _rises(*([p.true_return for p in part] for part in (then, now)))
        predicted_before, predicted_after = ([p.predicted_return for p in part] for part in (then, now))
        if self._is_reported or drop < ACCURACY_DROP or is_honest or not _rises(predicted_before, predicted_after):
            return None
        self._is_reported = True
        true_before, true_after = (np.mean([p.true_return for p in part]) for part in (then, now))
        return (
            f"the reward model may be exploited: from env step {then[-1].num_env_steps} to {now[-1].num_env_steps} the "
            f"predicted return rose from {np.mean(predicted_before):.2f} to {np.mean(predicted_after):.2f}, while the "
            f"accuracy on fresh queries fell from {accuracies[best]:.2f} to {accuracies[-1]:.2f} "
            f"(true return {true_before:.2f} to {true_after:.2f}). Ask about the current policy: more budget, "
            "feedback.until_share=1, or feedback.sampler=newest."
        )

    @property
    def growth_ratio(self) -> float:
        """Growth of the predicted return over growth of the true one since the first look, each over its own spread.

        Near 1: both move together. Far above 1 or negative: the prediction grows and the truth does not. NaN before
        three looks, or when the true return has not moved.
        """
        if len(self._points) < WINDOW:
            return float("nan")
        growth = []
        for returns in ([p.predicted_return for p in self._points], [p.true_return for p in self._points]):
            spread = float(np.std(returns))
            growth.append((returns[-1] - returns[0]) / spread if spread > 0 else float("nan"))
        predicted, true = growth
        return predicted / true if true else float("nan")

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs."""
        return {"points": [asdict(point) for point in self._points], "is_reported": self._is_reported}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`."""
        self._points = [WatchPoint(**point) for point in state["points"]]
        self._is_reported = state["is_reported"]


def _rises(before: Sequence[float], after: Sequence[float]) -> bool:
    """Tells whether the mean went up by more than the pooled standard deviation."""
    spread = float(np.sqrt((np.var(before) + np.var(after)) / 2))
    return float(np.mean(after) - np.mean(before)) > RISE_IN_STDS * spread
