"""Queries that wait for answers, and answers that no longer count."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

__all__ = ["AskedQuery", "Withdrawal", "WithdrawalReason"]

WithdrawalReason = Literal["undone", "withdrawn"]


@dataclass(frozen=True)
class AskedQuery:
    """One query that was put to people, who answer when they come to it.

    Attributes:
        query_id: Id of the ordered pair.
        left_id: Id of the left segment.
        right_id: Id of the right segment.
        teacher: Who is asked.
        feedback_session: Number of the feedback session, from 0.
        num_env_steps: Env steps the learner had done by then.
        reward_version: How often the reward ensemble had been fitted by then.
        asked_at: When, in UTC.

    Raises:
        ValueError: An id or the teacher is empty, both sides are the same segment, a count is negative, or the time is
            not in UTC.
    """

    query_id: str
    left_id: str
    right_id: str
    teacher: str
    feedback_session: int
    num_env_steps: int
    reward_version: int
    asked_at: datetime

    def __post_init__(self) -> None:
        _check_texts(self, "query_id", "left_id", "right_id", "teacher")
        if self.left_id == self.right_id:
            raise ValueError(f"a query needs two different segments, not {self.left_id} twice")
        for name in ("feedback_session", "num_env_steps", "reward_version"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        _check_time(self, "asked_at")


@dataclass(frozen=True)
class Withdrawal:
    """The tombstone of one answer: it stays on disk and is no longer part of the dataset.

    Attributes:
        answer_id: Which answer.
        teacher: Who gave it.
        reason: undone, when the person took this answer back; withdrawn, when the person left the study.
        withdrawn_at: When the run learned of it, in UTC.

    Raises:
        ValueError: An id is empty, there is no such reason, or the time is not in UTC.
    """

    answer_id: str
    teacher: str
    reason: WithdrawalReason
    withdrawn_at: datetime

    def __post_init__(self) -> None:
        _check_texts(self, "answer_id", "teacher")
        if self.reason not in ("undone", "withdrawn"):
            raise ValueError(f"reason must be undone or withdrawn, not {self.reason!r}")
        _check_time(self, "withdrawn_at")


def _check_texts(row: AskedQuery | Withdrawal, *names: str) -> None:
    for name in names:
        if not getattr(row, name):
            raise ValueError(f"{name} must not be empty")


def _check_time(row: AskedQuery | Withdrawal, name: str) -> None:
    if getattr(row, name).utcoffset() != timedelta(0):
        raise ValueError(f"{name} must be a time in UTC, not {getattr(row, name)!r}")
