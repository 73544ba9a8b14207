"""What becomes of an answer: it is checked, counted and stored, and its person goes on; or it is taken back.

Every function is part of the caller's transaction.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from themis_ray.data import Choice, mirrored
from themis_ray.labeling import tables
from themis_ray.labeling.export import AnswerRow
from themis_ray.labeling.store.assigning import leave_work, num_practised
from themis_ray.labeling.store.errors import ConflictError, LateError, NotFoundError, TooManyError, WrongError
from themis_ray.labeling.store.people import Annotator
from themis_ray.labeling.store.places import ON_QUERY, count_answer, set_state, take_place
from themis_ray.labeling.store.studies import read_study
from themis_ray.wire import MAX_SEED, FeedbackKind, NewAnswer

__all__ = [
    "check_answer",
    "check_kind",
    "find_assignment",
    "insert_answer",
    "is_known",
    "keep_lease",
    "last_answer",
    "take_answer",
    "take_back",
]

MAX_ANSWERS_PER_MINUTE = 240
ID_IS_TAKEN = "this answer_id is taken. Make a new UUID for every answer."
_COPIED = ("rating", "reset_seed", "response_ms", "watched_ms", "num_replays", "speed", "overlay_ms")

# Statements of every answer, built once.
_QUERY, _ASSIGNMENT, _ANSWER = (table.c for table in (tables.query, tables.assignment, tables.answer))
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
        _QUERY.left_overlays,
    )
    .join(tables.query, ON_QUERY)
    .where(_ASSIGNMENT.id == bindparam("assignment_id"), _ASSIGNMENT.annotator_id == bindparam("annotator_id"))
    .with_for_update(of=tables.assignment)  # or somebody who frees places takes the lease away meanwhile
)
_FIRST_OPEN = select(func.min(_ASSIGNMENT.number)).where(
    _ASSIGNMENT.annotator_id == bindparam("annotator_id"), _ASSIGNMENT.state.in_(("leased", "expired"))
)
_TOTAL = select(func.sum(_QUERY.num_answers)).where(_QUERY.study_id == bindparam("in_study"), _QUERY.kind != "practice")
# Not less than _TOTAL, since repeats are among them; there are far fewer people than queries.
_TOTAL_OF_PEOPLE = select(func.sum(tables.annotator.c.num_answered)).where(
    tables.annotator.c.study_id == bindparam("in_study")
)
_INSERT_ANSWER = insert(tables.answer)


def is_known(connection: Connection, annotator_id: str, answer_id: str) -> bool:
    """Whether a person has sent this answer before.

    Raises:
        ConflictError: Somebody else's answer has this id.
        TooManyError: It is new, and nobody answers so fast.
    """
    about = connection.execute(
        _FIND_KNOWN, {"answer_id": answer_id, "annotator_id": annotator_id, "since": time.time() - 60.0}
    ).one()
    if about.known is not None:
        if about.known != annotator_id:
            raise ConflictError(ID_IS_TAKEN)
        return True
    if about.num_recent >= MAX_ANSWERS_PER_MINUTE:
        raise TooManyError(f"more than {MAX_ANSWERS_PER_MINUTE} answers in a minute. Wait a little and go on.")
    return False


def find_assignment(connection: Connection, annotator: Annotator, assignment_id: str) -> Any:
    """Returns an assignment of this person beside its query.

    Raises:
        NotFoundError: There is no such assignment of theirs.
    """
    row = connection.execute(
        _FIND_ASSIGNMENT, {"assignment_id": assignment_id, "annotator_id": annotator.id}
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such assignment of yours.")
    return row


def check_answer(row: Any, new: NewAnswer, min_watched_s: float) -> None:
    """Checks an answer against what was asked.

    Raises:
        WrongError: It is not of the kind that was asked for, or the clips were not watched for long enough.
    """
    check_kind(row.feedback, row.left_num_frames, new)
    if row.feedback != "demonstration" and new.watched_ms < 1000.0 * min_watched_s:  # who acts has nothing to watch
        raise WrongError(f"watch the clips for {min_watched_s:g} s before you answer.")


def check_kind(feedback: FeedbackKind, num_frames: int, new: NewAnswer | AnswerRow) -> None:
    """Checks that an answer is of the kind that was asked for, and of nothing else.

    Raises:
        WrongError: It is not.
    """
    given = {
        "pairwise": new.choice is not None,
        "rating": new.rating is not None,
        "steps": new.steps is not None,
        "demonstration": new.actions is not None and new.reset_seed is not None,
    }
    if not given[feedback] or sum(given.values()) > 1:
        raise WrongError(f"an answer to a query of kind {feedback} was expected, and nothing else.")
    if new.steps is not None and len(new.steps) != num_frames:
        raise WrongError(f"the clip has {num_frames} frames, steps has {len(new.steps)}.")
    if new.reset_seed is not None and new.reset_seed > MAX_SEED:
        raise WrongError(f"reset_seed {new.reset_seed} is too large. Give at most {MAX_SEED}.")


def take_answer(connection: Connection, annotator: Annotator, row: Any, new: NewAnswer) -> tuple[Annotator, str]:
    """Counts an answer; returns the annotator as they are then, and what practice says about it.

    Raises:
        LateError: The lease had run out, and its place is taken.
        ConflictError: It is not the time for answers, or the assignment is answered.
    """
    _claim(connection, annotator, row)
    set_state(connection, row.id, "answered")
    _count(connection, row, 1)
    is_practice = row.kind == "practice"
    if not is_practice:
        annotator = replace(annotator, num_answered=annotator.num_answered + 1)
    annotator = _go_on(connection, annotator, is_practice=is_practice)
    if is_practice and row.gold_choice is not None:
        return annotator, _practice_feedback(row, new)
    return annotator, ""


def keep_lease(connection: Connection, annotator: Annotator, row: Any) -> None:
    """Keeps an assignment, from `find_assignment`, for its person until `lease_s` from now, or half of that at least.

    Raises:
        LateError: The lease had run out, and its place is taken.
        ConflictError: It is not the time for answers, or the assignment is answered.
    """
    _claim(connection, annotator, row)
    now, lease_s = time.time(), annotator.study.config.lease_s
    if row.state == "expired" or row.leased_until < now + lease_s / 2:  # not at every call, each of which is written
        set_state(connection, row.id, "leased", now + lease_s)


def _claim(connection: Connection, annotator: Annotator, row: Any) -> None:
    """Checks that a person may go on with an assignment, whose place is theirs from then on."""
    if annotator.stage not in ("practice", "work"):
        raise ConflictError(f"stage {annotator.stage} takes no answers.")
    if annotator.study.status == "stopped":
        raise ConflictError("the study has ended. Thank you.")
    if row.state == "answered":
        raise ConflictError("this assignment is answered. Undo the answer to give another.")
    if row.state == "expired":
        _take_place_again(connection, row)


def _go_on(connection: Connection, annotator: Annotator, *, is_practice: bool) -> Annotator:
    """Returns the annotator in the stage that follows an answer, and stops a study that has enough."""
    config = annotator.study.config
    if is_practice:
        is_practised = num_practised(connection, annotator.id) >= config.num_practice
        return replace(annotator, stage="work") if is_practised else annotator
    if config.max_answers is not None and _has_answers(connection, annotator.study.id, config.max_answers):
        connection.execute(
            update(tables.study)
            .where(tables.study.c.id == annotator.study.id)
            .values(status="stopped", stopped_at=time.time())
        )
        annotator = replace(annotator, study=read_study(connection, annotator.study.id))
    return leave_work(annotator) if annotator.num_answered >= config.queries_per_annotator else annotator


def _has_answers(connection: Connection, study_id: str, num_wanted: int) -> bool:
    """Whether a study has so many answers, one of whose person is still to be stored."""
    values = {"in_study": study_id}
    if connection.execute(_TOTAL_OF_PEOPLE, values).scalar_one() + 1 < num_wanted:
        return False
    return bool(connection.execute(_TOTAL, values).scalar_one() >= num_wanted)


def _take_place_again(connection: Connection, row: Any) -> None:
    """Lets an answer in whose lease had run out, if nobody has the place."""
    if row.repeat:
        return
    if not take_place(connection, row.study_id, row.query_id, is_limited=row.kind == "ordinary"):
        raise LateError("the time for this query was over and somebody else has answered it. Go on with the next.")


def _count(connection: Connection, row: Any, change: int) -> None:
    if row.repeat == 0:
        count_answer(connection, row.study_id, row.query_id, change)


def insert_answer(connection: Connection, row: Any, new: NewAnswer, overlay: str) -> None:
    """Stores an answer to an assignment.

    Args:
        connection: The caller's transaction.
        row: From `find_assignment`.
        new: The answer.
        overlay: The explanation of the person's arm, which was shown if the query has it.

    Raises:
        ConflictError: Somebody else's answer has this id.
    """
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
        "overlay": overlay if overlay in (row.left_overlays or {}) else None,
        "answered_at": time.time(),
        **{name: getattr(new, name) for name in _COPIED},
    }
    try:
        connection.execute(_INSERT_ANSWER, values)
    except IntegrityError as error:  # two people sent the same id at the same moment
        raise ConflictError(ID_IS_TAKEN) from error


def last_answer(connection: Connection, annotator_id: str) -> str | None:
    """Returns the id of a person's last answer that is not undone; None where there is none."""
    return connection.execute(
        select(_ANSWER.id)
        .where(_ANSWER.annotator_id == annotator_id, _ANSWER.is_undone.is_(False))
        .order_by(_ANSWER.number.desc())
        .limit(1)
    ).scalar_one_or_none()


def take_back(connection: Connection, annotator: Annotator, answer: Any) -> Annotator:
    """Undoes a person's last answer and leases its query to them again, as the first; returns them as they are then.

    Raises:
        ConflictError: It is not their last one, or the study has ended.
    """
    if answer.id != last_answer(connection, annotator.id):
        raise ConflictError("only the last answer can be taken back.")
    if annotator.study.status == "stopped":
        raise ConflictError("the study has ended. Thank you.")
    row = find_assignment(connection, annotator, answer.assignment_id)
    first = connection.execute(_FIRST_OPEN, {"annotator_id": annotator.id}).scalar_one()
    if first is not None and first <= row.number:  # equal, where another was put into an answered one's place
        connection.execute(update(tables.assignment).where(_ASSIGNMENT.id == row.id).values(number=first - 1))
    lease = time.time() + annotator.study.config.lease_s
    connection.execute(update(tables.answer).where(_ANSWER.id == answer.id).values(is_undone=True))
    set_state(connection, row.id, "leased", lease)
    _count(connection, row, -1)
    is_practice = row.kind == "practice"
    return replace(
        annotator,
        stage="practice" if is_practice else "work",
        num_answered=annotator.num_answered - (0 if is_practice else 1),
    )


def _in_order_of_query(choice: Choice, *, is_flipped: bool) -> Choice:
    """Returns what a choice by the sides of the screen says about the query, and the other way round."""
    return mirrored(choice) if is_flipped else choice


def _practice_feedback(row: Any, new: NewAnswer) -> str:
    expected = _in_order_of_query(Choice(row.gold_choice), is_flipped=row.is_flipped)
    is_side = mirrored(expected) is not expected
    text = f"the {expected} clip is better" if is_side else "the clips are equally good"
    return f"Yes: {text}." if new.choice is expected else f"We would say: {text}."
