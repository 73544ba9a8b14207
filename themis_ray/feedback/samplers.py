"""About what teachers are asked: samplers, each a pure function that picks among candidate queries.

The measures that they pick by are in `information.py`, k-center selection is in `coverage.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Query, Segment
from themis_ray.envs import ImagePart, ObservationKind
from themis_ray.feedback.coverage import farthest_first, query_embeddings
from themis_ray.feedback.information import (
    disagreement,
    entropy,
    information_gain,
    play_tournament,
    swiss_pairs,
    value_of_information,
)
from themis_ray.reward import left_probabilities

__all__ = ["SAMPLERS", "Candidates", "Sampler", "SamplerSpec", "choose_queries", "draw_distinct", "without_repeats"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is known of the N queries that may be asked; what a sampler does not need may be left out.

    Attributes:
        left_probabilities: (K, N) probability of left in candidate n, by member k of the reward ensemble.
        left_returns: (K, N) predicted return of the left segment.
        right_returns: (K, N) predicted return of the right segment.
        left_segments: (N,) number of the left segment; the same segment has the same number wherever it stands.
        right_segments: (N,) number of the right segment.
        embeddings: (N, D) float32, observations of the left and then of the right segment.
        labelled_embeddings: (M, D) float32, the same of all pairs that are labelled already.

    Raises:
        ValueError: Nothing is given, shapes do not fit, a probability is outside [0, 1], or a candidate is a pair of a
            segment with itself.
    """

    left_probabilities: NDArray[np.floating] | None = None
    left_returns: NDArray[np.floating] | None = None
    right_returns: NDArray[np.floating] | None = None
    left_segments: NDArray[np.integer] | None = None
    right_segments: NDArray[np.integer] | None = None
    embeddings: NDArray[np.float32] | None = None
    labelled_embeddings: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        probabilities = self.left_probabilities
        if probabilities is not None:
            if probabilities.ndim != 2 or probabilities.shape[0] == 0:
                raise ValueError(f"left_probabilities must be (members, candidates), not {probabilities.shape}")
            if not np.all((probabilities >= 0.0) & (probabilities <= 1.0)):
                raise ValueError("left_probabilities must be between 0 and 1")
        sizes = self._sizes()
        if len(set(sizes.values())) != 1:
            raise ValueError(f"all of Candidates must be of the same number of queries, not {sizes or 'nothing'}")
        if (self.left_returns is None) != (self.right_returns is None):
            raise ValueError("left_returns and right_returns go together")
        if (self.left_segments is None) != (self.right_segments is None):
            raise ValueError("left_segments and right_segments go together")
        if self.left_segments is not None and np.any(self.left_segments == self.right_segments):
            raise ValueError("left_segments and right_segments must differ: no segment is compared with itself")

    def _sizes(self) -> dict[str, int]:
        """Returns the number of queries by each array that is given."""
        by_column = {
            "left_probabilities": self.left_probabilities,
            "left_returns": self.left_returns,
            "right_returns": self.right_returns,
        }
        by_row = {
            "left_segments": self.left_segments,
            "right_segments": self.right_segments,
            "embeddings": self.embeddings,
        }
        sizes = {name: array.shape[1] for name, array in by_column.items() if array is not None}
        return sizes | {name: array.shape[0] for name, array in by_row.items() if array is not None}

    def __len__(self) -> int:
        return next(iter(self._sizes().values()))


# (candidates, n, rng) -> min(n, N) distinct int64 indices of candidates, the most wanted first.
Sampler = Callable[[Candidates, int, np.random.Generator], NDArray[np.int64]]


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler and what has to be known, or done, before it can pick.

    Attributes:
        sample: Picks among candidates.
        description: One line for lists of samplers.
        needs_model: Reads probabilities, returns and segments: before the first fit queries are drawn uniformly.
        needs_embeddings: Reads `embeddings` and `labelled_embeddings`; needs no fit.
        newest_only: Candidates come from the newest episodes only.
        pairs_players: Segments of the candidates are paired anew, by `swiss_pairs`, before it picks.
    """

    sample: Sampler
    description: str
    needs_model: bool = False
    needs_embeddings: bool = False
    newest_only: bool = False
    pairs_players: bool = False


def sample_uniform(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples candidates without replacement, all equally likely."""
    return rng.permutation(len(candidates))[:n]


def sample_by_disagreement(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples the candidates about which the members disagree most."""
    return _largest(n, rng, disagreement(_needed(candidates.left_probabilities)))


def sample_by_entropy(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples the candidates about which the members are least certain."""
    return _largest(n, rng, entropy(_needed(candidates.left_probabilities)))


def sample_by_kcenter(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples candidates far from all labelled pairs and from each other."""
    return farthest_first(_needed(candidates.embeddings), _needed(candidates.labelled_embeddings), n, rng)


def sample_by_kcenter_disagreement(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples by k-center among the half of the candidates with the most disagreement."""
    return _kcenter_of_better_half(candidates, disagreement(_needed(candidates.left_probabilities)), n, rng)


def sample_by_kcenter_entropy(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples by k-center among the half of the candidates with the most entropy."""
    return _kcenter_of_better_half(candidates, entropy(_needed(candidates.left_probabilities)), n, rng)


def sample_by_swiss_information_gain(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples games of a tournament in rounds, the largest information gain first; no player twice in a round."""
    gains = information_gain(_needed(candidates.left_probabilities))
    left, right = _needed(candidates.left_segments).tolist(), _needed(candidates.right_segments).tolist()
    order = _largest(len(gains), rng, gains).tolist()
    return play_tournament(order, list(zip(left, right, strict=True)), n)


def sample_by_value_of_information(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples the candidates whose answer helps most to find the best segment, equal ones by disagreement."""
    probabilities = _needed(candidates.left_probabilities)
    values = value_of_information(probabilities, _needed(candidates.left_returns), _needed(candidates.right_returns))
    return _largest(n, rng, values, disagreement(probabilities))


SAMPLERS: dict[str, SamplerSpec] = {
    "uniform": SamplerSpec(sample_uniform, "all queries equally likely"),
    "disagreement": SamplerSpec(
        sample_by_disagreement, "largest spread of the members' probabilities", needs_model=True
    ),
    "entropy": SamplerSpec(sample_by_entropy, "largest mean entropy of the members' probabilities", needs_model=True),
    "kcenter": SamplerSpec(
        sample_by_kcenter, "observations farthest from all labelled pairs, one after the other", needs_embeddings=True
    ),
    "kcenter_disagreement": SamplerSpec(
        sample_by_kcenter_disagreement,
        "k-center among the half with the most disagreement",
        needs_model=True,
        needs_embeddings=True,
    ),
    "kcenter_entropy": SamplerSpec(
        sample_by_kcenter_entropy,
        "k-center among the half with the most entropy",
        needs_model=True,
        needs_embeddings=True,
    ),
    "swiss_information_gain": SamplerSpec(
        sample_by_swiss_information_gain,
        "neighbours in the standing of segments, largest information gain first",
        needs_model=True,
        pairs_players=True,
    ),
    "newest": SamplerSpec(sample_uniform, "all queries of the newest episodes equally likely", newest_only=True),
    "value_of_information": SamplerSpec(
        sample_by_value_of_information, "largest expected gain in the best segment's return", needs_model=True
    ),
}


def choose_queries(
    sampler: SamplerSpec,
    queries: Sequence[Query],
    n: int,
    rng: np.random.Generator,
    *,
    labelled: Sequence[Query],
    observation_kind: ObservationKind,
    layout: Sequence[ImagePart] = (),
    predict_returns: Callable[[Sequence[Segment]], NDArray[np.floating]],
) -> list[Query]:
    """Returns min(n, N) of N drawn queries, or of new pairs of their segments, as a sampler picks them.

    Only what the sampler needs is computed. Drawn queries may repeat a pair of segments: repeats are picked only where
    fewer than n pairs differ.

    Args:
        sampler: Who picks.
        queries: N queries drawn at random.
        n: How many are wanted.
        rng: The sampler's stream.
        labelled: Queries that are labelled already.
        observation_kind: What the observations are.
        layout: Where mixed observations hold images.
        predict_returns: Gives (K, S) returns of S segments by the members of the reward ensemble.
    """
    if not queries:
        return []
    queries = without_repeats(queries, n)
    segments = list({side.id: side for query in queries for side in (query.left, query.right)}.values())
    numbers = {segment.id: number for number, segment in enumerate(segments)}
    returns = predict_returns(segments) if sampler.needs_model else None
    if sampler.pairs_players and returns is not None:
        games = _neighbours(segments, numbers, returns.mean(axis=0), labelled, rng)
        queries = without_repeats([*games, *queries], n)[: max(n, len(games))]
    left = np.array([numbers[query.left.id] for query in queries], np.int64)
    right = np.array([numbers[query.right.id] for query in queries], np.int64)
    candidates = Candidates(left_segments=left, right_segments=right)
    if returns is not None:
        left_returns, right_returns = returns[:, left], returns[:, right]
        candidates = replace(
            candidates,
            left_probabilities=left_probabilities(left_returns, right_returns),
            left_returns=left_returns,
            right_returns=right_returns,
        )
    if sampler.needs_embeddings:
        candidates = replace(
            candidates,
            embeddings=query_embeddings(queries, observation_kind, layout),
            labelled_embeddings=query_embeddings(labelled, observation_kind, layout),
        )
    return [queries[i] for i in sampler.sample(candidates, n, rng)]


def without_repeats(queries: Sequence[Query], n: int) -> list[Query]:
    """Returns queries with each pair of segments once, whichever is left.

    Where fewer than `n` differ, the first repeats follow until there are `n`, or all. Queries without repeats come back
    as they are.
    """
    distinct: list[Query] = []
    repeats: list[Query] = []
    seen = set()
    for query in queries:
        pair = frozenset((query.left.id, query.right.id))
        (repeats if pair in seen else distinct).append(query)
        seen.add(pair)
    return [*distinct, *repeats[: max(0, n - len(distinct))]]


def draw_distinct(draw: Callable[[int], Sequence[Query]], n: int, num_more: int) -> list[Query]:
    """Draws `n` queries for a sampler that has nothing to pick by.

    Where one repeats the pair of another, and only then, `num_more` are drawn to take the place of repeats; those that
    cannot be replaced are kept.

    Args:
        draw: Draws as many queries as it is told.
        n: How many are wanted.
        num_more: How many are drawn at once in place of the repeats.
    """
    queries = draw(n)
    if len(without_repeats(queries, 0)) < len(queries):
        queries = without_repeats([*queries, *draw(num_more)], n)
    return list(queries[:n])


def _neighbours(
    segments: Sequence[Segment],
    numbers: Mapping[str, int],
    scores: NDArray[np.floating],
    labelled: Sequence[Query],
    rng: np.random.Generator,
) -> list[Query]:
    """Returns queries of neighbours in the standing of segments that no labelled query has compared."""
    met = set()
    for query in labelled:
        if query.left.id in numbers and query.right.id in numbers:
            low, high = sorted((numbers[query.left.id], numbers[query.right.id]))
            met.add((low, high))
    return [Query(segments[left], segments[right]) for left, right in swiss_pairs(scores, met, rng)]


def _kcenter_of_better_half(
    candidates: Candidates, scores: NDArray[np.float64], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns a k-center selection among the half with the larger scores, or the n with the largest if that is more."""
    num_kept = max(n, -(-len(candidates) // 2))
    kept = _largest(num_kept, rng, scores)
    embeddings, centres = _needed(candidates.embeddings)[kept], _needed(candidates.labelled_embeddings)
    return kept[farthest_first(embeddings, centres, n, rng)]


def _largest(n: int, rng: np.random.Generator, *scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the indices of the `n` largest scores, largest first, ties by the next scores and then at random."""
    keys = [rng.random(len(scores[0])), *(-key for key in reversed(scores))]
    return np.lexsort(keys)[:n].astype(np.int64)


def _needed(array: NDArray[Any] | None) -> NDArray[Any]:
    """Returns what a sampler reads of the candidates.

    Raises:
        ValueError: It was left out.
    """
    if array is None:
        raise ValueError("the candidates lack an array that this sampler reads; see SamplerSpec")
    return array
