"""Who is asked what: leases of queries, held until they are answered or run out.

A person whose leases ran out gets the same queries back, as long as there is place. On Postgres many transactions go on
at once: whoever picks or frees places passes over rows that others hold.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Integer, and_, bindparam, exists, func, insert, or_, select, update

from themis_ray.labeling import tables
from themis_ray.labeling.store.draws import draw
from themis_ray.labeling.store.people import Annotator, release_desk, stage_after
from themis_ray.labeling.store.places import ON_QUERY, SIDES, free_expired, set_state, take_place
from themis_ray.wire import FeedbackKind, Progress, Stage

__all__ = ["Assigner", "Assignment", "Clip", "Desk", "leave_work", "num_practised"]

MIN_ANSWERS_BEFORE_REPEAT = 5
EXPIRY_INTERVAL_S = 1.0
NUM_TRIES = 8  # of a pick that others may take at the same moment, on Postgres

_QUERY, _ASSIGNMENT, _ANSWER, _PERSON = (
    table.c for table in (tables.query, tables.assignment, tables.answer, tables.annotator)
)
# Statements of every answer, built once.
_HELD = (
    select(
        *(_ASSIGNMENT[name] for name in ("id", "query_id", "is_flipped", "leased_until")),
        *SIDES,
        _QUERY.kind,
        _QUERY.feedback,
    )
    .join(tables.query, ON_QUERY)
    .where(_ASSIGNMENT.annotator_id == bindparam("annotator_id"), _ASSIGNMENT.state == "leased")
    .order_by(_ASSIGNMENT.number)
)
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
# Leases of one's own that ran out, whose places are free. Practice has no places, so its queries are not locked.
_RENEWABLE = (
    select(_ASSIGNMENT.id, _ASSIGNMENT.study_id, _ASSIGNMENT.query_id, _ASSIGNMENT.repeat)
    .join(tables.query, ON_QUERY)
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
_OPEN_PRACTICE = (
    select(_ASSIGNMENT.id)
    .join(tables.query, ON_QUERY)
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
    .join(tables.query, ON_QUERY)
    .where(
        _ASSIGNMENT.annotator_id == bindparam("annotator_id"),
        _ASSIGNMENT.state == "answered",
        _QUERY.kind == "practice",
    )
)
_UNSEEN = (
    select(_QUERY.id, *SIDES, _QUERY.kind, _QUERY.feedback)
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
    select(_ASSIGNMENT.is_flipped.label("was_flipped"), _QUERY.id, *SIDES, _QUERY.kind, _QUERY.feedback)
    .join(tables.query, ON_QUERY)
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
_INSERT_ASSIGNMENT = insert(tables.assignment)


@dataclass(frozen=True)
class Clip:
    """One side of a query.

    Attributes:
        segment_id: What it shows.
        name: Of its file.
        num_frames: Frames.
        clip_fps: Frames per second.
        overlays: Names of the files of the same clip with an explanation, by explanation.
    """

    segment_id: str
    name: str
    num_frames: int
    clip_fps: float
    overlays: Mapping[str, str] = field(default_factory=dict)


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


class Assigner:
    """Fills desks; keeps nothing but when it last looked for leases that ran out."""

    def __init__(self) -> None:
        self._next_expiry: dict[str, float] = {}

    def fill(
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
        # Answers that come by an import take nobody on.
        is_through = annotator.stage == "work" and annotator.num_answered >= study.config.queries_per_annotator
        if is_through or (annotator.stage in ("practice", "work") and study.status == "stopped"):
            annotator = leave_work(annotator)
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
        return min(count, config.num_practice - num_practised(connection, annotator.id))

    def _held(self, connection: Connection, annotator: Annotator, wanted: int) -> list[Assignment]:
        """Returns what a person holds, in order; leases of theirs that ran out are renewed up to `wanted`."""
        self._expire(connection, annotator.study.id)
        person = {"annotator_id": annotator.id}
        rows = connection.execute(_HELD, person).all()
        if len(rows) < wanted and annotator.study.status == "running":
            renewable = connection.execute(_RENEW[annotator.stage], {**person, "wanted": wanted - len(rows)}).all()
            lease = time.time() + annotator.study.config.lease_s
            for row in renewable:
                set_state(connection, row.id, "leased", lease)
                if row.repeat == 0:
                    take_place(connection, row.study_id, row.query_id, is_limited=False)
            if renewable:
                rows = connection.execute(_HELD, person).all()
        return [_assignment(row, row.query_id, row.id, row.is_flipped, row.leased_until) for row in rows]

    def _expire(self, connection: Connection, study_id: str, *, is_urgent: bool = False) -> bool:
        """Frees the places of leases that ran out, once a second; tells whether there were any."""
        now = time.time()
        if not is_urgent and now < self._next_expiry.get(study_id, 0.0):
            return False
        self._next_expiry[study_id] = now + EXPIRY_INTERVAL_S
        return free_expired(connection, study_id, now)

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
        for _ in range(NUM_TRIES):
            row = connection.execute(_NEXT[kind], values).one_or_none()
            if row is None:
                return None
            if take_place(connection, study.id, row.id, is_limited=kind == "ordinary"):
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


def leave_work(annotator: Annotator) -> Annotator:
    """Returns an annotator in the stage after the work, with the completion code if that is the end."""
    stage = stage_after(annotator.study.config, "work")
    code = annotator.study.config.panel.code_complete if stage == "done" else annotator.completion_code
    return replace(annotator, stage=stage, completion_code=code)


def num_practised(connection: Connection, annotator_id: str) -> int:
    """Returns how many practice queries a person has answered."""
    return int(connection.execute(_NUM_PRACTISED, {"annotator_id": annotator_id}).scalar_one())


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


def _assignment(row: Any, query_id: str, assignment_id: str, is_flipped: bool, leased_until: float) -> Assignment:
    left = Clip(row.left_segment, row.left_clip, row.left_num_frames, row.left_clip_fps, row.left_overlays or {})
    right = (
        None
        if row.right_clip is None
        else Clip(row.right_segment, row.right_clip, row.right_num_frames, row.right_clip_fps, row.right_overlays or {})
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
