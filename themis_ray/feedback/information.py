"""What an answer would tell: measures of candidate queries, and the pairing of a Swiss tournament.

Disagreement is from Christiano et al. 2017, "Deep reinforcement learning from human preferences" (arXiv 1706.03741,
section 2.2.4), which names the expected value of information as what one would rather maximise; entropy from Lee et
al. 2021, "PEBBLE" (arXiv 2106.05091, section 4.2); information gain from Houlsby et al. 2011, "Bayesian active
learning for classification and preference learning" (arXiv 1112.5745); the value of information of a comparison from
Viappiani and Boutilier 2010, "Optimal Bayesian recommendation sets and myopically optimal choice query sets".

The tournament follows Chouliaras and Chatzopoulos 2025, "Maximizing the efficiency of human feedback in AI alignment"
(arXiv 2511.12796, Swiss InfoGain); docs/samplers.md says what is theirs and what is not.
"""

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "disagreement",
    "entropy",
    "information_gain",
    "play_tournament",
    "swiss_pairs",
    "value_of_information",
]

_MAX_CHUNK_BYTES = 2**25


def disagreement(left_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) standard deviations over members of (K, N) probabilities; exactly 0 where all members agree."""
    probabilities = left_probabilities.astype(np.float64)
    # Relative to the first member: the mean of equal floats is not always that float.
    deviations: NDArray[np.float64] = (probabilities - probabilities[:1]).std(axis=0)
    return deviations


def entropy(left_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) means over members of -p log p - (1 - p) log(1 - p), in nats, of (K, N) probabilities."""
    entropies: NDArray[np.float64] = _binary_entropy(left_probabilities.astype(np.float64)).mean(axis=0)
    return entropies


def information_gain(left_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) mutual informations of the answer and the ensemble member, in nats, at least 0.

    With all members equally likely, H the binary entropy and p_k member k's probability of left,

        I = H(mean_k p_k) - mean_k H(p_k).

    It is exactly 0 where all members agree, and at most log 2.

    Args:
        left_probabilities: (K, N) probabilities.
    """
    probabilities = left_probabilities.astype(np.float64)
    first = probabilities[:1]
    mean = first[0] + (probabilities - first).mean(axis=0)
    first_entropy = _binary_entropy(first[0])
    # Both terms relative to the first member, for an exact 0.
    of_mean = _binary_entropy(np.clip(mean, 0.0, 1.0)) - first_entropy
    of_members = (_binary_entropy(probabilities) - first_entropy).mean(axis=0)
    gains: NDArray[np.float64] = np.maximum(of_mean - of_members, 0.0)
    return gains


def value_of_information(
    left_probabilities: NDArray[np.floating],
    left_returns: NDArray[np.floating],
    right_returns: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Returns (N,) expected rises of the largest posterior mean return when a candidate is answered, at least 0.

    The K members are hypotheses, equally likely before an answer, and R_k(s) is the return of segment s by member k.
    The answer a to a candidate is left with probability p_k by member k, else right, so the members weigh
    w_k(a) = P(a | k) / sum_j P(a | j) after it, and the answer itself has probability P(a) = mean_k P(a | k). Then

        EVOI = sum over a of P(a) max_s sum_k w_k(a) R_k(s)  -  max_s mean_k R_k(s),

    where s runs over all segments of all candidates. A constant added to all returns of one member changes nothing.
    It is exactly 0 where the segment that is best now stays best after both answers.

    Args:
        left_probabilities: (K, N) probabilities of left.
        left_returns: (K, N) returns of the left segments.
        right_returns: (K, N) returns of the right segments.
    """
    returns = np.concatenate([left_returns, right_returns], axis=1).astype(np.float64)
    num_members, num_segments = returns.shape
    probabilities = left_probabilities.T.astype(np.float64)
    values = np.zeros(len(probabilities))
    if num_segments == 0:
        return values
    best = int(np.argmax(returns.mean(axis=0)))
    # Relative to the best segment, whose column is then 0: the second term vanishes and both maxima are at least 0.
    advantages = returns - returns[:, best : best + 1]
    chunk_size = max(1, _MAX_CHUNK_BYTES // (8 * num_segments))
    for start in range(0, len(values), chunk_size):
        rows = slice(start, start + chunk_size)
        after_left = (probabilities[rows] @ advantages).max(axis=1)
        after_right = ((1.0 - probabilities[rows]) @ advantages).max(axis=1)
        values[rows] = (after_left + after_right) / num_members
    return values


def swiss_pairs(scores: NDArray[np.floating], met: Set[tuple[int, int]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns (Q, 2) pairs of neighbours in the standing, from the top, the two sides of a pair in random order.

    Players stand in the order of their scores, equal scores at random. Each is paired with the next one below that it
    has not met; one that has met all of these is paired from above or not at all.

    Args:
        scores: (P,) scores of the players 0 ... P - 1.
        met: Pairs of players that have met, the smaller number first.
        rng: Orders equal scores and sides.
    """
    standing = np.lexsort((rng.random(len(scores)), -scores)).tolist()
    pairs: list[tuple[int, int]] = []
    for place, player in enumerate(standing):
        opponents = (other for other in standing[place + 1 :] if _pair(player, other) not in met)
        opponent = next(opponents, None)
        if opponent is not None:
            pairs.append((player, opponent))
    table = np.array(pairs, np.int64).reshape(-1, 2)
    is_swapped = rng.random(len(table)) < 0.5
    table[is_swapped] = table[is_swapped, ::-1]
    return table


def play_tournament(order: Sequence[int], players: Sequence[tuple[int, int]], n: int) -> NDArray[np.int64]:
    """Returns the first min(n, games) games of a tournament in rounds, the most wanted of each round first.

    In a round each player plays at most once; games are taken in the given order. What is left over waits for the next
    round. A second game of the same two players comes after all others.

    Args:
        order: The games 0 ... G - 1, the most wanted first.
        players: The two players of each game.
        n: How many games are wanted.
    """
    waiting: list[int] = []
    again: list[int] = []
    seen: set[tuple[int, int]] = set()
    for game in order:
        pair = _pair(*players[game])
        (again if pair in seen else waiting).append(game)
        seen.add(pair)
    chosen: list[int] = []
    while waiting and len(chosen) < n:
        playing: set[int] = set()
        postponed: list[int] = []
        for game in waiting:
            if playing.isdisjoint(players[game]):
                playing.update(players[game])
                chosen.append(game)
            else:
                postponed.append(game)
        waiting = postponed
    return np.array([*chosen, *again][:n], np.int64)


def _pair(player: int, other: int) -> tuple[int, int]:
    return (player, other) if player < other else (other, player)


def _binary_entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns -p log p - (1 - p) log(1 - p), element by element; 0 log 0 is 0."""
    both = np.stack([probabilities, 1.0 - probabilities])
    logs = np.log(both, out=np.zeros_like(both), where=both > 0.0)
    entropies: NDArray[np.float64] = -(both * logs).sum(axis=0)
    return entropies
