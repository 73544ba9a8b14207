"""Who answers: synthetic teachers that see the true rewards, with the faults people have.

The teachers are those of B-Pref (Lee et al. 2021, "B-Pref: Benchmarking Preference-Based Reinforcement
Learning", arXiv 2111.03026, section 3), under its parameter names. Where this module departs from it: an exact tie
is `equal`, thresholds are scaled once and by magnitude, and the skip threshold is a quantile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from themis_ray.data import Choice, Query
from themis_ray.errors import ConfigError, lookup

__all__ = [
    "TEACHERS",
    "RecentReturns",
    "SyntheticTeacher",
    "Teacher",
    "TeacherConfig",
    "TeacherParameters",
    "make_teacher",
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


class TeacherConfig(BaseModel):
    """Which teacher answers; a number given here replaces that of the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="oracle", description="Preset: oracle, mistake, noisy, skip, myopic or equal.")
    beta: float | None = Field(default=None, description="Rationality: -1 perfect, > 0 Boltzmann; None: the preset's.")
    gamma: float | None = Field(default=None, description="Discount over the steps of a segment; None: the preset's.")
    eps_mistake: float | None = Field(default=None, description="Probability of mixing up sides; None: the preset's.")
    eps_skip: float | None = Field(default=None, description="Share of queries skipped; None: the preset's.")
    eps_equal: float | None = Field(default=None, description="Unnoticed relative difference; None: the preset's.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        lookup("teacher", name, TEACHERS)
        return name

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        self.parameters()
        return self

    def parameters(self) -> TeacherParameters:
        """Returns the preset's parameters with the given ones in place.

        Raises:
            ConfigError: A number is out of its range.
        """
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        return replace(lookup("teacher", self.name, TEACHERS), **given)


class Teacher(Protocol):
    """Anyone who answers queries."""

    name: str

    def answer(self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns) -> list[Choice]:
        """Returns one choice for each query, in order.

        Args:
            queries: What is asked; all segments of one length.
            rng: The teacher's own stream.
            returns: True returns and lengths of the newest finished episodes; may be empty.
        """
        ...


class SyntheticTeacher:
    """Answers from true rewards, as `parameters` say.

    For queries of segments of length L:

    1. The return of a segment is the undiscounted sum of its true rewards.
    2. Skip, when the larger return of the two is strictly below the `eps_skip`-quantile of these over the batch.
       B-Pref compares with a share of the mean episode return, which is no threshold at all where returns are
       negative; a quantile works for any sign and scale. A batch of one query, or one of ties, is never skipped.
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

    def answer(self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns) -> list[Choice]:
        """Returns one choice for each query, in order.

        Raises:
            ValueError: The segments are not all of one length.
        """
        if not queries:
            return []
        rewards = np.stack(
            [[query.left.true_rewards, query.right.true_rewards] for query in queries], dtype=np.float64
        )  # (N, 2, L)
        choice_draws, mistake_draws = rng.random((2, len(queries)))
        sums = rewards.sum(axis=-1)
        left_margins = _weighted_margins(rewards, self.parameters.gamma)
        is_left = _prefers_left(left_margins, self.parameters.beta, choice_draws)
        is_left ^= mistake_draws < self.parameters.eps_mistake
        threshold = self.parameters.eps_equal * _typical_return(sums, rewards.shape[-1], returns)
        is_equal = (left_margins == 0.0) | (np.abs(sums[:, 0] - sums[:, 1]) < threshold)
        best = sums.max(axis=-1)
        is_skip = best < np.quantile(best, self.parameters.eps_skip)
        words = np.select([is_skip, is_equal, is_left], [Choice.SKIP, Choice.EQUAL, Choice.LEFT], Choice.RIGHT)
        return [Choice(word) for word in words]


def make_teacher(config: TeacherConfig) -> Teacher:
    """Returns the teacher that a config describes."""
    return SyntheticTeacher(config.name, config.parameters())


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
