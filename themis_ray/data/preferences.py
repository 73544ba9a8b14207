"""What a teacher says: choices, what they mean as training targets, and preferences."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

MAX_LABEL_MARGIN = 0.5


class Choice(StrEnum):
    """The four answers to a query, in the words that are stored and sent."""

    LEFT = "left"
    RIGHT = "right"
    EQUAL = "equal"
    SKIP = "skip"


def left_probability(choice: Choice, label_margin: float = 0.0) -> float | None:
    """Returns the label of a choice, p(left preferred). The only place that encodes one.

    left -> 1 - margin, right -> margin, equal -> 0.5, skip -> None (no label).

    Args:
        choice: What the teacher chose.
        label_margin: How far the labels stay away from 1 and 0; label smoothing, as a
            defence against wrong answers.

    Raises:
        ValueError: The margin is outside [0, 0.5), or `choice` is no choice.
    """
    if not 0.0 <= label_margin < MAX_LABEL_MARGIN:
        raise ValueError(f"label_margin must be at least 0 and below {MAX_LABEL_MARGIN}, not {label_margin}")
    match Choice(choice):
        case Choice.LEFT:
            return 1.0 - label_margin
        case Choice.RIGHT:
            return label_margin
        case Choice.EQUAL:
            return 0.5
        case Choice.SKIP:
            return None


def mirrored(choice: Choice) -> Choice:
    """Returns what a choice about (left, right) says about (right, left)."""
    return {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}.get(choice, choice)


@dataclass(frozen=True)
class Preference:
    """One answered query: what was asked, what was chosen, by whom and when.

    Attributes:
        query_id: Id of the ordered pair.
        left_id: Id of the left segment.
        right_id: Id of the right segment.
        choice: What the teacher chose.
        teacher: Name of the teacher, or the pseudonymous id of an annotator.
        feedback_session: Number of the feedback session, from 0.
        num_env_steps: Env steps the learner had done when the query was asked.
        asked_at: When the query was asked, in UTC.
        answered_at: When it was answered, in UTC.
        answer_id: Id of the answer of a person, by which it is stored once and can be withdrawn; empty for programs.

    Raises:
        ValueError: An id or the teacher is empty, both sides are the same segment, a count
            is negative, a time is not in UTC, or the answer came before the question.
    """

    query_id: str
    left_id: str
    right_id: str
    choice: Choice
    teacher: str
    feedback_session: int
    num_env_steps: int
    asked_at: datetime
    answered_at: datetime
    answer_id: str = ""

    def __post_init__(self) -> None:
        check_answer(self, "query_id", "left_id", "right_id")
        if self.left_id == self.right_id:
            raise ValueError(f"a preference needs two different segments, not {self.left_id} twice")
        # A plain "left" from a file or a form becomes the enum's member.
        object.__setattr__(self, "choice", Choice(self.choice))


class Answer(Protocol):
    """What every kind of answer says about who gave it and when."""

    @property
    def teacher(self) -> str:
        """Name of the teacher, or the pseudonymous id of an annotator."""

    @property
    def feedback_session(self) -> int:
        """Number of the feedback session, from 0."""

    @property
    def num_env_steps(self) -> int:
        """Env steps the learner had done when the question was asked."""

    @property
    def asked_at(self) -> datetime:
        """When the question was asked, in UTC."""

    @property
    def answered_at(self) -> datetime:
        """When it was answered, in UTC."""


def check_answer(answer: Answer, *ids: str) -> None:
    """Checks what all kinds of answers have in common.

    Args:
        answer: The answer.
        *ids: Names of its attributes that are ids.

    Raises:
        ValueError: An id or the teacher is empty, a count is negative, a time is not in UTC, or the answer came
            before the question.
    """
    for name in (*ids, "teacher"):
        if not getattr(answer, name):
            raise ValueError(f"{name} must not be empty")
    for name in ("feedback_session", "num_env_steps"):
        if getattr(answer, name) < 0:
            raise ValueError(f"{name} must be at least 0, not {getattr(answer, name)}")
    for name in ("asked_at", "answered_at"):
        if getattr(answer, name).utcoffset() != timedelta(0):
            raise ValueError(f"{name} must be a time in UTC, not {getattr(answer, name)!r}")
    if answer.answered_at < answer.asked_at:
        raise ValueError(f"answered_at ({answer.answered_at}) must not be before asked_at ({answer.asked_at})")
