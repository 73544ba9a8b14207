"""Reading what people have answered, in the order in which it arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select

from themis_ray.labeling import tables
from themis_ray.labeling.store.studies import Status, read_study
from themis_ray.wire import StoredAnswer

__all__ = ["Answers", "read_answers"]


@dataclass(frozen=True)
class Answers:
    """Answers in the order in which they arrived."""

    answers: tuple[StoredAnswer, ...]
    withdrawn: tuple[str, ...]
    undone: tuple[str, ...]
    cursor: int
    num_waiting: int
    status: Status


def read_answers(
    connection: Connection, study_id: str, *, after: int = 0, limit: int = 1000, query_id: str | None = None
) -> Answers:
    """Returns answers with numbers above `after`, undone ones too; see `Work.answers`."""
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
        overlay=row.overlay or "",
        overlay_ms=row.overlay_ms,
        assigned_at=datetime.fromtimestamp(row.assigned_at, UTC),
        answered_at=datetime.fromtimestamp(row.answered_at, UTC),
    )


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
