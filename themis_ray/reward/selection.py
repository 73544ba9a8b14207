"""What a pass of a fit learns and what it is measured on: labels chosen anew, preferences held out, the best pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from themis_ray.data import LabelledPairs
from themis_ray.reward.config import RewardConfig
from themis_ray.reward.ensemble import RewardEnsemble, left_probabilities
from themis_ray.reward.labels import Examples, UnlabelledPairs, held_out, pseudo_labels, trust_labels
from themis_ray.reward.state import ensemble_state, load_ensemble_state
from themis_ray.reward.steps import SegmentSteps


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Everything that a fit reads.

    Attributes:
        steps: The steps of all segments, labelled ones first.
        fitted: The preferences that are learnt.
        kept_out: The preferences that are not.
        unlabelled: (2, M) int64, rows of the left and right segments that pseudo-labels may be given to.
        micro_size: Queries that go through the networks at once.
    """

    steps: SegmentSteps
    fitted: Examples
    kept_out: Examples
    unlabelled: NDArray[np.int64]
    micro_size: int


def without_weightless(pairs: LabelledPairs) -> LabelledPairs:
    """Returns the pairs whose weight is above 0, and the segments that are in one of them."""
    counts = pairs.weights > 0
    if counts.all():
        return pairs
    rows, sides = np.unique(np.stack([pairs.left[counts], pairs.right[counts]]), return_inverse=True)
    left, right = sides.reshape(2, -1)
    return LabelledPairs(
        pairs.observations[rows], pairs.actions[rows], left, right, pairs.labels[counts], pairs.weights[counts]
    )


def training_data(
    ensemble: RewardEnsemble,
    pairs: LabelledPairs,
    config: RewardConfig,
    unlabelled: UnlabelledPairs | None,
    micro_size: int,
) -> TrainingData:
    """Encodes all segments once and splits the preferences.

    Args:
        ensemble: What is to be fitted.
        pairs: The labelled queries.
        config: Options and memory limit.
        unlabelled: Where pseudo-labels may come from.
        micro_size: Queries at once whose steps all go through the networks; it is a whole batch where distinct steps
            are so few that these go through instead.
    """
    observations, actions = pairs.observations, pairs.actions
    rows = np.zeros((2, 0), np.int64)
    if unlabelled is not None and config.pseudo_label_threshold is not None:
        rows = np.stack([unlabelled.left, unlabelled.right]) + len(observations)
        observations = np.concatenate([observations, unlabelled.observations])
        actions = np.concatenate([actions, unlabelled.actions])
    steps = SegmentSteps.of(ensemble, observations, actions)
    examples = Examples(np.stack([pairs.left, pairs.right]), pairs.labels, pairs.weights)
    is_kept_out = held_out(pairs, config.heldout_share)
    fitted = examples.take(~is_kept_out)
    batch_size = min(config.batch_size, len(fitted))
    if steps.are_few_for(2 * batch_size) and 2 * steps.num_distinct * ensemble.bytes_per_row <= config.max_batch_bytes:
        micro_size = batch_size
    return TrainingData(steps, fitted, examples.take(is_kept_out), rows, micro_size)


def choose_examples(
    ensemble: RewardEnsemble, data: TrainingData, config: RewardConfig
) -> tuple[Examples, int, dict[str, float]]:
    """Returns what the next pass learns, how many of these examples, the first ones, have a given label, and metrics.

    The filter's statistics in the ensemble move on by one pass.
    """
    examples = data.fitted
    info: dict[str, float] = {}
    if config.filter_wrong_labels:
        examples, info = _filter(ensemble, data)
    num_labelled = len(examples)
    if config.pseudo_label_threshold is not None:
        sides = data.unlabelled
        is_sure, labels = pseudo_labels(
            _margin_probabilities(ensemble, data, sides).mean(axis=0), config.pseudo_label_threshold
        )
        weights = np.full(len(labels), config.pseudo_label_weight, np.float32)
        examples = examples.join(Examples(sides[:, is_sure], labels, weights))
        info["num_pseudo_labels"] = float(len(labels))
    return examples, num_labelled, info


def _filter(ensemble: RewardEnsemble, data: TrainingData) -> tuple[Examples, dict[str, float]]:
    fitted = data.fitted
    probabilities = _margin_probabilities(ensemble, data, fitted.sides).mean(axis=0)
    statistics = ensemble.filter_statistics.cpu().numpy().astype(np.float64)
    trust, statistics = trust_labels(probabilities, fitted.labels, statistics)
    ensemble.filter_statistics.copy_(torch.from_numpy(statistics))
    info = {"trusted_share": float(trust.is_trusted.mean()), "flipped_share": float(trust.is_flipped.mean())}
    is_learnt = trust.is_trusted | trust.is_flipped
    if not is_learnt.any():  # a pass has to learn something
        return fitted, info
    labels = np.where(trust.is_flipped, 1 - fitted.labels, fitted.labels)
    return Examples(fitted.sides, labels, fitted.weights).take(is_learnt), info


def heldout_metrics(ensemble: RewardEnsemble, data: TrainingData) -> dict[str, float]:
    """Returns "heldout_loss", the weighted cross-entropy per member and kept-out query, and "heldout_pair_accuracy".

    Both are nan when nothing is kept out.
    """
    kept_out = data.kept_out
    if len(kept_out) == 0:
        return {"heldout_loss": float("nan"), "heldout_pair_accuracy": float("nan")}
    margins = _margins(ensemble, data, kept_out.sides)
    losses = np.logaddexp(0.0, margins) - kept_out.labels * margins
    return {
        "heldout_loss": float(np.average(losses.mean(axis=0), weights=kept_out.weights)),
        "heldout_pair_accuracy": accuracy(left_probabilities(margins, np.zeros_like(margins)), kept_out.labels),
    }


class BestPass:
    """Keeps the ensemble and optimiser of the pass with the least held-out loss.

    Args:
        patience: Passes in a row without a lower loss after which a fit is over.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._num_worse = 0
        self._metrics: dict[str, float] = {}
        self._state: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the loss has not fallen for as long as the patience lasts."""
        return self._num_worse >= self._patience

    def look(self, ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer, data: TrainingData) -> dict[str, float]:
        """Measures the pass that was just made, keeps it if it is the best so far, and returns its metrics."""
        metrics = heldout_metrics(ensemble, data)
        if not metrics["heldout_loss"] >= self._metrics.get("heldout_loss", float("inf")):
            self._num_worse, self._metrics = 0, metrics
            self._state = ensemble_state(ensemble, optimizer)
        else:
            self._num_worse += 1
        return metrics

    def restore(self, ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Goes back to the best pass, optimiser included, and returns its metrics; without a pass does nothing."""
        if self._state is not None:
            load_ensemble_state(ensemble, optimizer, self._state)
        return self._metrics


def accuracy(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Returns the share of labels on whose side p(left) is, mean over members; nan with nothing but ties.

    Args:
        probabilities: (K, N) p(left) by member.
        labels: (N,) or (K, N); labels of exactly 0.5 (ties) are left out, a p(left) of exactly 0.5 is wrong.
    """
    labels = np.broadcast_to(labels, probabilities.shape)
    is_decided = labels != 0.5
    if not is_decided.any():
        return float("nan")
    is_right = (probabilities - 0.5) * (labels - 0.5) > 0
    return float(is_right[is_decided].mean())


def slices(total: int, size: int) -> list[slice]:
    """Returns consecutive slices of at most `size` that cover `total`."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _margin_probabilities(
    ensemble: RewardEnsemble, data: TrainingData, sides: NDArray[np.int64]
) -> NDArray[np.float64]:
    margins = _margins(ensemble, data, sides)
    return left_probabilities(margins, np.zeros_like(margins))


@torch.inference_mode()
def _margins(ensemble: RewardEnsemble, data: TrainingData, sides: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the predicted return of left minus that of right, (K, N), for segment rows `sides` (2, N).

    Whole segments, each evaluated once, without gradients.
    """
    rows, positions = np.unique(sides, return_inverse=True)
    positions = positions.reshape(sides.shape)
    returns = np.empty((ensemble.ensemble_size, len(rows)), np.float32)
    for part in slices(len(rows), 2 * data.micro_size):
        rewards = data.steps.rewards(ensemble, torch.from_numpy(rows[None, part]))
        returns[:, part] = rewards.sum(dim=2).cpu().numpy()
    margins: NDArray[np.float32] = returns[:, positions[0]] - returns[:, positions[1]]
    return margins
