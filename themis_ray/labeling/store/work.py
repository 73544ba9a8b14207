"""Who is asked what, and what they say. Every call is one transaction, so that counts are exact whatever happens.

`places` counts, `assigning` leases, `answering` takes answers and takes them back, `collecting` reads them.

On Postgres many transactions go on at once. Whoever picks or frees places passes over rows that others hold, and an
answer takes its number last of all, so that hardly anybody waits for anybody; `repeated` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select

from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.store.answering import (
    check_answer,
    find_assignment,
    insert_answer,
    is_known,
    keep_lease,
    last_answer,
    take_answer,
    take_back,
)
from themis_ray.labeling.store.assigning import Assigner, Desk
from themis_ray.labeling.store.collecting import Answers, read_answers
from themis_ray.labeling.store.errors import ConflictError, NotFoundError
from themis_ray.labeling.store.people import Annotator, lock_annotator
from themis_ray.labeling.store.studies import read_study
from themis_ray.wire import NewAnswer

__all__ = ["Receipt", "Work"]


@dataclass(frozen=True)
class Receipt:
    """An answer is stored."""

    is_duplicate: bool
    desk: Desk
    feedback: str


class Work:
    """Assignments and answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._assigner = Assigner()

    @repeated
    def desk(self, annotator_id: str, count: int) -> Desk:
        """Leases queries until the person holds `count`, and returns them.

        Raises:
            NotFoundError: There is no such annotator.
        """
        with self._database.write() as connection:
            return self._assigner.fill(connection, lock_annotator(connection, annotator_id), count)

    @repeated
    def keep(self, annotator_id: str, assignment_id: str) -> Annotator:
        """Keeps an assignment that takes its time on a person's desk, and returns the person.

        Raises:
            NotFoundError: There is no such annotator, or the assignment is not theirs.
            LateError: The lease had run out, and its place is taken.
            ConflictError: It is not the time for answers, or the assignment is answered.
        """
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            keep_lease(connection, annotator, find_assignment(connection, annotator, assignment_id))
            return annotator

    @repeated
    def answer(self, annotator_id: str, new: NewAnswer) -> Receipt:
        """Stores an answer and returns what comes next. The same answer id again stores nothing.

        Raises:
            NotFoundError: There is no such annotator, or the assignment is not theirs.
            LateError: The lease had run out, and its place is taken.
            ConflictError: The assignment is answered, somebody else's answer has this id, or the study has ended.
            WrongError: The answer is not of the kind that was asked for.
            TooManyError: Nobody answers so fast.
        """
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            if is_known(connection, annotator_id, new.answer_id):
                return Receipt(True, self._assigner.fill(connection, annotator, new.count), "")
            if annotator.study.config.max_answers is not None:  # one after another, or there are more than that
                self._database.lock_answers(connection, annotator.study.id)
                annotator = replace(annotator, study=read_study(connection, annotator.study.id))
            row = find_assignment(connection, annotator, new.assignment_id)
            check_answer(row, new, annotator.study.config.min_watched_s)
            annotator, feedback = take_answer(connection, annotator, row, new)
            desk = self._assigner.fill(connection, annotator, new.count, is_changed=True, num_pending=1)
            self._database.lock_answers(connection, annotator.study.id)
            insert_answer(connection, row, new, annotator.overlay)
            return Receipt(False, desk, feedback)

    @repeated
    def undo(self, annotator_id: str, answer_id: str, count: int) -> Desk:
        """Takes back a person's last answer, whose query is first on the desk again. Twice is as once.

        Raises:
            NotFoundError: The person gave no such answer.
            ConflictError: It is not their last one, they are done, or the study has ended.
        """
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            answer = connection.execute(
                select(tables.answer).where(
                    tables.answer.c.id == answer_id, tables.answer.c.annotator_id == annotator_id
                )
            ).one_or_none()
            if answer is None:
                raise NotFoundError("there is no such answer of yours.")
            if annotator.stage not in ("practice", "work", "after"):
                raise ConflictError(f"answers cannot be taken back in stage {annotator.stage}.")
            if answer.is_undone:
                return self._assigner.fill(connection, annotator, count)
            annotator = take_back(connection, annotator, answer)
            return self._assigner.fill(connection, annotator, count, is_changed=True)

    def last_answer(self, annotator_id: str) -> str | None:
        """Returns the id of the answer that could be taken back; None where there is none."""
        with self._database.read() as connection:
            return last_answer(connection, annotator_id)

    def answers(self, study_id: str, *, after: int = 0, limit: int = 1000, query_id: str | None = None) -> Answers:
        """Returns answers with numbers above `after`, undone ones too.

        Raises:
            NotFoundError: There is no such study.
        """
        with self._database.read() as connection:
            return read_answers(connection, study_id, after=after, limit=limit, query_id=query_id)
