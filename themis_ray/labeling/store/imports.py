"""Answers that were given elsewhere, such as in the same study of another service."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, insert, select, update

from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.export import AnswerRow
from themis_ray.labeling.store.access import write_audit
from themis_ray.labeling.store.answering import check_kind
from themis_ray.labeling.store.errors import NotFoundError, WrongError
from themis_ray.labeling.store.studies import read_study

__all__ = ["ImportCounts", "Imports"]

T = TypeVar("T")

ROWS_PER_TRANSACTION = 500


@dataclass
class ImportCounts:
    """What became of the answers of a file.

    Attributes:
        num_new: Stored.
        num_known: There already: the same answer, or another of the same person to the same query.
        num_withdrawn: Left out, since the person has withdrawn.
    """

    num_new: int = 0
    num_known: int = 0
    num_withdrawn: int = 0


class Imports:
    """Brings answers in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, study_id: str, rows: Iterable[AnswerRow], actor: str) -> ImportCounts:
        """Stores answers whose queries the study has. Twice is as once, and after a failure it can be done again.

        A query that gets more answers than were wanted is wanted by as many from then on. People keep their pseudonyms;
        those who are not there yet are done. What lies on somebody's desk, or did until the lease ran out, is answered.

        Args:
            study_id: Of the study.
            rows: Of an export.
            actor: Who does it.

        Raises:
            NotFoundError: There is no such study, or a query is not in it.
            WrongError: An answer is of another study or kind of feedback, or its person is in another study.
        """
        counts = ImportCounts()
        for batch in _batches(rows, ROWS_PER_TRANSACTION):
            for name, number in self._add_batch(study_id, batch).items():
                setattr(counts, name, getattr(counts, name) + number)
        with self._database.write() as connection:
            read_study(connection, study_id)
            write_audit(connection, actor, "answers.import", study_id, vars(counts))
        return counts

    @repeated
    def _add_batch(self, study_id: str, rows: Sequence[AnswerRow]) -> dict[str, int]:
        counts = ImportCounts()
        with self._database.write() as connection:
            self._add(connection, study_id, rows, counts)
        return vars(counts)

    def _add(self, connection: Connection, study_id: str, rows: Sequence[AnswerRow], counts: ImportCounts) -> None:
        # Of two imports the second waits; so does whoever is about to withdraw.
        study = read_study(connection, study_id, is_locked=True)
        homes = _homes(connection, {row.annotator_id for row in rows})
        queries = _queries(connection, study_id, {row.query_id for row in rows})
        kinds = {query_id: query.kind for query_id, query in queries.items()}
        tombstone, answer = tables.tombstone.c, tables.answer.c
        withdrawn = _known(connection, tombstone.annotator_id, {row.annotator_id for row in rows})
        known = _known(connection, answer.id, {row.answer_id for row in rows})
        asked = _asked(connection, {row.annotator_id for row in rows}, {row.query_id for row in rows})
        answered = {place for place, assignment in asked.items() if assignment.state == "answered"}
        new = []
        for row in rows:
            if row.study != study_id:
                raise WrongError(f"answer {row.answer_id} is of study {row.study!r}. Give a file of {study_id!r}.")
            if row.query_id not in queries:
                raise NotFoundError(
                    f"study {study_id!r} has no query {row.query_id!r}. Send its queries and clips first."
                )
            if row.feedback != study.config.feedback:
                raise WrongError(f"answer {row.answer_id} is {row.feedback}, the study is {study.config.feedback}.")
            try:
                check_kind(row.feedback, queries[row.query_id].left_num_frames, row)
            except WrongError as error:
                raise WrongError(f"answer {row.answer_id}: {error}") from error
            if homes.get(row.annotator_id, study_id) != study_id:
                raise WrongError(f"annotator {row.annotator_id} is in study {homes[row.annotator_id]!r} already.")
            if row.annotator_id in withdrawn:
                counts.num_withdrawn += 1
            elif row.answer_id in known or _place(row) in answered:
                counts.num_known += 1
            else:
                known.add(row.answer_id)
                answered.add(_place(row))
                new.append(row)
        if new:
            counts.num_new += len(new)
            held = {row.answer_id: asked[_place(row)] for row in new if _place(row) in asked}
            _insert(connection, study_id, new, set(homes), kinds, held)
            # The numbers of answers are given last, so that nothing is waited for while others wait.
            self._database.lock_answers(connection, study_id)
            ids = {answer_id: assignment.id for answer_id, assignment in held.items()}
            connection.execute(
                insert(tables.answer),
                [_answer(study_id, row, ids.get(row.answer_id, _assignment_id(row))) for row in new],
            )


def _homes(connection: Connection, annotators: set[str]) -> dict[str, str]:
    """Returns the studies that people are in, who do not change until the transaction ends."""
    column = tables.annotator.c
    chosen = select(column.id, column.study_id).where(column.id.in_(annotators)).order_by(column.id)
    return {row.id: row.study_id for row in connection.execute(chosen.with_for_update(key_share=True))}


def _asked(connection: Connection, annotators: set[str], queries: set[str]) -> dict[tuple[str, str, int], Any]:
    """Returns what these people have been asked of these queries; no lease of it runs out before the transaction ends.

    The keys are as those of `_place`.
    """
    column = tables.assignment.c
    chosen = select(column.annotator_id, column.query_id, column.repeat, column.id, column.state).where(
        column.annotator_id.in_(annotators), column.query_id.in_(queries)
    )
    rows = connection.execute(chosen.order_by(column.id).with_for_update())
    return {(row.annotator_id, row.query_id, row.repeat): row for row in rows}


def _place(row: AnswerRow) -> tuple[str, str, int]:
    return row.annotator_id, row.query_id, row.repeat


def _queries(connection: Connection, study_id: str, ids: set[str]) -> dict[str, Any]:
    """Returns kind and number of frames of a study's queries."""
    query = tables.query.c
    chosen = select(query.id, query.kind, query.left_num_frames).where(query.study_id == study_id, query.id.in_(ids))
    return {row.id: row for row in connection.execute(chosen)}


def _known(connection: Connection, column: Column[Any], values: set[str]) -> set[str]:
    """Returns which of these values a column has."""
    return set(connection.execute(select(column).where(column.in_(values))).scalars())


def _insert(
    connection: Connection,
    study_id: str,
    rows: Sequence[AnswerRow],
    people: set[str],
    kinds: dict[str, str],
    held: dict[str, Any],
) -> None:
    """Stores all but the answers themselves; `held` are assignments without an answer so far, by the answer's id."""
    by_person = defaultdict(list)
    for row in rows:
        by_person[row.annotator_id].append(row)
    new = [_person(study_id, own) for name, own in by_person.items() if name not in people]
    if new:
        connection.execute(insert(tables.annotator), new)
    unasked = [_assignment(study_id, row) for row in rows if row.answer_id not in held]
    if unasked:
        connection.execute(insert(tables.assignment), unasked)
    person, query, assignment = tables.annotator, tables.query, tables.assignment
    for row in rows:
        if row.answer_id in held:
            given = update(assignment).where(assignment.c.id == held[row.answer_id].id)
            connection.execute(given.values(**_given(row)))
    for name, own in sorted(by_person.items()):
        num_counting = sum(kinds[row.query_id] != "practice" for row in own)
        num_unasked = sum(row.answer_id not in held for row in own)
        connection.execute(
            update(person)
            .where(person.c.id == name)
            .values(num_answered=person.c.num_answered + num_counting, num_assigned=person.c.num_assigned + num_unasked)
        )
    first = [row for row in rows if row.repeat == 0]
    answers = Counter(row.query_id for row in first)
    leases = Counter(row.query_id for row in first if row.answer_id in held and held[row.answer_id].state == "leased")
    for query_id, num_more in sorted(answers.items()):
        place = (query.c.study_id == study_id) & (query.c.id == query_id)
        num_places = num_more - leases[query_id]  # who holds a lease has the place already
        counts = {"num_answers": query.c.num_answers + num_more, "num_taken": query.c.num_taken + num_places}
        connection.execute(update(query).where(place).values(**counts))
        connection.execute(
            update(query).where(place, query.c.overlap < query.c.num_taken).values(overlap=query.c.num_taken)
        )


def _person(study_id: str, rows: Sequence[AnswerRow]) -> dict[str, Any]:
    return {
        "id": rows[0].annotator_id,
        "study_id": study_id,
        "arm": rows[0].arm,
        "stage": "done",
        "num_answered": 0,
        "num_assigned": 0,
        "panel": {},
        "completion_code": "",
        "created_at": min(row.assigned_at for row in rows).timestamp(),
        "seen_at": max(row.answered_at for row in rows).timestamp(),
    }


def _assignment(study_id: str, row: AnswerRow) -> dict[str, Any]:
    return {
        "id": _assignment_id(row),
        "study_id": study_id,
        "query_id": row.query_id,
        "annotator_id": row.annotator_id,
        "repeat": row.repeat,
        "number": 0,
        **_given(row),
    }


def _given(row: AnswerRow) -> dict[str, Any]:
    """Returns what an answer says of its assignment."""
    return {
        "is_flipped": row.is_flipped,
        "state": "answered",
        "created_at": row.assigned_at.timestamp(),
        "leased_until": row.answered_at.timestamp(),
    }


def _answer(study_id: str, row: AnswerRow, assignment_id: str) -> dict[str, Any]:
    copied = ("rating", "reset_seed", "response_ms", "watched_ms", "num_replays", "speed", "overlay", "overlay_ms")
    return {
        "id": row.answer_id,
        "assignment_id": assignment_id,
        "study_id": study_id,
        "query_id": row.query_id,
        "annotator_id": row.annotator_id,
        "choice": row.choice,
        "steps": None if row.steps is None else list(row.steps),
        "actions": None if row.actions is None else list(row.actions),
        "is_undone": False,
        "answered_at": row.answered_at.timestamp(),
        **{name: getattr(row, name) for name in copied},
    }


def _assignment_id(row: AnswerRow) -> str:
    return f"i-{row.answer_id}"[:128]


def _batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch
