"""Studies, their clips and their queries."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Connection, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from themis_ray.data import Choice
from themis_ray.errors import ConfigError
from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.notify import check_webhook_url
from themis_ray.labeling.store.access import Member, write_audit
from themis_ray.labeling.store.draws import draw
from themis_ray.labeling.store.errors import ConflictError, NotFoundError, WrongError
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import EXPLAINED, EXPLANATION_METHODS, OVERLAY_PATTERN, NewQuery

__all__ = ["Activity", "Status", "Studies", "StudyCounts", "StudyRow", "make_study", "read_study", "to_study"]

Status = Literal["running", "paused", "stopped"]


@dataclass(frozen=True)
class StudyRow:
    """A study as it is now."""

    id: str
    config: StudyConfig
    revision: int
    status: Status
    created_at: float
    stopped_at: float | None


@dataclass(frozen=True)
class StudyCounts:
    """How far a study is. Answers that were undone do not count, nor does practice."""

    num_queries: int
    num_gold: int
    num_practice: int
    num_answers: int
    num_wanted: int
    num_waiting: int
    num_annotators: int
    num_done: int
    num_withdrawn: int


@dataclass(frozen=True)
class Activity:
    """When something last happened in a study, in seconds since 1970.

    Attributes:
        waiting_since: When the oldest query that lacks answers was added; None where none does.
        last_number: Number of the newest answer; 0 without one.
        last_answered_at: When that came; None without one.
    """

    waiting_since: float | None
    last_number: int
    last_answered_at: float | None


EXTENDABLE = ("overlap", "queries_per_annotator", "max_answers")
MAX_PARSED = 256
MAX_NAMES_PER_SELECT = 10_000  # SQLite takes 32766 values in a statement
_parsed: dict[str, StudyConfig] = {}


def read_study(connection: Connection, study_id: str, *, is_locked: bool = False) -> StudyRow:
    """Returns a study, which no other transaction changes until this one ends if `is_locked`.

    Raises:
        NotFoundError: There is none of this id.
    """
    chosen = select(tables.study).where(tables.study.c.id == study_id)
    row = connection.execute(chosen.with_for_update(key_share=True) if is_locked else chosen).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no study {study_id!r}. themis study list names those there are.")
    return to_study(row)


def to_study(row: Any) -> StudyRow:
    """Returns the study of a row of its table."""
    return make_study(row.id, row.settings, row.revision, row.status, row.created_at, row.stopped_at)


def make_study(
    study_id: str, settings: str, revision: int, status: Status, created_at: float, stopped_at: float | None
) -> StudyRow:
    """Returns a study; settings that have not changed are parsed once, those of older versions are passed over."""
    config = _parsed.get(settings)
    if config is None:
        if len(_parsed) >= MAX_PARSED:
            _parsed.clear()
        config = _parsed[settings] = StudyConfig.model_validate_json(settings, extra="ignore")
    return StudyRow(study_id, config, revision, status, created_at, stopped_at)


class Studies:
    """What experimenters make and see."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, config: StudyConfig, actor: str, maker: Member | None = None) -> StudyRow:
        """Makes a study, which runs at once. The same study again changes nothing, though it was extended since.

        Args:
            config: What it asks.
            actor: Who makes it, as the record of acts calls them.
            maker: A member, who may see it from then on.

        Raises:
            ConflictError: Another study has this id, or one that is not the maker's business.
            WrongError: An arm shows an explanation that there is not, or the webhook may not be told.
        """
        with self._database.write() as connection:
            values = {
                "id": config.id,
                "settings": config.model_dump_json(),
                "revision": 1,
                "status": "running",
                "created_at": time.time(),
            }
            is_new = self._insert_new(connection, tables.study, [values]) == 1
            study = read_study(connection, config.id)
            if is_new:
                _check_arms(config)
                _check_webhook(config)
                write_audit(connection, actor, "study.create", config.id, {"title": config.title})
                if maker is not None:
                    self._insert_new(connection, tables.membership, [{"member_id": maker.id, "study_id": config.id}])
                    write_audit(connection, actor, "member.add", config.id, {"member": maker.id})
            elif maker is not None and not maker.may_see(config.id):
                raise ConflictError(f"there is a study {config.id!r} already. Choose another id.")
            elif not _is_same(study.config, config):
                raise ConflictError(
                    f"there is a study {config.id!r} with other settings. Choose another id; a study that people "
                    "have seen keeps its settings."
                )
            return study

    def get(self, study_id: str) -> StudyRow:
        """Returns a study.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._database.read() as connection:
            return read_study(connection, study_id)

    def all(self) -> list[StudyRow]:
        """Returns all studies, the newest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(tables.study).order_by(tables.study.c.created_at.desc())).all()
        return [to_study(row) for row in rows]

    def set_status(self, study_id: str, status: Status, actor: str) -> StudyRow:
        """Lets a study run, pause or stop. A stopped one can go on.

        Raises:
            NotFoundError: There is no such study.
        """
        with self._database.write() as connection:
            known = read_study(connection, study_id, is_locked=True)
            stopped_at = (known.stopped_at or time.time()) if status == "stopped" else None
            connection.execute(
                update(tables.study).where(tables.study.c.id == study_id).values(status=status, stopped_at=stopped_at)
            )
            write_audit(connection, actor, f"study.{status}", study_id, {})
            return read_study(connection, study_id)

    @repeated
    def extend(
        self,
        study_id: str,
        actor: str,
        *,
        overlap: int | None = None,
        queries_per_annotator: int | None = None,
        max_answers: int | None = None,
    ) -> StudyRow:
        """Asks for more: answers per query, of those with a smaller overlap, queries per annotator, or answers in all.

        A study that has stopped goes on only when it is told to.

        Raises:
            NotFoundError: There is no such study.
            WrongError: A number is smaller than before, or more than a study may ask for.
        """
        with self._database.write() as connection:
            row = read_study(connection, study_id, is_locked=True)
            given = dict(zip(EXTENDABLE, (overlap, queries_per_annotator, max_answers), strict=True))
            changes = {name: value for name, value in given.items() if value is not None}
            for name, value in changes.items():
                known = getattr(row.config, name)
                if known is None:
                    raise WrongError(f"{name} {value}: study {study_id!r} has none and takes any number. Leave it out.")
                if value < known:
                    raise WrongError(f"{name} {value} is less than before ({known}). Give more.")
            try:
                config = StudyConfig.model_validate({**row.config.model_dump(), **changes})
            except ValidationError as error:
                wrong = error.errors()[0]
                raise WrongError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}.") from error
            connection.execute(
                update(tables.study)
                .where(tables.study.c.id == study_id)
                .values(settings=config.model_dump_json(), revision=tables.study.c.revision + 1)
            )
            if overlap is not None:
                connection.execute(
                    update(tables.query)
                    .where(
                        tables.query.c.study_id == study_id,
                        tables.query.c.kind == "ordinary",
                        tables.query.c.overlap < overlap,
                    )
                    .values(overlap=overlap)
                )
            if queries_per_annotator is not None or max_answers is not None:  # who was through has work again
                connection.execute(
                    update(tables.annotator)
                    .where(
                        tables.annotator.c.study_id == study_id,
                        tables.annotator.c.stage == "after",
                        tables.annotator.c.num_answered < config.queries_per_annotator,
                    )
                    .values(stage="work")
                )
            write_audit(connection, actor, "study.extend", study_id, changes)
            return read_study(connection, study_id)

    # ---------------------------------------------------------------- clips and queries

    def has_clip(self, study_id: str, name: str) -> bool:
        """Whether a study has a clip of this name."""
        with self._database.read() as connection:
            return _known_clips(connection, study_id, [name]) == {name}

    def add_clip(self, study_id: str, name: str, num_bytes: int) -> None:
        """Tells that a file is part of a study.

        Raises:
            NotFoundError: There is no such study.
        """
        with self._database.write() as connection:
            read_study(connection, study_id)
            values = {"study_id": study_id, "name": name, "num_bytes": num_bytes, "created_at": time.time()}
            self._insert_new(connection, tables.clip, [values])

    @repeated
    def add_queries(self, study_id: str, queries: Sequence[NewQuery], actor: str) -> int:
        """Adds queries and returns how many of them are new; known ids change nothing.

        Raises:
            NotFoundError: There is no such study.
            WrongError: A clip is missing, a gold or practice pair has no right answer, or one side is missing.
        """
        with self._database.write() as connection:
            row = read_study(connection, study_id)
            _check_queries(connection, row, queries)
            now = time.time()
            given = sorted({query.id: query for query in reversed(queries)}.items())
            values = [_query_values(study_id, query, row.config.overlap, now) for _, query in given]
            num_new = self._insert_new(connection, tables.query, values) if values else 0
            if num_new:
                write_audit(connection, actor, "queries.add", study_id, {"num_queries": num_new})
            return num_new

    def counts(self, study_id: str) -> StudyCounts:
        """Counts what a study has.

        Raises:
            NotFoundError: There is no such study.
        """
        query, annotator = tables.query.c, tables.annotator.c
        with self._database.read() as connection:
            read_study(connection, study_id)
            kinds = {
                row.kind: row
                for row in connection.execute(
                    select(
                        query.kind,
                        func.count().label("num"),
                        func.sum(query.num_answers).label("num_answers"),
                        func.sum(query.overlap).label("num_wanted"),
                        func.sum(query.overlap - query.num_answers)
                        .filter(query.overlap > query.num_answers)
                        .label("num_waiting"),
                    )
                    .where(query.study_id == study_id)
                    .group_by(query.kind)
                )
            }
            stages: dict[str, int] = dict(
                connection.execute(
                    select(annotator.stage, func.count())
                    .where(annotator.study_id == study_id)
                    .group_by(annotator.stage)
                )
                .tuples()
                .all()
            )
        ordinary = kinds.get("ordinary")
        return StudyCounts(
            num_queries=ordinary.num if ordinary else 0,
            num_gold=kinds["gold"].num if "gold" in kinds else 0,
            num_practice=kinds["practice"].num if "practice" in kinds else 0,
            num_answers=sum(row.num_answers for kind, row in kinds.items() if kind != "practice"),
            num_wanted=ordinary.num_wanted if ordinary else 0,
            num_waiting=(ordinary.num_waiting or 0) if ordinary else 0,
            num_annotators=sum(stages.values()),
            num_done=stages.get("done", 0),
            num_withdrawn=stages.get("withdrawn", 0),
        )

    def query(self, study_id: str, query_id: str) -> Any:
        """Returns the row of a query.

        Raises:
            NotFoundError: There is no such query in this study.
        """
        with self._database.read() as connection:
            row = connection.execute(
                select(tables.query).where(tables.query.c.study_id == study_id, tables.query.c.id == query_id)
            ).one_or_none()
        if row is None:
            raise NotFoundError(f"study {study_id!r} has no query {query_id!r}.")
        return row

    def queries(self, study_id: str, *, after: str = "", limit: int = 100) -> list[Any]:
        """Returns rows of queries in the order of their ids, from the one behind `after` on."""
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(tables.query)
                    .where(tables.query.c.study_id == study_id, tables.query.c.id > after)
                    .order_by(tables.query.c.id)
                    .limit(limit)
                )
            )

    def gold_choices(self, study_id: str) -> dict[str, str]:
        """Returns the right answers of a study's gold queries by id."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(tables.query.c.id, tables.query.c.gold_choice).where(
                    tables.query.c.study_id == study_id,
                    tables.query.c.kind == "gold",
                    tables.query.c.gold_choice.is_not(None),
                )
            )
            return {row.id: row.gold_choice for row in rows}

    def activity(self, study_id: str) -> Activity:
        """Tells when something last happened in a study.

        Raises:
            NotFoundError: There is no such study.
        """
        query, answer = tables.query.c, tables.answer.c
        with self._database.read() as connection:
            read_study(connection, study_id)
            waiting_since = connection.execute(
                select(func.min(query.created_at)).where(
                    query.study_id == study_id, query.kind == "ordinary", query.num_answers < query.overlap
                )
            ).scalar_one()
            last = connection.execute(
                select(answer.number, answer.answered_at)
                .where(answer.study_id == study_id)
                .order_by(answer.number.desc())
                .limit(1)
            ).one_or_none()
        return Activity(waiting_since, last.number if last else 0, last.answered_at if last else None)

    def claim_notice(self, study_id: str, event: str) -> bool:
        """Whether nobody has been told of this event yet; from now on somebody has."""
        values = {"study_id": study_id, "event": event, "sent_at": time.time()}
        with self._database.write() as connection:
            return self._insert_new(connection, tables.notice, [values]) == 1

    def _insert_new(self, connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> int:
        """Inserts rows, passes over those that are there, and returns how many were not."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        statement = dialect.insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
        return connection.execute(statement, rows).rowcount


def _is_same(known: StudyConfig, given: StudyConfig) -> bool:
    """Whether a study is the given one, extended or as it was."""
    pairs = {name: (getattr(known, name), getattr(given, name)) for name in EXTENDABLE}
    return known == given.model_copy(update={name: max(pair) for name, pair in pairs.items() if None not in pair})


def _check_arms(config: StudyConfig) -> None:
    for arm in config.arms:
        if arm.overlay and not re.fullmatch(OVERLAY_PATTERN, arm.overlay):
            raise WrongError(
                f"arm {arm.name!r} shows overlay {arm.overlay!r}, which is none. Give OF or OF-METHOD with OF of "
                f"{', '.join(EXPLAINED)}, and METHOD of {', '.join(EXPLANATION_METHODS)}."
            )
        if arm.overlay and config.feedback == "demonstration":
            raise WrongError(f"arm {arm.name!r} shows overlay {arm.overlay!r}, but demonstrations have no clips.")


def _check_webhook(config: StudyConfig) -> None:
    if config.webhook_url:
        try:
            check_webhook_url(config.webhook_url)
        except ConfigError as error:
            raise WrongError(str(error)) from error


def _check_overlays(study: StudyRow, query: NewQuery) -> None:
    """Refuses explanations that nobody would see, and pairs of which one side alone is explained."""
    shown = {arm.overlay for arm in study.config.arms if arm.overlay}
    unknown = query.left.overlays.keys() - shown
    if unknown:
        known = f"Its arms show {', '.join(sorted(shown))}." if shown else "Its arms show none."
        raise WrongError(f"query {query.id} has overlay {min(unknown)!r}, which no arm of {study.id!r} shows. {known}")
    if query.right is not None and query.left.overlays.keys() != query.right.overlays.keys():
        one_sided = min(query.left.overlays.keys() ^ query.right.overlays.keys())
        raise WrongError(f"query {query.id} has overlay {one_sided!r} on one side only. Send it for both or none.")


def _check_queries(connection: Connection, study: StudyRow, queries: Sequence[NewQuery]) -> None:
    sides = [side for query in queries for side in (query.left, query.right) if side is not None]
    named = {name for side in sides for name in (side.clip, *side.overlays.values())}
    missing = named - _known_clips(connection, study.id, sorted(named))
    if missing:
        raise WrongError(
            f"{len(missing)} clips are not in study {study.id!r}, such as {min(missing)}. Send clips before queries."
        )
    for query in queries:
        if query.feedback != study.config.feedback:
            raise WrongError(f"query {query.id} is {query.feedback}, study {study.id!r} is {study.config.feedback}.")
        if (query.right is None) != (query.feedback != "pairwise"):
            raise WrongError(f"query {query.id}: pairwise has two sides, {query.feedback} given as it is has not.")
        if query.right is not None and query.right.segment_id == query.left.segment_id:
            raise WrongError(f"query {query.id} has the same segment on both sides.")
        if query.feedback == "pairwise" and (query.kind == "ordinary") != (query.gold_choice is None):
            raise WrongError(f"query {query.id}: gold and practice pairs need gold_choice, ordinary ones have none.")
        if query.gold_choice is Choice.SKIP:
            raise WrongError(f"query {query.id}: the right answer cannot be skip.")
        _check_overlays(study, query)


def _known_clips(connection: Connection, study_id: str, names: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(names), MAX_NAMES_PER_SELECT):
        some = names[start : start + MAX_NAMES_PER_SELECT]
        chosen = select(tables.clip.c.name).where(tables.clip.c.study_id == study_id, tables.clip.c.name.in_(some))
        known |= set(connection.execute(chosen).scalars())
    return known


def _query_values(study_id: str, query: NewQuery, overlap: int, now: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "study_id": study_id,
        "id": query.id,
        "feedback": query.feedback,
        "kind": query.kind,
        "gold_choice": query.gold_choice,
        "overlap": query.overlap or overlap,
        "num_taken": 0,
        "num_answers": 0,
        "place": draw(study_id, query.id, "place"),
        "about": query.about,
        "created_at": now,
    }
    for name, side in (("left", query.left), ("right", query.right)):
        values |= {
            f"{name}_segment": side.segment_id if side else None,
            f"{name}_clip": side.clip if side else None,
            f"{name}_num_frames": side.num_frames if side else None,
            f"{name}_clip_fps": side.clip_fps if side else None,
            f"{name}_overlays": side.overlays or None if side else None,
        }
    return values
