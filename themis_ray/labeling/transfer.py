"""A study's answers from the store into a file, and from a file into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from themis_ray.labeling.export import answer_rows, read_answers, write_answers
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.store.imports import ImportCounts, Imports
from themis_ray.wire import NewQuery, NewSide, StoredAnswer

__all__ = ["export_study", "import_study"]

ANSWERS_PER_READ = 10_000
QUERIES_PER_READ = 1000


def export_study(
    store: LabelStore, study_id: str, path: Path, format_name: str, weights: Mapping[str, float] | None = None
) -> int:
    """Writes all answers of a study that count and returns how many there are; those that come meanwhile are not in it.

    Args:
        store: Where they are.
        study_id: Of the study.
        path: As in `write_answers`.
        format_name: As in `write_answers`.
        weights: Of people, by id, such as those of a study's report; None: 1 for everybody.

    Raises:
        NotFoundError: There is no such study.
        UnknownNameError: No format has this name.
        DataError: As in `write_answers`.
    """
    config = store.studies.get(study_id).config
    last_number = store.studies.activity(study_id).last_number  # before the queries, so that each answer has its own
    queries = _queries(store, study_id)
    rows = answer_rows(_answers(store, study_id, last_number), queries, config, weights)
    return write_answers(rows, path, format_name, config)


def import_study(store: LabelStore, study_id: str, path: Path, actor: str) -> ImportCounts:
    """Stores the answers of a file in a study that has their queries; twice is as once.

    Raises:
        NotFoundError: There is no such study, or a query is not in it.
        DataError: The file cannot be read, or a row is damaged.
        WrongError: An answer does not belong to the study.
    """
    store.studies.get(study_id)
    return Imports(store.database).add(study_id, read_answers(path), actor)


def _answers(store: LabelStore, study_id: str, last_number: int) -> Iterator[StoredAnswer]:
    cursor = 0
    while cursor < last_number:
        page = store.work.answers(study_id, after=cursor, limit=ANSWERS_PER_READ)
        yield from (answer for answer in page.answers if answer.number <= last_number)
        if len(page.answers) < ANSWERS_PER_READ:
            return
        cursor = page.answers[-1].number


def _queries(store: LabelStore, study_id: str) -> dict[str, NewQuery]:
    queries: dict[str, NewQuery] = {}
    after = ""
    while True:
        rows = store.studies.queries(study_id, after=after, limit=QUERIES_PER_READ)
        queries |= {row.id: _query(row) for row in rows}
        if len(rows) < QUERIES_PER_READ:
            return queries
        after = rows[-1].id


def _query(row: Any) -> NewQuery:
    def side(name: str) -> NewSide:
        values = {field: getattr(row, f"{name}_{field}") for field in ("clip", "num_frames", "clip_fps")}
        overlays = getattr(row, f"{name}_overlays") or {}
        return NewSide(segment_id=getattr(row, f"{name}_segment"), overlays=overlays, **values)

    return NewQuery(
        id=row.id,
        feedback=row.feedback,
        kind=row.kind,
        left=side("left"),
        right=None if row.right_clip is None else side("right"),
        gold_choice=row.gold_choice,
        overlap=row.overlap,
        about=row.about,
    )
