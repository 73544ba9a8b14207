"""What there is to tell experimenters about."""

from __future__ import annotations

from sqlalchemy import and_, func, select

from themis_ray.labeling import tables
from themis_ray.labeling.database import Database
from themis_ray.labeling.notify import StudyState

__all__ = ["Notices"]


class Notices:
    """Reads the state of studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self, study_id: str) -> StudyState | None:
        """Returns how a study stands; None without such a study."""
        answer, query = tables.answer.c, tables.query.c
        is_waiting = and_(query.study_id == study_id, query.kind == "ordinary", query.overlap > query.num_answers)
        with self._database.read() as connection:
            study = connection.execute(select(tables.study).where(tables.study.c.id == study_id)).one_or_none()
            if study is None:
                return None
            waiting = connection.execute(
                select(func.min(query.created_at), func.sum(query.overlap - query.num_answers)).where(is_waiting)
            ).one()
            newest = connection.execute(
                select(answer.number, answer.answered_at)
                .where(answer.study_id == study_id)
                .order_by(answer.number.desc())
                .limit(1)
            ).one_or_none()
            num_answers = connection.execute(
                select(func.coalesce(func.sum(query.num_answers), 0)).where(
                    query.study_id == study_id, query.kind != "practice"
                )
            ).scalar_one()
        return StudyState(
            id=study_id,
            title="",
            status=study.status,
            num_answers=int(num_answers),
            num_waiting=int(waiting[1] or 0),
            last_number=newest.number if newest else 0,
            last_answered_at=newest.answered_at if newest else None,
            waiting_since=waiting[0],
            stopped_at=study.stopped_at,
        )
