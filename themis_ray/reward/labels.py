"""Which labels a pass of a fit learns: held-out ones not, wrong ones not or flipped, and guessed ones too."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import LabelledPairs, Query

FILTER_ALPHA = 0.5
FILTER_BETA_MAX = 3.0
FILTER_BETA_MIN = 1.0
FILTER_BETA_STEP = 1.0 / 30.0
FILTER_SPREAD_LIMIT = 3.0
FILTER_SMOOTHING = 0.1
FLIP_ABOVE = 3.0 * float(np.log(10.0))


@dataclass(frozen=True, eq=False)
class Examples:
    """Pairs that one pass learns.

    Attributes:
        sides: (2, N) int64, rows of the left and right segments.
        labels: (N,) float32, p(left preferred).
        weights: (N,) float32, above 0.
    """

    sides: NDArray[np.int64]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Self:
        """Returns some of the examples: indices or a mask."""
        return type(self)(self.sides[:, rows], self.labels[rows], self.weights[rows])

    def join(self, other: Self) -> Self:
        """Returns these examples followed by the others."""
        return type(self)(
            np.concatenate([self.sides, other.sides], axis=1),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.weights, other.weights]),
        )


class UnlabelledPairs(NamedTuple):
    """Pairs that nobody was asked about."""

    observations: NDArray[Any]
    """(S, L, *observation_shape)"""
    actions: NDArray[Any]
    """(S, L, *action_shape)"""
    left: NDArray[np.int64]
    """(M,), row of the left segment."""
    right: NDArray[np.int64]
    """(M,), row of the right segment."""


def unlabelled_pairs(queries: Sequence[Query]) -> UnlabelledPairs:
    """Returns queries, at least one, as arrays; a segment that is in several is kept once."""
    segments = {segment.id: segment for query in queries for segment in (query.left, query.right)}
    rows = {segment_id: row for row, segment_id in enumerate(segments)}
    return UnlabelledPairs(
        observations=np.stack([segment.observations for segment in segments.values()]),
        actions=np.stack([segment.actions for segment in segments.values()]),
        left=np.array([rows[query.left.id] for query in queries], np.int64),
        right=np.array([rows[query.right.id] for query in queries], np.int64),
    )


def pseudo_labels(
    probabilities: NDArray[np.float64], threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Returns which pairs the ensemble is sure about, (M,), and the hard labels of those (SURF, Park et al. 2022).

    Args:
        probabilities: (M,) mean p(left) over members.
        threshold: Sure is p(left) above this, label 1, or below 1 minus this, label 0.
    """
    is_sure = np.maximum(probabilities, 1.0 - probabilities) > threshold
    return is_sure, (probabilities[is_sure] > 0.5).astype(np.float32)


def held_out(pairs: LabelledPairs, share: float) -> NDArray[np.bool_]:
    """Returns which pairs are kept from the fit, (N,): about `share` of them, at least 1 when there are two or more.

    A number in [0, 1) is made of the contents of both segments; the pairs below `share`, and the one with the
    smallest number, are held out, but never all. So the split needs no memory and does not depend on the order of
    pairs or sides, and a pair that one fit has learnt is not held out of a later one to which pairs were added; but
    where all pairs of the first fit are below `share`, the one with the largest number is learnt.
    """
    num_pairs = len(pairs)
    if share == 0 or num_pairs < 2:
        return np.zeros(num_pairs, bool)
    numbers = np.array(
        [
            int.from_bytes(hashlib.blake2b(observations.tobytes() + actions.tobytes(), digest_size=8).digest())
            for observations, actions in zip(pairs.observations, pairs.actions, strict=True)
        ],
        dtype=np.uint64,
    )
    position = (numbers[pairs.left] + numbers[pairs.right]) / 2.0**64  # the sum wraps around
    is_held_out: NDArray[np.bool_] = (position < share) | (position == position.min())
    if is_held_out.all():  # few pairs and a large share: one has to be fitted
        is_held_out[position.argmax()] = False
    return is_held_out


class Trust(NamedTuple):
    """What the filter says about N labels."""

    is_trusted: NDArray[np.bool_]
    is_flipped: NDArray[np.bool_]


def trust_labels(
    probabilities: NDArray[np.float64], labels: NDArray[np.float32], statistics: NDArray[np.float64]
) -> tuple[Trust, NDArray[np.float64]]:
    """Tells which labels to learn as they are and which the other way round (RIME, Cheng et al. 2024).

    With KL_i = -log of the probability that the ensemble gives to the side of label i, a label is trusted when

        KL_i < tau_lower = -ln rho + alpha * rho + min(beta_t * s, 3),

    and flipped when KL_i > tau_upper = 3 ln 10. rho is the largest and s the std of KL among labels trusted so far,
    both as running means with weight 0.1 for the newest pass; beta_t falls by 1/30 a pass from 3 to 1; alpha is 0.5.
    As rho begins at 0, the first passes trust everything. Labels of exactly 0.5 have no side: they are trusted and do
    not count in rho and s.

    Args:
        probabilities: (N,) mean p(left) over members before the pass.
        labels: (N,).
        statistics: (3,) rho, s and passes made; begins at (0, 1, 0).

    Returns:
        What to do with each label, and the next statistics.
    """
    rho, spread, num_passes = statistics
    is_tie = labels == 0.5
    side = np.where(labels > 0.5, probabilities, 1.0 - probabilities)
    divergence = -np.log(np.maximum(side, np.finfo(np.float64).tiny))
    beta = max(FILTER_BETA_MIN, FILTER_BETA_MAX - FILTER_BETA_STEP * num_passes)
    lower = -np.log(rho + 1e-8) + FILTER_ALPHA * rho + min(beta * spread, FILTER_SPREAD_LIMIT)
    is_trusted = is_tie | (divergence < lower)
    is_flipped = ~is_tie & (divergence > FLIP_ABOVE)
    counted = divergence[is_trusted & ~is_tie & ~is_flipped]
    if len(counted):
        rho += FILTER_SMOOTHING * (counted.max() - rho)
        spread += FILTER_SMOOTHING * (counted.std() - spread)
    return Trust(is_trusted & ~is_flipped, is_flipped), np.array([rho, spread, num_passes + 1])
