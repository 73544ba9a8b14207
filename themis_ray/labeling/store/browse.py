"""Looking through the queries of a study, with how often each choice was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Float, Select, and_, case, cast, func, or_, select

from themis_ray.data import Choice
from themis_ray.labeling import tables
from themis_ray.labeling.database import Database

__all__ = ["SHOWN", "Browse", "QueryTally", "Shown"]

Shown = Literal["all", "disputed", "unanimous", "waiting", "gold", "missed", "practice"]
SHOWN: tuple[Shown, ...] = ("all", "disputed", "unanimous", "waiting", "gold", "missed", "practice")


@dataclass(frozen=True)
class QueryTally:
    """A query and its first answers that count; repeats and undone ones do not.

    Attributes:
        id: Of the query.
        kind: ordinary, gold or practice.
        gold_choice: The right answer; None where it is not known.
        overlap: Answers wanted.
        num_answers: Answers there are.
        left: How often left was chosen, and so on.
        right: See left.
        equal: See left.
        skip: See left.
        about: Where the query comes from.
    """

    id: str
    kind: str
    gold_choice: str | None
    overlap: int
    num_answers: int
    left: int
    right: int
    equal: int
    skip: int
    about: dict[str, Any]

    @property
    def disagreement(self) -> float | None:
        """Share of the votes that are not with most others; None without two votes."""
        votes = (self.left, self.right, self.equal)
        return 1.0 - max(votes) / sum(votes) if sum(votes) > 1 else None


class Browse:
    """What is looked through."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queries(
        self, study_id: str, shown: Shown = "all", *, offset: int = 0, limit: int = 50
    ) -> tuple[list[QueryTally], int]:
        """Returns a page of queries, and how many there are in all.

        Args:
            study_id: Of the study.
            shown: Which queries; disputed ones come in the order of how disputed they are.
            offset: Queries before the page.
            limit: Queries on the page.
        """
        chosen, order = _choose(study_id, shown)
        with self._database.read() as connection:
            total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
            rows = connection.execute(chosen.order_by(*order).offset(offset).limit(limit)).all()
        return [QueryTally(*row) for row in rows], int(total)


def _choose(study_id: str, shown: Shown) -> tuple[Select[Any], list[Any]]:
    """Returns the selection of queries and its order."""
    query = tables.query.c
    votes = _votes(study_id).subquery()
    nums = {name: func.coalesce(votes.c[name], 0) for name in ("left", "right", "equal", "skip", "num", "num_wrong")}
    chosen = (
        select(
            query.id,
            query.kind,
            query.gold_choice,
            query.overlap,
            nums["num"],
            nums["left"],
            nums["right"],
            nums["equal"],
            nums["skip"],
            query.about,
        )
        .outerjoin(votes, votes.c.query_id == query.id)
        .where(query.study_id == study_id)
    )
    left, right, equal = nums["left"], nums["right"], nums["equal"]
    is_disputed = or_(and_(left > 0, right > 0), and_(left > 0, equal > 0), and_(right > 0, equal > 0))
    conditions: dict[Shown, list[Any]] = {
        "all": [],
        "disputed": [is_disputed],
        "unanimous": [~is_disputed, left + right + equal > 1],
        "waiting": [query.kind == "ordinary", query.overlap > query.num_answers],
        "gold": [query.kind == "gold"],
        "missed": [query.kind == "gold", nums["num_wrong"] > 0],
        "practice": [query.kind == "practice"],
    }
    order: list[Any] = [query.created_at, query.id]
    if shown == "disputed":
        most = case((and_(left >= right, left >= equal), left), (right >= equal, right), else_=equal)
        order.insert(0, cast(most, Float) / (left + right + equal))
    elif shown == "missed":
        order.insert(0, nums["num_wrong"].desc())
    return chosen.where(*conditions[shown]), order


def _votes(study_id: str) -> Select[Any]:
    """Counts the choices of each query."""
    answer, query = tables.answer.c, tables.query.c
    is_wrong = and_(query.gold_choice.is_not(None), answer.choice != query.gold_choice, answer.choice != Choice.SKIP)
    return (
        select(
            answer.query_id,
            func.count().label("num"),
            *(func.sum(case((answer.choice == choice, 1), else_=0)).label(str(choice)) for choice in Choice),
            func.sum(case((is_wrong, 1), else_=0)).label("num_wrong"),
        )
        .join(tables.assignment, tables.assignment.c.id == answer.assignment_id)
        .join(tables.query, and_(query.study_id == answer.study_id, query.id == answer.query_id))
        .where(answer.study_id == study_id, answer.is_undone.is_(False), tables.assignment.c.repeat == 0)
        .group_by(answer.query_id)
    )
