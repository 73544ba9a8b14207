"""What each kind of feedback says about the reward: one likelihood each, and the loss of a fit is made of them.

A preference says which of two predicted returns is larger, a rating above which cut points the predicted return lies, a
judged step which sign the predicted reward has, a demonstration that its predicted return is above that of the
learner's own segments.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from themis_ray.data import EvaluatedSegments
from themis_ray.reward.config import RewardConfig
from themis_ray.reward.ensemble import RewardEnsemble
from themis_ray.reward.selection import slices

STEP_STEEPNESS = 5.0
_NUM_BISECTIONS = 40
Rows = NDArray[np.int64]


def preference_losses(margins: Tensor, labels: Tensor, mistake_rate: float = 0.0) -> Tensor:
    """Returns - [y log q + (1 - y) log(1 - q)] of each query, the shape of both arguments.

    q = e + (1 - 2 e) sigmoid(margin) is the probability that a teacher answers left who means left with probability
    sigmoid(margin) (Bradley-Terry) and says the opposite of what they mean with probability e. Christiano et al. 2017
    (arXiv 1706.03741) assume e = 0.05. No answer is then less likely than e: one that contradicts all the others costs
    at most - log e and stops pulling, where plain cross-entropy pulls the harder the more wrong the answer looks.

    Args:
        margins: Predicted return of the left segment minus that of the right one.
        labels: y, p(left preferred).
        mistake_rate: e, from 0 to below 0.5.
    """
    if mistake_rate == 0.0:
        return F.binary_cross_entropy_with_logits(margins, labels, reduction="none")
    right_answer, mistake = math.log1p(-mistake_rate), margins.new_tensor(math.log(mistake_rate))
    left = torch.logaddexp(margins + right_answer, mistake) - F.softplus(margins)
    right = torch.logaddexp(right_answer - margins, mistake) - F.softplus(-margins)
    return -labels * left - (1.0 - labels) * right


def matched_cut_points(returns: NDArray[np.floating], levels: Rows, num_levels: int) -> NDArray[np.float32]:
    """Returns the J - 1 cut points between J levels on the line of predicted returns, (K, J - 1), in rising order.

    Cut point j solves: sum over ratings of sigmoid(return - cut point) = number of ratings above level j. So the shares
    of the levels match those of the teacher, as in White et al. 2023, "Rating-based Reinforcement Learning", arXiv
    2307.16348. There is nothing to fit beside the networks, a constant added to all returns changes nothing, and
    the gradients of `rating_losses` sum to 0, so that returns do not drift. A cut point that has all ratings on one
    side is infinite.

    Args:
        returns: (K, N) predicted returns of the rated segments.
        levels: (N,) their levels.
        num_levels: J.
    """
    num_above = (levels[:, None] > np.arange(num_levels - 1)).sum(axis=0)
    margin = np.log(len(levels)) + 1.0  # beyond it the sum is above N - 1 or below 1
    shape = len(returns), num_levels - 1
    low = np.broadcast_to(returns.min(axis=1, keepdims=True) - margin, shape).astype(np.float64)
    high = np.broadcast_to(returns.max(axis=1, keepdims=True) + margin, shape).astype(np.float64)
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        expected = (0.5 + 0.5 * np.tanh((returns[:, :, None] - middle[:, None]) / 2)).sum(axis=1)
        low, high = np.where(expected > num_above, middle, low), np.where(expected > num_above, high, middle)
    ends = np.select([num_above == 0, num_above == len(levels)], [np.inf, -np.inf], (low + high) / 2)
    return ends.astype(np.float32)


def rating_losses(returns: Tensor, levels: Tensor, cut_points: Tensor) -> Tensor:
    """Returns the mean over cut points of - log p(side of the cut point on which the level is), (K, B).

    p(above) = sigmoid(return - cut point), the cumulative probabilities of the proportional-odds model (McCullagh
    1980). Every cut point is a question of its own (the all-threshold loss of Rennie and Srebro 2005), so a prediction
    that is several levels off pays for each of them.

    Args:
        returns: (K, B) predicted returns.
        levels: (K, B) int64.
        cut_points: (K, J - 1) from `matched_cut_points`.
    """
    is_above = levels[..., None] > torch.arange(cut_points.shape[1], device=levels.device)
    margins = returns[..., None] - cut_points[:, None]
    return F.softplus(torch.where(is_above, -margins, margins)).mean(dim=2)


def step_losses(rewards: Tensor, values: Tensor) -> Tensor:
    """Returns - log p(value) of judged steps, 0 where there is no opinion; same shape as the arguments.

    p(good) = sigmoid(k * reward) with k = 5: predicted rewards lie in (-1, 1), so p runs from 0.007 to 0.993. A smaller
    k could not be sure of anything and would drive all rewards to -1 and 1. As in TAMER (Knox and Stone 2009; Warnell
    et al. 2018, arXiv 1709.10163) the answer is about the step itself and not about what follows from it.

    Args:
        rewards: Predicted rewards.
        values: 1 good, -1 bad, 0 no opinion.
    """
    return F.softplus(-STEP_STEEPNESS * values * rewards) * values.abs()


def demonstration_losses(shown: Tensor, own: Tensor) -> Tensor:
    """Returns - log p(demonstration preferred) = log(1 + exp(own - shown)), the shape of both predicted returns.

    Bradley-Terry, as for preferences (Ibarz et al. 2018, arXiv 1811.06521).
    """
    return F.softplus(own - shown)


class Kind(Protocol):
    """One kind of evaluative feedback inside a fit: N examples of `num_segments` segments each."""

    name: str
    weight: float
    num_segments: int

    def __len__(self) -> int:
        """Returns N."""
        ...

    def rows(self, examples: Rows) -> Rows:
        """Returns the segments of examples (K, B): rows (K, B, num_segments)."""
        ...

    def num_answers(self, examples: Rows) -> NDArray[np.floating]:
        """Returns how many answers are in each member's examples (K, B): (K,)."""
        ...

    def losses(self, rewards: Tensor, examples: Rows) -> tuple[Tensor, Tensor]:
        """Returns losses, 0 where there is no answer, and whether the prediction is right, both (K, B) or (K, B, L).

        Args:
            rewards: (K, B, num_segments, L) predicted rewards.
            examples: (K, B).
        """
        ...


class _Ratings:
    name, num_segments = "rating", 1

    def __init__(self, data: EvaluatedSegments, weight: float) -> None:
        self.weight = weight
        self._data = data
        # Ratings of a single level teach nothing, and would count as a perfect fit.
        self._rated = data.rated if len(np.unique(data.levels)) > 1 else data.rated[:0]
        self._cut_points = torch.empty(0)

    def __len__(self) -> int:
        return len(self._rated)

    def rows(self, examples: Rows) -> Rows:
        return self._rated[examples][..., None]

    def num_answers(self, examples: Rows) -> NDArray[np.floating]:
        return np.full(len(examples), float(examples.shape[1]))

    def place_cut_points(self, returns: NDArray[np.floating]) -> None:
        """Takes the predicted returns (K, N) of all rated segments."""
        self._cut_points = torch.from_numpy(matched_cut_points(returns, self._data.levels, self._data.num_levels))

    def losses(self, rewards: Tensor, examples: Rows) -> tuple[Tensor, Tensor]:
        returns = rewards.sum(dim=3).squeeze(2)
        levels = torch.from_numpy(self._data.levels[examples]).to(returns.device)
        cut_points = self._cut_points.to(returns.device)
        losses = rating_losses(returns, levels, cut_points)
        return losses, (returns[..., None] > cut_points[:, None]).sum(dim=2) == levels


class _JudgedSteps:
    name, num_segments = "step", 1

    def __init__(self, data: EvaluatedSegments, weight: float) -> None:
        self.weight = weight
        # Segments without any opinion teach nothing, and a batch of nothing else would have no mean.
        has_opinion = data.step_values.any(axis=1)
        self._judged = data.judged[has_opinion]
        self._values = data.step_values[has_opinion].astype(np.float32)

    def __len__(self) -> int:
        return len(self._judged)

    def rows(self, examples: Rows) -> Rows:
        return self._judged[examples][..., None]

    def num_answers(self, examples: Rows) -> NDArray[np.floating]:
        num_answers: NDArray[np.floating] = np.abs(self._values[examples]).sum(axis=(1, 2))
        return num_answers

    def losses(self, rewards: Tensor, examples: Rows) -> tuple[Tensor, Tensor]:
        rewards = rewards.squeeze(2)
        values = torch.from_numpy(self._values[examples]).to(rewards.device)
        return step_losses(rewards, values), values * rewards > 0


class _Demonstrations:
    name, num_segments = "demonstration", 2

    def __init__(self, data: EvaluatedSegments, weight: float) -> None:
        self.weight = weight
        self._data = data
        self._num_pairs = max(len(data.shown), len(data.own)) if len(data.shown) else 0
        self._pairs = np.empty((0, 0, 2), np.int64)

    def __len__(self) -> int:
        return self._num_pairs

    def draw_pairs(self, ensemble_size: int, rng: np.random.Generator) -> None:
        """Pairs demonstrations with the learner's segments anew; every segment of both is in a pair of each member."""
        sides = [
            rng.permuted(np.tile(np.resize(rows, self._num_pairs), (ensemble_size, 1)), axis=1)
            for rows in (self._data.shown, self._data.own)
        ]
        self._pairs = np.stack(sides, axis=2)

    def rows(self, examples: Rows) -> Rows:
        return np.take_along_axis(self._pairs, examples[..., None], axis=1)

    def num_answers(self, examples: Rows) -> NDArray[np.floating]:
        return np.full(len(examples), float(examples.shape[1]))

    def losses(self, rewards: Tensor, examples: Rows) -> tuple[Tensor, Tensor]:
        del examples
        shown, own = rewards.sum(dim=3).unbind(dim=2)
        losses = demonstration_losses(shown, own)
        return losses, shown > own


def teaches_anything(data: EvaluatedSegments, config: RewardConfig) -> bool:
    """Returns whether a fit learns from evaluations: a kind that has a weight has answers that say something."""
    return bool(_that_teach(_make_kinds(data, config)))


def _make_kinds(data: EvaluatedSegments, config: RewardConfig) -> tuple[_Ratings, _JudgedSteps, _Demonstrations]:
    return (
        _Ratings(data, config.rating_weight),
        _JudgedSteps(data, config.step_weight),
        _Demonstrations(data, config.demonstration_weight),
    )


def _that_teach(kinds: Sequence[Kind]) -> list[Kind]:
    return [kind for kind in kinds if len(kind) and kind.weight]


class EvaluationLosses:
    """The evaluative part of a fit's loss: the weighted sum over kinds of the mean loss, sum over members.

    Every gradient step takes as many examples of every kind as make each one be seen at least once in a pass; a kind
    whose number does not divide begins anew with its first ones. Every member sees its own shuffle.

    Args:
        ensemble: Not changed, but gradients are added to its parameters.
        data: What was answered.
        config: The weights of the kinds; those of weight 0 are left out.
        micro_size: Pairs of segments that go through the networks at once.
    """

    def __init__(
        self, ensemble: RewardEnsemble, data: EvaluatedSegments, config: RewardConfig, micro_size: int
    ) -> None:
        self._ensemble = ensemble
        self._micro_size = micro_size
        kinds = _make_kinds(data, config)
        self._ratings, _, self._demonstrations = kinds
        self._kinds = _that_teach(kinds)
        self._inputs = ensemble.encode(data.observations, data.actions)
        if self._inputs.pixels is None:  # as in training_data
            self._inputs = self._inputs.to(ensemble.device)
        self._orders: dict[str, Rows] = {}
        self._totals: dict[str, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        """Counts the examples of the kind that has most."""
        return max((len(kind) for kind in self._kinds), default=0)

    def start_pass(self, num_steps: int, rng: np.random.Generator) -> None:
        """Shuffles, pairs demonstrations anew and places the cut points of ratings, for a pass of `num_steps` steps."""
        ensemble_size = self._ensemble.ensemble_size
        for kind in self._kinds:
            order = rng.permuted(np.tile(np.arange(len(kind)), (ensemble_size, 1)), axis=1)
            self._orders[kind.name] = spread(order, num_steps)
            self._totals[kind.name] = np.zeros(3)
        if self._demonstrations in self._kinds:
            self._demonstrations.draw_pairs(ensemble_size, rng)
        if self._ratings in self._kinds:
            every = np.tile(np.arange(len(self._ratings)), (ensemble_size, 1))
            with torch.inference_mode():
                returns = [rewards.sum(dim=3).squeeze(2).cpu() for rewards, _ in self._evaluate(self._ratings, every)]
            self._ratings.place_cut_points(torch.cat(returns, dim=1).numpy())

    def backward(self, step: int) -> None:
        """Adds the gradients of a step of the pass, counted from 0, to those of the parameters."""
        for kind in self._kinds:
            examples = self._orders[kind.name][:, step]
            num_answers = torch.from_numpy(kind.num_answers(examples))
            outcomes = []
            for rewards, part in self._evaluate(kind, examples):
                losses, is_right = kind.losses(rewards, part)
                sums = losses.flatten(1).sum(dim=1)
                (kind.weight * sums / num_answers.to(sums)).sum().backward()  # type: ignore[no-untyped-call]
                outcomes.append(torch.stack([sums.detach().sum(), is_right.sum()]).cpu().numpy())
            self._totals[kind.name] += [*np.sum(outcomes, axis=0), float(num_answers.sum())]

    def metrics(self) -> dict[str, float]:
        """Returns "NAME_loss" and "NAME_accuracy" of each kind over the pass, taken before each step."""
        metrics: dict[str, float] = {}
        for kind in self._kinds:
            loss, num_right, count = self._totals[kind.name]
            metrics |= {f"{kind.name}_loss": float(loss / count), f"{kind.name}_accuracy": float(num_right / count)}
        return metrics

    def total(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns "loss", that of preferences plus the weighted ones of the kinds, and the least "accuracy" of all."""
        own = self.metrics()
        losses = [kind.weight * own[f"{kind.name}_loss"] for kind in self._kinds]
        accuracies = [own[f"{kind.name}_accuracy"] for kind in self._kinds]
        return {
            **own,
            "loss": float(np.nansum([metrics["loss"], *losses])),
            "accuracy": float(np.nanmin([metrics["accuracy"], *accuracies])),
        }

    def _evaluate(self, kind: Kind, examples: Rows) -> Iterator[tuple[Tensor, Rows]]:
        """Yields predicted rewards (K, B, num_segments, L) of examples (K, N), B of them at a time."""
        size = max(1, 2 * self._micro_size // kind.num_segments)
        for part in slices(examples.shape[1], size):
            rows = torch.from_numpy(kind.rows(examples[:, part])).to(self._inputs.features.device)
            inputs = self._inputs.gather(rows).flatten(1, 3).to(self._ensemble.device)
            yield self._ensemble.evaluate(inputs).view(*rows.shape, -1), examples[:, part]


def spread(order: Rows, num_steps: int) -> Rows:
    """Returns (K, N) as (K, num_steps, B) with B the least size that holds all N; what is left over begins anew."""
    num_examples = order.shape[1]
    size = -(-num_examples // num_steps)
    return order[:, np.arange(num_steps * size) % num_examples].reshape(len(order), num_steps, size)
