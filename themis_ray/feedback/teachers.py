"""Who answers: what every teacher does, and synthetic teachers that see the true rewards, with the faults people have.

The synthetic teachers are those of B-Pref (Lee et al. 2021, "B-Pref: Benchmarking Preference-Based Reinforcement
Learning", arXiv 2111.03026, section 3), under its parameter names. Where `SyntheticTeacher` departs from it: an exact
tie is `equal`, the threshold is scaled once and by magnitude, and a share of the queries is skipped, whatever their
sign. `BPrefTeacher` does as B-Pref's published code does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Choice, Query
from themis_ray.errors import ConfigError

__all__ = [
    "TEACHERS",
    "TEACHER_DESCRIPTIONS",
    "BPrefTeacher",
    "RecentReturns",
    "SyntheticTeacher",
    "Teacher",
    "TeacherParameters",
    "agreed",
]

RATIONAL = -1.0

# (true returns, lengths in env steps) of the newest finished episodes, as `EpisodePool.recent_returns` gives them.
RecentReturns = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class TeacherParameters:
    """What sets one synthetic teacher apart from another.

    Attributes:
        beta: Rationality of the choice; -1 always chooses the better segment, b > 0 chooses left with probability
            sigmoid(b * (left return - right return)).
        gamma: Weight of a step relative to the next one, in [0, 1]; 1 weighs all steps alike.
        eps_mistake: Probability that left and right are mixed up.
        eps_skip: Share of a batch of queries that is skipped, the ones whose better segment is worst.
        eps_equal: Largest difference that goes unnoticed, in shares of the mean |true return| of as many steps.
    """

    beta: float = RATIONAL
    gamma: float = 1.0
    eps_mistake: float = 0.0
    eps_skip: float = 0.0
    eps_equal: float = 0.0

    def __post_init__(self) -> None:
        if self.beta != RATIONAL and not 0.0 < self.beta < np.inf:
            raise ConfigError(
                f"teacher beta {self.beta:g} is not allowed. Give -1 (perfectly rational) or a number > 0."
            )
        for name, largest in (("gamma", 1.0), ("eps_mistake", 1.0), ("eps_skip", 1.0), ("eps_equal", np.inf)):
            value = getattr(self, name)
            if not 0.0 <= value <= largest:
                raise ConfigError(f"teacher {name} {value:g} is not allowed. Give a number from 0 to {largest:g}.")


TEACHERS: dict[str, TeacherParameters] = {
    "oracle": TeacherParameters(),
    "mistake": TeacherParameters(eps_mistake=0.1),
    "noisy": TeacherParameters(beta=1.0),
    "skip": TeacherParameters(eps_skip=0.1),
    "myopic": TeacherParameters(gamma=0.9),
    "equal": TeacherParameters(eps_equal=0.1),
}


# One line for each preset and each kind of teacher, in the order in which they are listed.
TEACHER_DESCRIPTIONS: dict[str, str] = {
    "oracle": "always prefers the segment with the larger true return",
    "mistake": "mixes up left and right in 10 % of its answers",
    "noisy": "is less sure the closer the true returns are",
    "skip": "does not answer the 10 % of queries whose better segment is worst",
    "myopic": "weighs late steps of a segment more than early ones",
    "equal": "does not see small differences of true return",
    "synthetic": "kind: one of the presets above, or its numbers changed; sees the true rewards",
    "scripted": "kind: a Python function of two segments, teacher.function=module:function",
    "judge": "kind: a vision model behind an OpenAI-compatible endpoint looks at frames of both segments",
    "human": "kind: people compare clips in their browsers while training goes on; teacher.study=ID, teacher.url",
}


class Teacher(Protocol):
    """Anyone who answers queries."""

    name: str

    def answer(
        self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns, feedback_session: int = 0
    ) -> list[Choice]:
        """Returns one choice for each query, in order.

        Args:
            queries: What is asked; all segments of one length.
            rng: The teacher's own stream.
            returns: True returns and lengths of the newest finished episodes; may be empty.
            feedback_session: Number of the feedback session, from 0.
        """
        ...


def agreed(first: Choice, second: Choice) -> Choice:
    """Returns the choice that two answers to one query share, skip where one is skip, and else equal."""
    if Choice.SKIP in (first, second):
        return Choice.SKIP
    return first if first is second else Choice.EQUAL


class SyntheticTeacher:
    """Answers from true rewards, as `parameters` say.

    For queries of segments of length L:

    1. The return of a segment is the undiscounted sum of its true rewards.
    2. Skip the queries of the batch whose larger return is lowest, `eps_skip` of them: eps_skip * N is rounded up with
       its fraction as probability, so that small batches skip as large a share as large ones do. B-Pref compares with
       a share of the mean episode return, which is no threshold at all where returns are negative; ranks work for any
       sign and scale. A batch of one query, or one of ties, is never skipped. A query with a return that is no finite
       number always is.
    3. Equal, when the returns differ by less than eps_equal * mean |episode return| * L / mean episode length.
       Before any episode is finished, the mean |segment return| of the batch takes the place of the scale.
    4. The teacher judges by the weighted return, the sum of gamma ** (L - 1 - t) * reward_t over time.
    5. An exact tie of weighted returns is equal. Else it chooses the larger (beta = -1), or left with probability
       sigmoid(beta * (left - right)).
    6. With probability `eps_mistake` left and right are swapped; skip and equal stay.

    Two uniform numbers are drawn for each query whatever the parameters, so teachers can be compared pairwise.

    Args:
        name: Stored with each preference.
        parameters: How it errs.
    """

    def __init__(self, name: str, parameters: TeacherParameters) -> None:
        self.name = name
        self.parameters = parameters

    def answer(
        self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns, feedback_session: int = 0
    ) -> list[Choice]:
        """Returns one choice for each query, in order; the same in every feedback session.

        Raises:
            ValueError: The segments are not all of one length.
        """
        del feedback_session
        if not queries:
            return []
        sums, left_margins, is_left, luck = _judge(queries, self.parameters, rng)
        threshold = self.parameters.eps_equal * _typical_return(sums, _segment_length(queries), returns)
        is_equal = (left_margins == 0.0) | (np.abs(sums[:, 0] - sums[:, 1]) < threshold)
        is_skip = _worst(sums.max(axis=-1), self.parameters.eps_skip, luck) | ~np.isfinite(sums).all(axis=-1)
        return _choices(is_skip, is_equal, is_left)


class BPrefTeacher:
    """Answers as the code published with B-Pref does, for comparisons with numbers made with it.

    For queries of segments of length L, with M = mean episode return * L / mean episode length of recent episodes,
    signed, and 0 before one is finished:

    1. The thresholds of skip and of equal are eps * M in the first feedback session. B-Pref's training script passes
       an M that is already multiplied by eps to functions that multiply by eps from the second session on, so from
       then on they are eps**2 * M.
    2. Skip, when the skip threshold is above 0 and the larger return of the two is at most as large.
    3. The teacher judges by weighted returns as `SyntheticTeacher` does. The larger one wins; for beta = -1 an exact
       tie goes to left. With beta > 0 left has probability sigmoid(beta * (left - right)).
    4. With probability `eps_mistake` the sides are swapped.
    5. Equal, when the returns differ by less than the equal threshold. For negative returns that is never.

    It draws the same numbers as `SyntheticTeacher`.

    Args:
        name: Stored with each preference.
        parameters: How it errs; `eps_skip` is a share of M here and not of the queries.
    """

    def __init__(self, name: str, parameters: TeacherParameters) -> None:
        self.name = name
        self.parameters = parameters

    def answer(
        self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns, feedback_session: int = 0
    ) -> list[Choice]:
        """Returns one choice for each query, in order.

        Raises:
            ValueError: The segments are not all of one length.
        """
        if not queries:
            return []
        sums, _, is_left, _ = _judge(queries, self.parameters, rng, ties_go_left=True)
        skip_threshold, equal_threshold = self._thresholds(_segment_length(queries), returns, feedback_session)
        is_equal = np.abs(sums[:, 0] - sums[:, 1]) < equal_threshold
        is_skip = (skip_threshold > 0.0) & (sums.max(axis=-1) <= skip_threshold)
        return _choices(is_skip, is_equal, is_left)

    def _thresholds(self, segment_length: int, returns: RecentReturns, feedback_session: int) -> tuple[float, float]:
        """Returns the thresholds of skip and of equal."""
        episode_returns, episode_lengths = returns
        if len(episode_returns) == 0:
            return 0.0, 0.0
        margin = float(np.mean(episode_returns)) * (segment_length / float(np.mean(episode_lengths)))
        power = 1 if feedback_session == 0 else 2
        return margin * self.parameters.eps_skip**power, margin * self.parameters.eps_equal**power


def _judge(
    queries: Sequence[Query], parameters: TeacherParameters, rng: np.random.Generator, *, ties_go_left: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], float]:
    """Returns true returns (N, 2), weighted margins (N,), whether left is chosen (N,), mistakes included, and luck.

    Two uniform numbers are drawn for each query whatever the parameters. Luck is the fraction of their sum: uniform on
    [0, 1), and independent of any one of them. With `ties_go_left` a rational teacher chooses left where the margin is
    exactly 0.

    Raises:
        ValueError: The segments are not all of one length.
    """
    rewards = _true_rewards(queries)
    choice_draws, mistake_draws = rng.random((2, len(queries)))
    left_margins = _weighted_margins(rewards, parameters.gamma)
    is_left = _prefers_left(left_margins, parameters.beta, choice_draws)
    if ties_go_left and parameters.beta == RATIONAL:
        is_left |= left_margins == 0.0
    is_left ^= mistake_draws < parameters.eps_mistake
    return rewards.sum(axis=-1), left_margins, is_left, float((choice_draws + mistake_draws).sum() % 1.0)


def _worst(values: NDArray[np.float64], share: float, luck: float) -> NDArray[np.bool_]:
    """Returns which of N values are lowest: share * N of them, the fraction by `luck`; what ties with others is not."""
    rank = min(int(share * len(values) + luck), len(values) - 1)
    is_worst: NDArray[np.bool_] = values < np.sort(values)[rank]
    return is_worst


def _choices(is_skip: NDArray[np.bool_], is_equal: NDArray[np.bool_], is_left: NDArray[np.bool_]) -> list[Choice]:
    """Returns one choice per query; skip goes before equal and equal before a side."""
    words = np.select([is_skip, is_equal, is_left], [Choice.SKIP, Choice.EQUAL, Choice.LEFT], Choice.RIGHT)
    return [Choice(word) for word in words]


def _segment_length(queries: Sequence[Query]) -> int:
    return len(queries[0].left.true_rewards)


def _true_rewards(queries: Sequence[Query]) -> NDArray[np.float64]:
    """Returns (N, 2, L) true rewards of left and right.

    Raises:
        ValueError: The segments are not all of one length.
    """
    return np.stack([[query.left.true_rewards, query.right.true_rewards] for query in queries], dtype=np.float64)


def _weighted_margins(rewards: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Returns (N,) weighted left minus right returns; the last step weighs 1."""
    weights = gamma ** np.arange(rewards.shape[-1] - 1, -1, -1, dtype=np.float64)
    # Row by row and not by a matrix product, whose rounding depends on the row: equal rewards must tie exactly.
    weighted = (rewards * weights).sum(axis=-1)
    margins: NDArray[np.float64] = weighted[:, 0] - weighted[:, 1]
    return margins


def _prefers_left(left_margins: NDArray[np.float64], beta: float, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns (N,) rational or Boltzmann choices."""
    if beta == RATIONAL:
        return left_margins > 0.0
    return draws < np.exp(-np.logaddexp(0.0, -beta * left_margins))


def _typical_return(sums: NDArray[np.float64], segment_length: int, returns: RecentReturns) -> float:
    """Returns the mean |true return| of `segment_length` steps of recent episodes."""
    episode_returns, episode_lengths = returns
    if len(episode_returns) == 0:
        return float(np.abs(sums).mean())
    return float(np.abs(episode_returns).mean() * segment_length / np.mean(episode_lengths))
