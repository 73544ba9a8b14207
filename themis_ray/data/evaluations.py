"""Feedback about single segments: ratings, good and bad steps, and demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.preferences import check_answer

MIN_NUM_LEVELS = 2
STEP_VALUES = (-1, 0, 1)


@dataclass(frozen=True)
class Rating:
    """How good one segment is, on a scale of levels.

    Attributes:
        segment_id: Id of the segment.
        level: From 0, the worst, to `num_levels` - 1, the best.
        num_levels: Levels of the scale, at least 2.
        teacher: Name of the teacher, or the pseudonymous id of an annotator.
        feedback_session: Number of the feedback session, from 0.
        num_env_steps: Env steps the learner had done when the question was asked.
        asked_at: When the question was asked, in UTC.
        answered_at: When it was answered, in UTC.

    Raises:
        ValueError: The level is not on the scale, or another value is not allowed, as for `Preference`.
    """

    segment_id: str
    level: int
    num_levels: int
    teacher: str
    feedback_session: int
    num_env_steps: int
    asked_at: datetime
    answered_at: datetime

    def __post_init__(self) -> None:
        if self.num_levels < MIN_NUM_LEVELS or not 0 <= self.level < self.num_levels:
            raise ValueError(f"level must be from 0 to num_levels - 1, not {self.level} of {self.num_levels} levels")
        check_answer(self, "segment_id")


@dataclass(frozen=True)
class StepFeedback:
    """Which steps of one segment are good and which are bad.

    Attributes:
        segment_id: Id of the segment.
        values: One value a step: 1 good, -1 bad, 0 no opinion.
        teacher: As for `Rating`, like all that follow.
        feedback_session: Number of the feedback session, from 0.
        num_env_steps: Env steps the learner had done when the question was asked.
        asked_at: When the question was asked, in UTC.
        answered_at: When it was answered, in UTC.

    Raises:
        ValueError: There is no step, a value is none of -1, 0 and 1, or another value is not allowed.
    """

    segment_id: str
    values: tuple[int, ...]
    teacher: str
    feedback_session: int
    num_env_steps: int
    asked_at: datetime
    answered_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or not set(self.values) <= set(STEP_VALUES):
            raise ValueError(f"values must be one of {STEP_VALUES} for every step, not {self.values}")
        check_answer(self, "segment_id")


@dataclass(frozen=True)
class Demonstration:
    """A segment that shows what is wanted.

    Attributes:
        segment_id: Id of the segment.
        teacher: Who showed it.
        feedback_session: Number of the feedback session, from 0.
        num_env_steps: Env steps the learner had done by then.
        asked_at: When it was asked for, in UTC.
        answered_at: When it was shown, in UTC.

    Raises:
        ValueError: A value is not allowed, as for `Preference`.
    """

    segment_id: str
    teacher: str
    feedback_session: int
    num_env_steps: int
    asked_at: datetime
    answered_at: datetime

    def __post_init__(self) -> None:
        check_answer(self, "segment_id")


Evaluation = Rating | StepFeedback | Demonstration

EVALUATION_FOLDERS: Mapping[str, type[Rating] | type[StepFeedback] | type[Demonstration]] = {
    "ratings": Rating,
    "step_feedback": StepFeedback,
    "demonstrations": Demonstration,
}
"""The kind that lies in each folder of a dataset."""


def _rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class EvaluatedSegments:
    """Ratings, step feedback and demonstrations as training data: each segment once, answers as rows into them.

    Attributes:
        observations: (S, L, *observation_shape).
        actions: (S, L, *action_shape).
        rated: (N,) int64, row of each rated segment.
        levels: (N,) int64, its level.
        num_levels: Levels of the scale.
        judged: (M,) int64, row of each segment whose steps were judged.
        step_values: (M, L), -1, 0 or 1 for each step.
        shown: (D,) int64, row of each demonstration.
        own: (P,) int64, rows of the learner's own segments, which demonstrations are preferred to.

    Raises:
        ValueError: The arrays do not fit together, or a value is not allowed.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rated: NDArray[np.int64] = field(default_factory=_rows)
    levels: NDArray[np.int64] = field(default_factory=_rows)
    num_levels: int = MIN_NUM_LEVELS
    judged: NDArray[np.int64] = field(default_factory=_rows)
    step_values: NDArray[np.int8] = field(default_factory=lambda: np.empty((0, 0), np.int8))
    shown: NDArray[np.int64] = field(default_factory=_rows)
    own: NDArray[np.int64] = field(default_factory=_rows)

    def __post_init__(self) -> None:
        if self.observations.shape[:2] != self.actions.shape[:2]:
            shapes = f"{self.observations.shape} and {self.actions.shape}"
            raise ValueError(f"observations and actions must start with the same (S, L), not {shapes}")
        for rows in (self.rated, self.judged, self.shown, self.own):
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.observations):
                raise ValueError(f"rated, judged, shown and own must be rows of {len(self.observations)} segments")
        if self.rated.shape != self.levels.shape:
            raise ValueError(f"rated and levels must have one shape, not {self.rated.shape} and {self.levels.shape}")
        if not ((self.levels >= 0) & (self.levels < self.num_levels)).all():
            raise ValueError(f"levels must be from 0 to {self.num_levels - 1}")
        shape = (len(self.judged), self.observations.shape[1])
        if len(self.judged) and self.step_values.shape != shape:
            raise ValueError(f"step_values must have shape {shape}, not {self.step_values.shape}")
        if not np.isin(self.step_values, STEP_VALUES).all():
            raise ValueError(f"step_values must be one of {STEP_VALUES}")
        if len(self.shown) and not len(self.own):
            raise ValueError("demonstrations need segments of the learner, which they are preferred to")

    def __len__(self) -> int:
        """Counts the answers of all kinds."""
        return len(self.rated) + len(self.judged) + len(self.shown)
