"""Who is asked what, and what they say. Every call is one transaction, so that counts are exact whatever happens.

Places of a query are counted in `num_taken`: answers that count and leases that have not run out. A lease is made only
where a place is free, so that an overlap is never exceeded. Planned repeats take no place, nor do gold and practice
queries have a number of places. A person whose leases ran out gets the same queries back, as long as there is place.

On Postgres many transactions go on at once. Whoever picks or frees places passes over rows that others hold, and an
answer takes its number last of all, so that hardly anybody waits for anybody; `repeated` does the rest.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Integer, and_, bindparam, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from themis_ray.data import Choice, mirrored
from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.store.draws import draw
from themis_ray.labeling.store.errors import (
    ConflictError,
    LateError,
    NotFoundError,
    TooManyError,
    WrongError,
)
from themis_ray.labeling.store.people import Annotator, lock_annotator, release_desk, stage_after
from themis_ray.labeling.store.studies import Status, read_study
from themis_ray.wire import FeedbackKind, NewAnswer, Progress, Stage, StoredAnswer

__all__ = ["Answers", "Assignment", "Clip", "Desk", "Receipt", "Work"]

MIN_ANSWERS_BEFORE_REPEAT = 5
MAX_ANSWERS_PER_MINUTE = 240
MAX_EXPIRED_AT_ONCE = 200
EXPIRY_INTERVAL_S = 1.0
MAX_SEED = 2**63 - 1
ID_IS_TAKEN = "this answer_id is taken. Make a new UUID for every answer."
NUM_TRIES = 8  # of a pick that others may take at the same moment, on Postgres
_COPIED = ("rating", "reset_seed", "response_ms", "watched_ms", "num_replays", "speed", "overlay_ms")

# Building a statement takes longer than running it, so those of every answer are built once.
_QUERY, _ASSIGNMENT, _ANSWER, _PERSON = (
    table.c for table in (tables.query, tables.assignment, tables.answer, tables.annotator)
)
_SIDES = tuple(column for column in _QUERY if column.name.startswith(("left_", "right_")))
_ON_QUERY = and_(_QUERY.study_id == _ASSIGNMENT.study_id, _QUERY.id == _ASSIGNMENT.query_id)

_FIND_KNOWN = select(
    select(_ANSWER.annotator_id).where(_ANSWER.id == bindparam("answer_id")).scalar_subquery().label("known"),
    select(func.count())
    .where(_ANSWER.annotator_id == bindparam("annotator_id"), _ANSWER.answered_at > bindparam("since"))
    .scalar_subquery()
    .label("num_recent"),
)
_FIND_ASSIGNMENT = (
    select(
        *(
            _ASSIGNMENT[name]
            for name in (
                *("id", "study_id", "query_id", "annotator_id", "repeat", "is_flipped", "state", "leased_until"),
                "number",
            )
        ),
        _QUERY.kind,
        _QUERY.feedback,
        _QUERY.gold_choice,
        _QUERY.left_num_frames,
    )
    .join(tables.query, _ON_QUERY)
    .where(_ASSIGNMENT.id == bindparam("assignment_id"), _ASSIGNMENT.annotator_id == bindparam("annotator_id"))
    .with_for_update(of=tables.assignment)  # or somebody who frees places takes the lease away meanwhile
)
_HELD = (
    select(
        *(_ASSIGNMENT[name] for name in ("id", "query_id", "is_flipped", "leased_until")),
        *_SIDES,
        _QUERY.kind,
        _QUERY.feedback,
    )
    .join(tables.query, _ON_QUERY)
    .where(_ASSIGNMENT.annotator_id == bindparam("annotator_id"), _ASSIGNMENT.state == "leased")
    .order_by(_ASSIGNMENT.number)
)
_SET_STATE = (
    update(tables.assignment)
    .where(_ASSIGNMENT.id == bindparam("key"))
    .values(state=bindparam("new_state"), leased_until=func.coalesce(bindparam("new_lease"), _ASSIGNMENT.leased_until))
)
_COUNT_ANSWERS = (
    update(tables.query)
    .where(_QUERY.study_id == bindparam("in_study"), _QUERY.id == bindparam("key"))
    .values(num_answers=_QUERY.num_answers + bindparam("change"))
)
_FREE_PLACE = (
    update(tables.query)
    .where(_QUERY.study_id == bindparam("in_study"), _QUERY.id == bindparam("key"))
    .values(num_taken=_QUERY.num_taken - 1)
)
_TAKE_ANY_PLACE = (
    update(tables.query)
    .where(_QUERY.study_id == bindparam("in_study"), _QUERY.id == bindparam("key"))
    .values(num_taken=_QUERY.num_taken + 1)
)
_TAKE_FREE_PLACE = _TAKE_ANY_PLACE.where(_QUERY.num_taken < _QUERY.overlap)
_SET_PERSON = (
    update(tables.annotator)
    .where(_PERSON.id == bindparam("key"))
    .values(
        stage=bindparam("new_stage"),
        num_answered=bindparam("new_answered"),
        num_assigned=bindparam("new_assigned"),
        completion_code=bindparam("new_code"),
        seen_at=bindparam("now"),
    )
)
_EXPIRED = (
    select(*(_ASSIGNMENT[name] for name in ("id", "study_id", "query_id", "repeat")))
    .join(tables.query, _ON_QUERY)
    .where(
        _ASSIGNMENT.study_id == bindparam("in_study"),
        _ASSIGNMENT.state == "leased",
        _ASSIGNMENT.leased_until < bindparam("now"),
    )
    .order_by(_ASSIGNMENT.query_id)
    .limit(MAX_EXPIRED_AT_ONCE)
    .with_for_update(skip_locked=True, key_share=True, of=(tables.assignment, tables.query))
)
# Leases of one's own that ran out, whose places are free. Practice has no places, so its queries are not locked.
_RENEWABLE = (
    select(_ASSIGNMENT.id, _ASSIGNMENT.study_id, _ASSIGNMENT.query_id, _ASSIGNMENT.repeat)
    .join(tables.query, _ON_QUERY)
    .where(_ASSIGNMENT.annotator_id == bindparam("annotator_id"), _ASSIGNMENT.state == "expired")
    .order_by(_ASSIGNMENT.number)
    .limit(bindparam("wanted", type_=Integer))
)
_RENEW = {
    "practice": _RENEWABLE.where(_QUERY.kind == "practice").with_for_update(of=tables.assignment),
    "work": _RENEWABLE.where(
        _QUERY.kind != "practice",
        or_(_ASSIGNMENT.repeat == 1, _QUERY.kind == "gold", _QUERY.num_taken < _QUERY.overlap),
    ).with_for_update(skip_locked=True, key_share=True, of=(tables.assignment, tables.query)),
}
_FIRST_OPEN = select(func.min(_ASSIGNMENT.number)).where(
    _ASSIGNMENT.annotator_id == bindparam("annotator_id"), _ASSIGNMENT.state.in_(("leased", "expired"))
)
_OPEN_PRACTICE = (
    select(_ASSIGNMENT.id)
    .join(tables.query, _ON_QUERY)
    .where(
        _ASSIGNMENT.annotator_id == bindparam("annotator_id"),
        _ASSIGNMENT.state.in_(("leased", "expired")),
        _QUERY.kind == "practice",
    )
    .limit(1)
)
_NUM_PRACTISED = (
    select(func.count())
    .select_from(tables.assignment)
    .join(tables.query, _ON_QUERY)
    .where(
        _ASSIGNMENT.annotator_id == bindparam("annotator_id"),
        _ASSIGNMENT.state == "answered",
        _QUERY.kind == "practice",
    )
)
_UNSEEN = (
    select(_QUERY.id, *_SIDES, _QUERY.kind, _QUERY.feedback)
    .where(
        _QUERY.study_id == bindparam("in_study"),
        _QUERY.kind == bindparam("of_kind"),
        ~exists().where(
            _ASSIGNMENT.annotator_id == bindparam("annotator_id"),
            _ASSIGNMENT.query_id == _QUERY.id,
            _ASSIGNMENT.repeat == 0,
        ),
    )
    .limit(1)
)
_AGAIN, _RECENT = tables.assignment.alias(), tables.answer.alias()
_FIRST_RECENT = (  # number of the first of the person's last answers
    select(_RECENT.c.number)
    .where(_RECENT.c.annotator_id == bindparam("annotator_id"), _RECENT.c.is_undone.is_(False))
    .order_by(_RECENT.c.number.desc())
    .offset(bindparam("num_after", type_=Integer))
    .limit(1)
)
_REPEATABLE = (
    select(_ASSIGNMENT.is_flipped.label("was_flipped"), _QUERY.id, *_SIDES, _QUERY.kind, _QUERY.feedback)
    .join(tables.query, _ON_QUERY)
    .join(tables.answer, and_(_ANSWER.assignment_id == _ASSIGNMENT.id, _ANSWER.is_undone.is_(False)))
    .where(
        _ASSIGNMENT.annotator_id == bindparam("annotator_id"),
        _ASSIGNMENT.state == "answered",
        _ASSIGNMENT.repeat == 0,
        _ANSWER.number < _FIRST_RECENT.scalar_subquery(),
        or_(_QUERY.kind == "ordinary", _QUERY.kind == "gold"),
        ~exists().where(
            _AGAIN.c.annotator_id == _ASSIGNMENT.annotator_id,
            _AGAIN.c.query_id == _ASSIGNMENT.query_id,
            _AGAIN.c.repeat == 1,
        ),
    )
    .order_by(_ASSIGNMENT.number)
)
# The one to take next of each kind. Practice comes in the order in which it was added.
_NEXT = {
    "ordinary": _UNSEEN.where(_QUERY.num_taken < _QUERY.overlap)
    .order_by(_QUERY.num_taken, _QUERY.place)
    .with_for_update(skip_locked=True, key_share=True),
    "gold": _UNSEEN.order_by(_QUERY.place),
    "practice": _UNSEEN.order_by(_QUERY.created_at, _QUERY.place),
}
_TOTAL = select(func.sum(_QUERY.num_answers)).where(_QUERY.study_id == bindparam("in_study"), _QUERY.kind != "practice")
_INSERT_ANSWER, _INSERT_ASSIGNMENT = insert(tables.answer), insert(tables.assignment)


@dataclass(frozen=True)
class Clip:
    """One side of a query."""

    segment_id: str
    name: str
    num_frames: int
    clip_fps: float


@dataclass(frozen=True)
class Assignment:
    """A query on somebody's desk; left and right are sides of the screen."""

    id: str
    query_id: str
    feedback: FeedbackKind
    left: Clip
    right: Clip | None
    is_practice: bool
    leased_until: datetime


@dataclass(frozen=True)
class Desk:
    """What an annotator has to do now."""

    annotator: Annotator
    assignments: tuple[Assignment, ...]
    progress: Progress
    is_waiting: bool

    @property
    def stage(self) -> Stage:
        """Where the annotator is."""
        return self.annotator.stage


@dataclass(frozen=True)
class Receipt:
    """An answer is stored."""

    is_duplicate: bool
    desk: Desk
    feedback: str


@dataclass(frozen=True)
class Answers:
    """Answers in the order in which they arrived."""

    answers: tuple[StoredAnswer, ...]
    withdrawn: tuple[str, ...]
    undone: tuple[str, ...]
    cursor: int
    num_waiting: int
    status: Status


class Work:
    """Assignments and answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next_expiry: dict[str, float] = {}

    @repeated
    def desk(self, annotator_id: str, count: int) -> Desk:
        """Leases queries until the person holds `count`, and returns them.

        Raises:
            NotFoundError: There is no such annotator.
        """
        with self._database.write() as connection:
            return self._fill(connection, lock_annotator(connection, annotator_id), count)

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
            about = connection.execute(
                _FIND_KNOWN, {"answer_id": new.answer_id, "annotator_id": annotator_id, "since": time.time() - 60.0}
            ).one()
            if about.known is not None:
                if about.known != annotator_id:
                    raise ConflictError(ID_IS_TAKEN)
                return Receipt(True, self._fill(connection, annotator, new.count), "")
            if about.num_recent >= MAX_ANSWERS_PER_MINUTE:
                raise TooManyError(f"more than {MAX_ANSWERS_PER_MINUTE} answers in a minute. Wait a little and go on.")
            if annotator.study.config.max_answers is not None:  # one after another, or there are more than that
                self._database.lock_answers(connection, annotator.study.id)
                annotator = replace(annotator, study=read_study(connection, annotator.study.id))
            row = self._find(connection, annotator, new.assignment_id)
            _check_kind(row, new)
            min_watched_s = annotator.study.config.min_watched_s
            if new.watched_ms < 1000.0 * min_watched_s:
                raise WrongError(f"watch the clips for {min_watched_s:g} s before you answer.")
            annotator, feedback = self._take(connection, annotator, row, new)
            desk = self._fill(connection, annotator, new.count, is_changed=True, num_pending=1)
            self._database.lock_answers(connection, annotator.study.id)
            _insert_answer(connection, row, new)
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
                select(tables.answer).where(_ANSWER.id == answer_id, _ANSWER.annotator_id == annotator_id)
            ).one_or_none()
            if answer is None:
                raise NotFoundError("there is no such answer of yours.")
            if annotator.stage not in ("practice", "work", "after"):
                raise ConflictError(f"answers cannot be taken back in stage {annotator.stage}.")
            if answer.is_undone:
                return self._fill(connection, annotator, count)
            if answer_id != _last_answer(connection, annotator_id):
                raise ConflictError("only the last answer can be taken back.")
            if annotator.study.status == "stopped":
                raise ConflictError("the study has ended. Thank you.")
            row = self._find(connection, annotator, answer.assignment_id)
            first = connection.execute(_FIRST_OPEN, {"annotator_id": annotator_id}).scalar_one()
            if first is not None and first < row.number:
                connection.execute(update(tables.assignment).where(_ASSIGNMENT.id == row.id).values(number=first - 1))
            lease = time.time() + annotator.study.config.lease_s
            connection.execute(update(tables.answer).where(_ANSWER.id == answer_id).values(is_undone=True))
            connection.execute(_SET_STATE, {"key": row.id, "new_state": "leased", "new_lease": lease})
            self._count(connection, row, -1)
            is_practice = row.kind == "practice"
            annotator = replace(
                annotator,
                stage="practice" if is_practice else "work",
                num_answered=annotator.num_answered - (0 if is_practice else 1),
            )
            return self._fill(connection, annotator, count, is_changed=True)

    def last_answer(self, annotator_id: str) -> str | None:
        """Returns the id of the answer that could be taken back; None where there is none."""
        with self._database.read() as connection:
            return _last_answer(connection, annotator_id)

    def answers(self, study_id: str, *, after: int = 0, limit: int = 1000, query_id: str | None = None) -> Answers:
        """Returns answers with numbers above `after`, undone ones too.

        Raises:
            NotFoundError: There is no such study.
        """
        answer, query = tables.answer.c, tables.query.c
        chosen = (
            select(
                tables.answer,
                query.kind,
                query.feedback,
                tables.annotator.c.arm,
                tables.assignment.c.is_flipped,
                tables.assignment.c.repeat,
                tables.assignment.c.created_at.label("assigned_at"),
            )
            .join(tables.query, and_(query.study_id == answer.study_id, query.id == answer.query_id))
            .join(tables.assignment, tables.assignment.c.id == answer.assignment_id)
            .join(tables.annotator, tables.annotator.c.id == answer.annotator_id)
            .where(answer.study_id == study_id, answer.number > after)
            .order_by(answer.number)
            .limit(limit)
        )
        if query_id is not None:
            chosen = chosen.where(answer.query_id == query_id)
        with self._database.read() as connection:
            study = read_study(connection, study_id)
            rows = connection.execute(chosen).all()
            withdrawn = connection.execute(
                select(tables.tombstone.c.annotator_id).where(tables.tombstone.c.study_id == study_id)
            ).scalars()
            undone = connection.execute(
                select(answer.id).where(answer.study_id == study_id, answer.is_undone.is_(True))
            ).scalars()
            num_waiting = connection.execute(
                select(func.coalesce(func.sum(query.overlap - query.num_answers), 0)).where(
                    query.study_id == study_id, query.kind == "ordinary", query.overlap > query.num_answers
                )
            ).scalar_one()
            return Answers(
                answers=tuple(_stored(row) for row in rows),
                withdrawn=tuple(withdrawn),
                undone=tuple(undone),
                cursor=rows[-1].number if rows else after,
                num_waiting=int(num_waiting),
                status=study.status,
            )

    # ---------------------------------------------------------------- answering

    def _find(self, connection: Connection, annotator: Annotator, assignment_id: str) -> Any:
        """Returns an assignment of this person beside its query."""
        row = connection.execute(
            _FIND_ASSIGNMENT, {"assignment_id": assignment_id, "annotator_id": annotator.id}
        ).one_or_none()
        if row is None:
            raise NotFoundError("there is no such assignment of yours.")
        return row

    def _take(self, connection: Connection, annotator: Annotator, row: Any, new: NewAnswer) -> tuple[Annotator, str]:
        """Counts an answer; returns the annotator as they are then, and what practice says about it."""
        if annotator.stage not in ("practice", "work"):
            raise ConflictError(f"stage {annotator.stage} takes no answers.")
        if annotator.study.status == "stopped":
            raise ConflictError("the study has ended. Thank you.")
        if row.state == "answered":
            raise ConflictError("this assignment is answered. Undo the answer to give another.")
        if row.state == "expired":
            self._take_place_again(connection, row)
        connection.execute(_SET_STATE, {"key": row.id, "new_state": "answered", "new_lease": None})
        self._count(connection, row, 1)
        is_practice = row.kind == "practice"
        if not is_practice:
            annotator = replace(annotator, num_answered=annotator.num_answered + 1)
        annotator = self._go_on(connection, annotator, is_practice=is_practice)
        if is_practice and row.gold_choice is not None:
            return annotator, _practice_feedback(row, new)
        return annotator, ""

    def _go_on(self, connection: Connection, annotator: Annotator, *, is_practice: bool) -> Annotator:
        """Returns the annotator in the stage that follows an answer, and stops a study that has enough."""
        config = annotator.study.config
        if is_practice:
            num_practised = connection.execute(_NUM_PRACTISED, {"annotator_id": annotator.id}).scalar_one()
            return replace(annotator, stage="work") if num_practised >= config.num_practice else annotator
        if config.max_answers is not None:
            total = connection.execute(_TOTAL, {"in_study": annotator.study.id}).scalar_one()
            if total >= config.max_answers:
                connection.execute(
                    update(tables.study)
                    .where(tables.study.c.id == annotator.study.id)
                    .values(status="stopped", stopped_at=time.time())
                )
                annotator = replace(annotator, study=read_study(connection, annotator.study.id))
        return _leave_work(annotator) if annotator.num_answered >= config.queries_per_annotator else annotator

    def _take_place_again(self, connection: Connection, row: Any) -> None:
        """Lets an answer in whose lease had run out, if nobody has the place."""
        if row.repeat:
            return
        statement = _TAKE_FREE_PLACE if row.kind == "ordinary" else _TAKE_ANY_PLACE
        if connection.execute(statement, {"in_study": row.study_id, "key": row.query_id}).rowcount == 0:
            raise LateError("the time for this query was over and somebody else has answered it. Go on with the next.")

    def _count(self, connection: Connection, row: Any, change: int) -> None:
        if row.repeat == 0:
            connection.execute(_COUNT_ANSWERS, {"in_study": row.study_id, "key": row.query_id, "change": change})

    # ---------------------------------------------------------------- assigning

    def _fill(
        self,
        connection: Connection,
        annotator: Annotator,
        count: int,
        *,
        is_changed: bool = False,
        num_pending: int = 0,
    ) -> Desk:
        """Leases until `count` queries are held, stores the annotator if it has changed, and returns the desk.

        Args:
            connection: The caller's transaction.
            annotator: Locked by it.
            count: How many to hold in all.
            is_changed: Whether the annotator differs from what is stored.
            num_pending: Answers of this person that the transaction is still to insert.
        """
        study, was_stage = annotator.study, annotator.stage
        if annotator.stage == "practice" and self._has_no_practice(connection, annotator):
            annotator = replace(annotator, stage="work")
        if annotator.stage in ("practice", "work") and study.status == "stopped":
            annotator = _leave_work(annotator)
        held: list[Assignment] = []
        if annotator.stage in ("practice", "work"):
            wanted = self._num_wanted(connection, annotator, count)
            held = self._held(connection, annotator, wanted)
            while len(held) < wanted and study.status == "running":
                new = self._lease_next(connection, annotator, num_pending)
                if new is None:
                    break
                held.append(new)
                annotator, is_changed = replace(annotator, num_assigned=annotator.num_assigned + 1), True
        elif is_changed or annotator.stage != was_stage:
            release_desk(connection, annotator.id)
        if is_changed or annotator.stage != was_stage:
            _save(connection, annotator)
        return Desk(
            annotator=annotator,
            assignments=tuple(held),
            progress=Progress(num_answered=annotator.num_answered, num_total=study.config.queries_per_annotator),
            is_waiting=annotator.stage in ("practice", "work") and not held and count > 0,
        )

    def _has_no_practice(self, connection: Connection, annotator: Annotator) -> bool:
        """Whether a study has fewer practice queries than it promises, and this person answered them all."""
        values = {"in_study": annotator.study.id, "annotator_id": annotator.id, "of_kind": "practice"}
        if connection.execute(_NEXT["practice"], values).first() is not None:
            return False
        return connection.execute(_OPEN_PRACTICE, {"annotator_id": annotator.id}).first() is None

    def _num_wanted(self, connection: Connection, annotator: Annotator, count: int) -> int:
        """Returns how many queries a person may hold: not more than the stage still asks of them."""
        config = annotator.study.config
        if annotator.stage == "work":
            return min(count, config.queries_per_annotator - annotator.num_answered)
        num_practised = connection.execute(_NUM_PRACTISED, {"annotator_id": annotator.id}).scalar_one()
        return min(count, config.num_practice - int(num_practised))

    def _held(self, connection: Connection, annotator: Annotator, wanted: int) -> list[Assignment]:
        """Returns what a person holds, in order; leases of theirs that ran out are renewed up to `wanted`."""
        self._expire(connection, annotator.study.id)
        person = {"annotator_id": annotator.id}
        rows = connection.execute(_HELD, person).all()
        if len(rows) < wanted and annotator.study.status == "running":
            renewable = connection.execute(_RENEW[annotator.stage], {**person, "wanted": wanted - len(rows)}).all()
            lease = time.time() + annotator.study.config.lease_s
            for row in renewable:
                connection.execute(_SET_STATE, {"key": row.id, "new_state": "leased", "new_lease": lease})
                if row.repeat == 0:
                    connection.execute(_TAKE_ANY_PLACE, {"in_study": row.study_id, "key": row.query_id})
            if renewable:
                rows = connection.execute(_HELD, person).all()
        return [_assignment(row, row.query_id, row.id, row.is_flipped, row.leased_until) for row in rows]

    def _expire(self, connection: Connection, study_id: str, *, is_urgent: bool = False) -> bool:
        """Frees the places of leases that ran out, once a second; tells whether there were any."""
        now = time.time()
        if not is_urgent and now < self._next_expiry.get(study_id, 0.0):
            return False
        self._next_expiry[study_id] = now + EXPIRY_INTERVAL_S
        rows = connection.execute(_EXPIRED, {"in_study": study_id, "now": now}).all()
        for row in rows:
            connection.execute(_SET_STATE, {"key": row.id, "new_state": "expired", "new_lease": None})
            if row.repeat == 0:
                connection.execute(_FREE_PLACE, {"in_study": row.study_id, "key": row.query_id})
        return bool(rows)

    def _lease_next(self, connection: Connection, annotator: Annotator, num_pending: int) -> Assignment | None:
        """Leases one more query to a person; None where there is none for them."""
        picked = self._pick(connection, annotator, num_pending)
        if picked is None and self._expire(connection, annotator.study.id, is_urgent=True):
            picked = self._pick(connection, annotator, num_pending)
        if picked is None:
            return None
        row, repeat, is_flipped = picked
        now, assignment_id = time.time(), secrets.token_hex(12)
        leased_until = now + annotator.study.config.lease_s
        connection.execute(
            _INSERT_ASSIGNMENT,
            {
                "id": assignment_id,
                "study_id": annotator.study.id,
                "query_id": row.id,
                "annotator_id": annotator.id,
                "repeat": repeat,
                "is_flipped": is_flipped,
                "number": annotator.num_assigned,
                "state": "leased",
                "created_at": now,
                "leased_until": leased_until,
            },
        )
        return _assignment(row, row.id, assignment_id, is_flipped, leased_until)

    def _pick(self, connection: Connection, annotator: Annotator, num_pending: int) -> tuple[Any, int, bool] | None:
        """Returns (query, which repeat, whether flipped), its place taken; None where nothing is left."""
        if annotator.stage == "practice":
            return self._pick_unseen(connection, annotator, "practice")
        config = annotator.study.config
        chance = draw(annotator.id, "kind", annotator.num_assigned)
        picked = None
        if chance < config.gold_share:
            picked = self._pick_unseen(connection, annotator, "gold")
        elif chance < config.gold_share + config.repeat_share:
            picked = self._pick_repeat(connection, annotator, num_pending)
        return picked or self._pick_unseen(connection, annotator, "ordinary")

    def _pick_unseen(self, connection: Connection, annotator: Annotator, kind: str) -> tuple[Any, int, bool] | None:
        """Takes a place of the least-taken query of a kind that this person never had."""
        study = annotator.study
        values = {"in_study": study.id, "annotator_id": annotator.id, "of_kind": kind}
        take = _TAKE_FREE_PLACE if kind == "ordinary" else _TAKE_ANY_PLACE
        for _ in range(NUM_TRIES):
            row = connection.execute(_NEXT[kind], values).one_or_none()
            if row is None:
                return None
            if connection.execute(take, {"in_study": study.id, "key": row.id}).rowcount == 1:
                is_flipped = study.config.feedback == "pairwise" and draw(annotator.id, row.id, "side") < 0.5
                return row, 0, is_flipped
        return None

    def _pick_repeat(
        self, connection: Connection, annotator: Annotator, num_pending: int
    ) -> tuple[Any, int, bool] | None:
        """Returns one of the person's own older answers that was not repeated yet, sides swapped."""
        num_after = MIN_ANSWERS_BEFORE_REPEAT - 1 - num_pending
        rows = connection.execute(_REPEATABLE, {"annotator_id": annotator.id, "num_after": num_after}).all()
        if not rows:
            return None
        row = rows[int(draw(annotator.id, "repeat", annotator.num_assigned) * len(rows))]
        return row, 1, not row.was_flipped


def _insert_answer(connection: Connection, row: Any, new: NewAnswer) -> None:
    values = {
        "id": new.answer_id,
        "assignment_id": row.id,
        "study_id": row.study_id,
        "query_id": row.query_id,
        "annotator_id": row.annotator_id,
        "choice": None if new.choice is None else _in_order_of_query(new.choice, is_flipped=row.is_flipped),
        "steps": None if new.steps is None else list(new.steps),
        "actions": None if new.actions is None else list(new.actions),
        "is_undone": False,
        "answered_at": time.time(),
        **{name: getattr(new, name) for name in _COPIED},
    }
    try:
        connection.execute(_INSERT_ANSWER, values)
    except IntegrityError as error:  # two people sent the same id at the same moment
        raise ConflictError(ID_IS_TAKEN) from error


def _last_answer(connection: Connection, annotator_id: str) -> str | None:
    return connection.execute(
        select(_ANSWER.id)
        .where(_ANSWER.annotator_id == annotator_id, _ANSWER.is_undone.is_(False))
        .order_by(_ANSWER.number.desc())
        .limit(1)
    ).scalar_one_or_none()


def _leave_work(annotator: Annotator) -> Annotator:
    stage = stage_after(annotator.study.config, "work")
    code = annotator.study.config.panel.code_complete if stage == "done" else annotator.completion_code
    return replace(annotator, stage=stage, completion_code=code)


def _save(connection: Connection, annotator: Annotator) -> None:
    connection.execute(
        _SET_PERSON,
        {
            "key": annotator.id,
            "new_stage": annotator.stage,
            "new_answered": annotator.num_answered,
            "new_assigned": annotator.num_assigned,
            "new_code": annotator.completion_code,
            "now": time.time(),
        },
    )


def _in_order_of_query(choice: Choice, *, is_flipped: bool) -> Choice:
    """Returns what a choice by the sides of the screen says about the query, and the other way round."""
    return mirrored(choice) if is_flipped else choice


def _check_kind(row: Any, new: NewAnswer) -> None:
    given = {
        "pairwise": new.choice is not None,
        "rating": new.rating is not None,
        "steps": new.steps is not None,
        "demonstration": new.actions is not None and new.reset_seed is not None,
    }
    if not given[row.feedback] or sum(given.values()) > 1:
        raise WrongError(f"an answer to a query of kind {row.feedback} was expected, and nothing else.")
    if new.steps is not None and len(new.steps) != row.left_num_frames:
        raise WrongError(f"the clip has {row.left_num_frames} frames, steps has {len(new.steps)}.")
    if new.reset_seed is not None and new.reset_seed > MAX_SEED:
        raise WrongError(f"reset_seed {new.reset_seed} is too large. Give at most {MAX_SEED}.")


def _practice_feedback(row: Any, new: NewAnswer) -> str:
    expected = _in_order_of_query(Choice(row.gold_choice), is_flipped=row.is_flipped)
    is_side = mirrored(expected) is not expected
    text = f"the {expected} clip is better" if is_side else "the clips are equally good"
    return f"Yes: {text}." if new.choice is expected else f"We would say: {text}."


def _assignment(row: Any, query_id: str, assignment_id: str, is_flipped: bool, leased_until: float) -> Assignment:
    left = Clip(row.left_segment, row.left_clip, row.left_num_frames, row.left_clip_fps)
    right = (
        None
        if row.right_clip is None
        else Clip(row.right_segment, row.right_clip, row.right_num_frames, row.right_clip_fps)
    )
    if is_flipped and right is not None:
        left, right = right, left
    return Assignment(
        id=assignment_id,
        query_id=query_id,
        feedback=row.feedback,
        left=left,
        right=right,
        is_practice=row.kind == "practice",
        leased_until=datetime.fromtimestamp(leased_until, UTC),
    )


def _stored(row: Any) -> StoredAnswer:
    return StoredAnswer(
        number=row.number,
        answer_id=row.id,
        query_id=row.query_id,
        kind=row.kind,
        feedback=row.feedback,
        annotator_id=row.annotator_id,
        arm=row.arm,
        choice=row.choice,
        rating=row.rating,
        steps=_tuple(row.steps),
        actions=_tuple(row.actions),
        reset_seed=row.reset_seed,
        is_flipped=row.is_flipped,
        repeat=row.repeat,
        is_undone=row.is_undone,
        response_ms=row.response_ms,
        watched_ms=row.watched_ms,
        num_replays=row.num_replays,
        speed=row.speed,
        overlay_ms=row.overlay_ms,
        assigned_at=datetime.fromtimestamp(row.assigned_at, UTC),
        answered_at=datetime.fromtimestamp(row.answered_at, UTC),
    )


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
