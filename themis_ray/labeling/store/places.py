"""The places of queries: who takes one, when it is free again, and how many answers there are.

Places are counted in `num_taken`: answers that count and leases that have not run out. A lease is made only where a
place is free, so that an overlap is never exceeded. Planned repeats take no place, nor do gold and practice queries
have a number of places. Every function is part of the caller's transaction.
"""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, func, select, update

from themis_ray.labeling import tables

__all__ = ["ON_QUERY", "SIDES", "count_answer", "free_expired", "free_place", "set_state", "take_place"]

MAX_EXPIRED_AT_ONCE = 200

_QUERY, _ASSIGNMENT = tables.query.c, tables.assignment.c
SIDES = tuple(column for column in _QUERY if column.name.startswith(("left_", "right_")))
ON_QUERY = and_(_QUERY.study_id == _ASSIGNMENT.study_id, _QUERY.id == _ASSIGNMENT.query_id)

# Building a statement takes longer than running it, so those of every answer are built once.
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
_EXPIRED = (
    select(*(_ASSIGNMENT[name] for name in ("id", "study_id", "query_id", "repeat")))
    .join(tables.query, ON_QUERY)
    .where(
        _ASSIGNMENT.study_id == bindparam("in_study"),
        _ASSIGNMENT.state == "leased",
        _ASSIGNMENT.leased_until < bindparam("now"),
    )
    .order_by(_ASSIGNMENT.query_id)
    .limit(MAX_EXPIRED_AT_ONCE)
    .with_for_update(skip_locked=True, key_share=True, of=(tables.assignment, tables.query))
)


def set_state(connection: Connection, assignment_id: str, state: str, leased_until: float | None = None) -> None:
    """Moves an assignment to a state; without a new end of its lease the old one stays."""
    connection.execute(_SET_STATE, {"key": assignment_id, "new_state": state, "new_lease": leased_until})


def take_place(connection: Connection, study_id: str, query_id: str, *, is_limited: bool) -> bool:
    """Takes a place of a query; where they are limited, only a free one. Tells whether there was one."""
    statement = _TAKE_FREE_PLACE if is_limited else _TAKE_ANY_PLACE
    return connection.execute(statement, {"in_study": study_id, "key": query_id}).rowcount == 1


def free_place(connection: Connection, study_id: str, query_id: str) -> None:
    """Gives a place back."""
    connection.execute(_FREE_PLACE, {"in_study": study_id, "key": query_id})


def count_answer(connection: Connection, study_id: str, query_id: str, change: int) -> None:
    """Changes the number of answers of a query."""
    connection.execute(_COUNT_ANSWERS, {"in_study": study_id, "key": query_id, "change": change})


def free_expired(connection: Connection, study_id: str, now: float) -> bool:
    """Frees the places of leases that ran out; tells whether there were any."""
    rows = connection.execute(_EXPIRED, {"in_study": study_id, "now": now}).all()
    for row in rows:
        set_state(connection, row.id, "expired")
        if row.repeat == 0:
            free_place(connection, row.study_id, row.query_id)
    return bool(rows)
