"""How often teachers are asked: a budget of queries spread over feedback sessions, all fixed before the run."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from themis_ray.errors import ConfigError, lookup
from themis_ray.feedback.samplers import SAMPLERS

__all__ = ["SCHEDULES", "SCHEDULE_DESCRIPTIONS", "FeedbackConfig", "Session", "queries_due", "session_plan"]

DEFAULT_NUM_SESSIONS = 10
MIN_SESSION_SIZE = 5

# (env steps t of the sessions as (S,), env steps T at the end) -> (S,) relative sizes, as in B-Pref.
Schedule = Callable[[NDArray[np.float64], float], NDArray[np.float64]]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda t, _: np.ones_like(t),
    "decreasing": lambda t, last: (last - t) / last,
    "increasing": lambda t, last: last / (last - t + 1.0),
}

SCHEDULE_DESCRIPTIONS: dict[str, str] = {
    "constant": "feedback sessions of one size",
    "decreasing": "large sessions first: size proportional to (T - t) / T, for env step t of T",
    "increasing": "large sessions last: size proportional to T / (T - t + 1)",
}


class FeedbackConfig(BaseModel):
    """How many queries are asked, about what and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: int = Field(default=100, ge=0, description="Most queries asked in a run, answered or skipped.")
    dataset: str | None = Field(
        default=None,
        description="cpl: folder of a run or of `themis data import`, whose preferences are read and never changed.",
    )
    kind: Literal["preference", "rating", "step"] = Field(
        default="preference",
        description="What a question asks: which of two segments is better, how good one segment is, or which of its "
        "steps are good. The last two are put to synthetic teachers, about segments drawn uniformly.",
    )
    num_levels: int = Field(default=5, ge=2, description="rating: levels of the scale.")
    demonstrations: str | None = Field(
        default=None,
        description="Folder of a run or dataset whose demonstrations, or else segments of the best true return, are "
        "preferred to the learner's own.",
    )
    num_demonstrations: int = Field(default=20, ge=1, description="Most demonstrations taken from there.")
    session_size: int | None = Field(
        default=None, ge=1, description="Mean queries per feedback session; None: a tenth of the budget, at least 5."
    )
    segment_length: int | None = Field(
        default=None,
        ge=1,
        description="Env steps per segment; None: 50, 100 for grids, 25 with images, and at most the horizon.",
    )
    sampler: str = Field(
        default="disagreement",
        description="Picks queries among candidates: " + ", ".join(SAMPLERS) + ". Samplers that read the reward "
        "ensemble are uniform in the first session.",
    )
    newest_num_episodes: int = Field(
        default=10, ge=1, description="The sampler newest takes segments of this many newest episodes."
    )
    candidates_per_query: int = Field(default=10, ge=1, description="Candidate queries drawn for each query asked.")
    until_share: float = Field(
        default=0.75, gt=0, le=1, description="Sessions are spread over this share of the env steps after the first."
    )
    schedule: str = Field(
        default="constant", description="How session sizes change over the run: constant, decreasing or increasing."
    )

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, sampler: str) -> str:
        lookup("sampler", sampler, SAMPLERS)
        return sampler

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str) -> str:
        lookup("schedule", schedule, SCHEDULES)
        return schedule


@dataclass(frozen=True)
class Session:
    """One planned feedback session.

    Attributes:
        step: Env steps of the run after which it takes place.
        cumulative_queries: Queries asked in this and all earlier sessions.
    """

    step: int
    cumulative_queries: int


def session_plan(config: FeedbackConfig, first_step: int, last_step: int) -> tuple[Session, ...]:
    """Spreads the budget over feedback sessions.

    There are S = ceil(budget / session_size) sessions, at env steps t_i = first_step + i * (last_step - first_step) / S
    for i < S, so that learning goes on after the last one for as long as between any two. With T = last_step, sizes
    are proportional to 1 (constant), (T - t) / T (decreasing) or T / (T - t + 1) (increasing; Lee et al. 2021,
    "B-Pref", arXiv 2111.03026); cumulative numbers are rounded, so they end at the budget exactly. The first session
    asks at least one query; sessions that would ask none, or come at the same step as the next, are left out.

    Args:
        config: Budget, session size and schedule.
        first_step: Env steps before the first session, at least 0.
        last_step: Env steps at which the run ends.

    Returns:
        Sessions with strictly increasing steps and cumulative queries; none for a budget of 0.

    Raises:
        ConfigError: `first_step` is negative or not before `last_step`.
    """
    if not 0 <= first_step < last_step:
        raise ConfigError(
            f"no feedback session fits: the first is due after {first_step} env steps, the run ends after {last_step}. "
            "Train for more env steps, or explore for fewer before the first session."
        )
    if config.budget == 0:
        return ()
    size = config.session_size or max(MIN_SESSION_SIZE, config.budget // DEFAULT_NUM_SESSIONS)
    num_sessions = -(-config.budget // size)
    steps = first_step + np.arange(num_sessions) * (last_step - first_step) // num_sessions
    weights = SCHEDULES[config.schedule](steps.astype(np.float64), float(last_step))
    shares = np.cumsum(weights)
    cumulative = np.maximum(np.floor(config.budget * (shares / shares[-1]) + 0.5).astype(np.int64), 1)
    plan: list[Session] = []
    for step, total in zip(steps.tolist(), cumulative.tolist(), strict=True):
        if plan and plan[-1].step == step:
            plan[-1] = Session(step, total)
        elif not plan or total > plan[-1].cumulative_queries:
            plan.append(Session(step, total))
    return tuple(plan)


def queries_due(plan: tuple[Session, ...], env_step: int) -> int:
    """Returns how many queries should have been asked once `env_step` env steps are done."""
    num_due = bisect_right(plan, env_step, key=lambda session: session.step)
    return plan[num_due - 1].cumulative_queries if num_due else 0
