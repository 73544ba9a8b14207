"""About what teachers are asked: pure measures of candidate queries, and samplers that select by them.

Disagreement is from Christiano et al. 2017, "Deep reinforcement learning from human preferences" (arXiv 1706.03741,
section 2.2.4); entropy from Lee et al. 2021, "PEBBLE" (arXiv 2106.05091, section 4.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLERS", "Candidates", "Sampler", "disagreement", "entropy"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is known of the queries that may be asked.

    Attributes:
        left_probabilities: (K, N) probability of left in candidate n, by member k of the reward ensemble.

    Raises:
        ValueError: The shape is another one or a number is outside [0, 1].
    """

    left_probabilities: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.left_probabilities.ndim != 2 or self.left_probabilities.shape[0] == 0:
            raise ValueError(f"left_probabilities must be (members, candidates), not {self.left_probabilities.shape}")
        if not np.all((self.left_probabilities >= 0.0) & (self.left_probabilities <= 1.0)):
            raise ValueError("left_probabilities must be between 0 and 1")

    def __len__(self) -> int:
        return int(self.left_probabilities.shape[1])


# (candidates, n, rng) -> min(n, N) distinct indices of candidates, the most wanted first.
Sampler = Callable[[Candidates, int, np.random.Generator], NDArray[np.int64]]


def disagreement(left_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) standard deviations over members of (K, N) probabilities; exactly 0 where all members agree."""
    probabilities = left_probabilities.astype(np.float64)
    # Relative to the first member: the mean of equal floats is not always that float.
    deviations: NDArray[np.float64] = (probabilities - probabilities[:1]).std(axis=0)
    return deviations


def entropy(left_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) means over members of -p log p - (1 - p) log(1 - p), in nats, of (K, N) probabilities."""
    probabilities = left_probabilities.astype(np.float64)
    both = np.stack([probabilities, 1.0 - probabilities])
    logs = np.log(both, out=np.zeros_like(both), where=both > 0.0)  # 0 log 0 is 0.
    entropies: NDArray[np.float64] = -(both * logs).sum(axis=0).mean(axis=0)
    return entropies


def sample_uniform(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples candidates without replacement, all equally likely."""
    return rng.permutation(len(candidates))[:n]


def sample_by_disagreement(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples the candidates about which the members disagree most."""
    return _largest(disagreement(candidates.left_probabilities), n, rng)


def sample_by_entropy(candidates: Candidates, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples the candidates about which the members are least certain."""
    return _largest(entropy(candidates.left_probabilities), n, rng)


SAMPLERS: dict[str, Sampler] = {
    "uniform": sample_uniform,
    "disagreement": sample_by_disagreement,
    "entropy": sample_by_entropy,
}


def _largest(scores: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns the indices of the `n` largest scores, largest first, ties in random order."""
    return np.lexsort((rng.random(len(scores)), -scores))[:n].astype(np.int64)
