"""The people of a study: how they come, agree, are asked about themselves, and leave."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.store.access import write_audit
from themis_ray.labeling.store.draws import draw
from themis_ray.labeling.store.errors import ConflictError, ForbiddenError, NotFoundError, WrongError
from themis_ray.labeling.store.studies import StudyRow, make_study, read_study, to_study
from themis_ray.labeling.study import ChoiceQuestion, ScaleQuestion, StudyConfig, TextQuestion
from themis_ray.wire import Stage

__all__ = [
    "Annotator",
    "Completion",
    "People",
    "first_stage",
    "lock_annotator",
    "panel_key",
    "release_desk",
    "stage_after",
]

STAGES: tuple[Stage, ...] = ("consent", "before", "practice", "work", "after", "done")
WITHOUT_ANSWERS: tuple[Stage, ...] = ("withdrawn", "screened_out")
ENDED: tuple[Stage, ...] = ("done", *WITHOUT_ANSWERS)


@dataclass(frozen=True)
class Annotator:
    """A person, and the study they are in; `panel_key` is what `panel_key` makes of the link that they came by."""

    id: str
    study: StudyRow
    arm: str
    stage: Stage
    num_answered: int
    num_assigned: int
    completion_code: str
    panel_key: str | None

    @property
    def overlay(self) -> str:
        """Name of the explanation that this person's arm is shown; empty for none."""
        return next((arm.overlay for arm in self.study.config.arms if arm.name == self.arm), "")


@dataclass(frozen=True)
class Completion:
    """What a person gets at the end."""

    stage: Stage
    code: str
    redirect_url: str


def stages_of(config: StudyConfig) -> list[Stage]:
    """Returns the stages that a study has, in order."""
    has = {
        "consent": config.consent is not None,
        "before": bool(config.before),
        "practice": config.num_practice > 0,
        "work": True,
        "after": bool(config.after),
        "done": True,
    }
    return [stage for stage in STAGES if has[stage]]


def first_stage(config: StudyConfig) -> Stage:
    """Returns where people begin."""
    return stages_of(config)[0]


def stage_after(config: StudyConfig, stage: Stage) -> Stage:
    """Returns what follows a stage."""
    later = STAGES[STAGES.index(stage) + 1 :]
    return next(stage for stage in stages_of(config) if stage in later)


_LOCK = (
    select(
        tables.annotator,
        *(tables.study.c[name].label(f"study_{name}") for name in ("settings", "revision", "status")),
        tables.study.c.created_at.label("study_created_at"),
        tables.study.c.stopped_at.label("study_stopped_at"),
    )
    .join(tables.study, tables.study.c.id == tables.annotator.c.study_id)
    .where(tables.annotator.c.id == bindparam("key"))
)
_LOCK_FOR_UPDATE = _LOCK.with_for_update(of=tables.annotator, key_share=True)


def lock_annotator(connection: Connection, annotator_id: str, *, is_locked: bool = True) -> Annotator:
    """Returns an annotator, whom no other transaction changes until this one ends.

    Raises:
        NotFoundError: There is none of this id.
    """
    row = connection.execute(_LOCK_FOR_UPDATE if is_locked else _LOCK, {"key": annotator_id}).one_or_none()
    if row is None:
        raise NotFoundError("there is no such annotator. Come in by the study's link again.")
    study = make_study(
        row.study_id,
        row.study_settings,
        row.study_revision,
        row.study_status,
        row.study_created_at,
        row.study_stopped_at,
    )
    return Annotator(
        row.id, study, row.arm, row.stage, row.num_answered, row.num_assigned, row.completion_code, row.panel_key
    )


def set_stage(connection: Connection, annotator_id: str, stage: Stage) -> None:
    """Sends an annotator to a stage."""
    connection.execute(update(tables.annotator).where(tables.annotator.c.id == annotator_id).values(stage=stage))


class People:
    """What annotators do apart from answering queries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def join(self, study_id: str, panel: Mapping[str, str]) -> Annotator:
        """Makes an annotator, in the arm that has fewest. Somebody whose panel ids are known comes back.

        Raises:
            NotFoundError: There is no such study.
            ForbiddenError: The study has stopped or has enough people.
        """
        with self._database.write() as connection:
            study = read_study(connection, study_id, is_locked=True)  # counts and panel ids are exact
            kept = {name: panel[name] for name in study.config.panel.id_parameters if panel.get(name)}
            key = panel_key(study, kept)
            if key is not None:
                known = connection.execute(
                    select(tables.annotator.c.id).where(
                        tables.annotator.c.study_id == study_id, tables.annotator.c.panel_key == key
                    )
                ).scalar_one_or_none()
                if known is not None:
                    return lock_annotator(connection, known)
            if study.status == "stopped":
                raise ForbiddenError(f"study {study_id!r} has ended. Thank you for coming.")
            num_annotators = connection.execute(
                select(func.count())
                .select_from(tables.annotator)
                .where(tables.annotator.c.study_id == study_id, tables.annotator.c.stage.not_in(WITHOUT_ANSWERS))
            ).scalar_one()
            if study.config.max_annotators is not None and num_annotators >= study.config.max_annotators:
                raise ForbiddenError(f"study {study_id!r} has all the people it needs. Thank you for coming.")
            annotator_id = f"a-{secrets.token_hex(8)}"
            arm = self._pick_arm(connection, study, annotator_id)
            now = time.time()
            connection.execute(
                insert(tables.annotator).values(
                    id=annotator_id,
                    study_id=study_id,
                    arm=arm,
                    stage=first_stage(study.config),
                    num_answered=0,
                    num_assigned=0,
                    panel=kept,
                    panel_key=key,
                    completion_code="",
                    created_at=now,
                    seen_at=now,
                )
            )
            return lock_annotator(connection, annotator_id)

    def get(self, annotator_id: str) -> Annotator:
        """Returns an annotator.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._database.read() as connection:
            return lock_annotator(connection, annotator_id, is_locked=False)

    def all(self, study_id: str) -> list[Any]:
        """Returns the rows of a study's annotators, the first to come first."""
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(tables.annotator)
                    .where(tables.annotator.c.study_id == study_id)
                    .order_by(tables.annotator.c.created_at, tables.annotator.c.id)
                )
            )

    @repeated
    def consent(self, annotator_id: str, version: str, consent_hash: str, *, agrees: bool) -> Annotator:
        """Stores that a person agrees to a text, or ends their part if they do not.

        Raises:
            ConflictError: It is not the text that the study has now, or the person is past this stage.
        """
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            consent = annotator.study.config.consent
            _require_stage(annotator, "consent")
            assert consent is not None
            if (version, consent_hash) != (consent.version, consent.hash):
                raise ConflictError("the consent text has changed since it was shown. Read it again.")
            if agrees:
                stage = stage_after(annotator.study.config, "consent")
                values = {"consent_version": version, "consent_hash": consent_hash, "consent_at": time.time()}
                connection.execute(
                    update(tables.annotator).where(tables.annotator.c.id == annotator_id).values(**values)
                )
                set_stage(connection, annotator_id, stage)
            else:
                self._end(connection, annotator, "withdrawn", annotator.study.config.panel.code_no_consent)
            return lock_annotator(connection, annotator_id)

    @repeated
    def respond(self, annotator_id: str, which: str, answers: Mapping[str, Any]) -> Annotator:
        """Stores answers to the questions before or after the work.

        Raises:
            ConflictError: It is not the time for these questions.
            WrongError: An answer is missing or none of those allowed.
        """
        if which not in ("before", "after"):
            raise WrongError(f"there are no questions {which!r}. Give before or after.")
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            _require_stage(annotator, which)
            config = annotator.study.config
            questions = config.before if which == "before" else config.after
            checked = _check_responses(questions, answers)
            dialect = sqlite if self._database.is_sqlite else postgresql
            connection.execute(
                dialect.insert(tables.response)
                .values(annotator_id=annotator_id, which=which, answers=checked, answered_at=time.time())
                .on_conflict_do_update(
                    index_elements=["annotator_id", "which"], set_={"answers": checked, "answered_at": time.time()}
                )
            )
            is_out = any(
                isinstance(question, ChoiceQuestion) and checked.get(question.id) in question.screens_out
                for question in questions
            )
            if is_out:
                self._end(connection, annotator, "screened_out", config.panel.code_screened_out)
            elif stage_after(config, annotator.stage) == "done":
                self._end(connection, annotator, "done", config.panel.code_complete)
            else:
                set_stage(connection, annotator_id, stage_after(config, annotator.stage))
            return lock_annotator(connection, annotator_id)

    @repeated
    def finish(self, annotator_id: str) -> Completion:
        """Ends the work, or the whole; the code is stored before anybody is sent anywhere.

        Raises:
            ConflictError: There is something to do first.
        """
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            if annotator.stage == "work":
                release_desk(connection, annotator_id)
                if stage_after(annotator.study.config, "work") == "done":
                    self._end(connection, annotator, "done", annotator.study.config.panel.code_complete)
                else:
                    set_stage(connection, annotator_id, "after")
            elif annotator.stage not in ENDED:
                raise ConflictError(f"{annotator.stage} comes first.")
            return self._completion(connection, annotator_id)

    @repeated
    def withdraw(self, annotator_id: str, by: str) -> Completion:
        """Removes everything a person has said, and leaves a tombstone. Twice is as once."""
        with self._database.write() as connection:
            annotator = lock_annotator(connection, annotator_id)
            study_id = annotator.study.id
            dialect = sqlite if self._database.is_sqlite else postgresql
            given, held, num_answers = _count_places(connection, annotator_id)
            connection.execute(delete(tables.answer).where(tables.answer.c.annotator_id == annotator_id))
            connection.execute(delete(tables.assignment).where(tables.assignment.c.annotator_id == annotator_id))
            connection.execute(delete(tables.response).where(tables.response.c.annotator_id == annotator_id))
            for query_id in sorted(given | held):
                connection.execute(
                    update(tables.query)
                    .where(tables.query.c.study_id == study_id, tables.query.c.id == query_id)
                    .values(
                        num_answers=tables.query.c.num_answers - int(query_id in given),
                        num_taken=tables.query.c.num_taken - 1,
                    )
                )
            stone = dialect.insert(tables.tombstone).values(
                annotator_id=annotator_id,
                study_id=study_id,
                withdrawn_at=time.time(),
                withdrawn_by=by,
                num_answers=num_answers,
            )
            connection.execute(stone.on_conflict_do_nothing())
            connection.execute(
                update(tables.annotator).where(tables.annotator.c.id == annotator_id).values(num_answered=0, panel={})
            )
            self._end(connection, annotator, "withdrawn", annotator.study.config.panel.code_no_consent)
            if by != annotator_id:
                write_audit(connection, by, "annotator.withdraw", study_id, {"annotator": annotator_id})
            return self._completion(connection, annotator_id)

    def tombstones(self, study_id: str) -> list[Any]:
        """Returns who has withdrawn, when, and how many answers went."""
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(tables.tombstone)
                    .where(tables.tombstone.c.study_id == study_id)
                    .order_by(tables.tombstone.c.withdrawn_at)
                )
            )

    def responses(self, study_id: str) -> list[Any]:
        """Returns what the people of a study have said about themselves: annotator, which, answers, answered_at."""
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(tables.response)
                    .join(tables.annotator, tables.annotator.c.id == tables.response.c.annotator_id)
                    .where(tables.annotator.c.study_id == study_id)
                    .order_by(tables.response.c.annotator_id, tables.response.c.which)
                )
            )

    def forget_panels(self) -> int:
        """Deletes the panel ids of studies whose time of keeping them is over, and tells of how many people."""
        now, num_forgotten = time.time(), 0
        with self._database.write() as connection:
            for row in connection.execute(select(tables.study).where(tables.study.c.stopped_at.is_not(None))).all():
                study = to_study(row)
                days = study.config.retention_days
                if days is None or row.stopped_at + days * 86_400 > now:
                    continue
                people = connection.execute(
                    select(tables.annotator.c.id, tables.annotator.c.panel, tables.annotator.c.panel_key).where(
                        tables.annotator.c.study_id == study.id
                    )
                ).all()
                named = [person.id for person in people if person.panel or person.panel_key is not None]
                if not named:
                    continue
                connection.execute(
                    update(tables.annotator)
                    .where(tables.annotator.c.study_id == study.id)
                    .values(panel={}, panel_key=None)
                )
                num_forgotten += len(named)
                write_audit(connection, "service", "panel.forget", study.id, {"num_people": len(named)})
        return num_forgotten

    def completion(self, annotator_id: str) -> Completion:
        """Returns the code of somebody who is done, and where to go; empty before."""
        with self._database.read() as connection:
            return self._completion(connection, annotator_id, is_locked=False)

    # ---------------------------------------------------------------- parts

    def _pick_arm(self, connection: Connection, study: StudyRow, annotator_id: str) -> str:
        if not study.config.arms:
            return ""
        counts: dict[str, int] = dict(
            connection.execute(
                select(tables.annotator.c.arm, func.count())
                .where(tables.annotator.c.study_id == study.id, tables.annotator.c.stage.not_in(WITHOUT_ANSWERS))
                .group_by(tables.annotator.c.arm)
            )
            .tuples()
            .all()
        )
        return min(
            (arm.name for arm in study.config.arms),
            key=lambda name: (counts.get(name, 0), draw(annotator_id, "arm", name)),
        )

    def _end(self, connection: Connection, annotator: Annotator, stage: Stage, code: str) -> None:
        release_desk(connection, annotator.id)
        connection.execute(
            update(tables.annotator)
            .where(tables.annotator.c.id == annotator.id)
            .values(stage=stage, completion_code=code)
        )

    def _completion(self, connection: Connection, annotator_id: str, *, is_locked: bool = True) -> Completion:
        annotator = lock_annotator(connection, annotator_id, is_locked=is_locked)
        url = annotator.study.config.panel.redirect_url
        code = annotator.completion_code
        is_sent = annotator.stage in ENDED and bool(url) and bool(code)
        return Completion(annotator.stage, code, url.replace("{code}", code) if is_sent else "")


def release_desk(connection: Connection, annotator_id: str) -> None:
    """Gives back what a person has on the desk."""
    held = connection.execute(
        select(tables.assignment)
        .where(tables.assignment.c.annotator_id == annotator_id, tables.assignment.c.state == "leased")
        .order_by(tables.assignment.c.query_id)
        .with_for_update(skip_locked=True)  # who locks one of them is freeing it
    ).all()
    for row in held:
        connection.execute(update(tables.assignment).where(tables.assignment.c.id == row.id).values(state="expired"))
        if row.repeat == 0:
            connection.execute(
                update(tables.query)
                .where(tables.query.c.study_id == row.study_id, tables.query.c.id == row.query_id)
                .values(num_taken=tables.query.c.num_taken - 1)
            )


def _count_places(connection: Connection, annotator_id: str) -> tuple[set[str], set[str], int]:
    """Returns the queries that a person has answered and those they hold, repeats left out, and how many answers."""
    rows = connection.execute(
        select(tables.assignment.c.query_id, tables.assignment.c.state, tables.assignment.c.repeat)
        .where(tables.assignment.c.annotator_id == annotator_id)
        .with_for_update()
    ).all()
    given = {row.query_id for row in rows if row.state == "answered" and row.repeat == 0}
    held = {row.query_id for row in rows if row.state == "leased" and row.repeat == 0}
    return given, held, sum(row.state == "answered" for row in rows)


def panel_key(study: StudyRow, panel: Mapping[str, str]) -> str | None:
    """Returns a hash of the first parameter that a panel names people by; None where nothing names them."""
    parameters = study.config.panel.id_parameters
    if not parameters or not panel.get(parameters[0]):
        return None
    about = json.dumps([study.id, panel[parameters[0]]])
    return hashlib.sha256(about.encode()).hexdigest()


def _require_stage(annotator: Annotator, stage: str) -> None:
    if annotator.stage != stage:
        raise ConflictError(f"this is the time for {annotator.stage}, not for {stage}.")


def _check_responses(questions: Any, answers: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(answers) - {question.id for question in questions}
    if unknown:
        raise WrongError(f"there is no question {min(unknown)!r}.")
    checked = {}
    for question in questions:
        value = answers.get(question.id)
        if value in (None, ""):
            if question.is_required:
                raise WrongError(f"please answer: {question.text}")
            continue
        checked[question.id] = _check_response(question, value)
    return checked


def _check_response(question: Any, value: Any) -> Any:
    match question:
        case ChoiceQuestion() if value in question.options:
            return value
        case ScaleQuestion():
            if re.fullmatch(r"-?[0-9]{1,9}", str(value)) and question.low <= int(value) <= question.high:
                return int(value)
        case TextQuestion() if isinstance(value, str) and len(value) <= question.max_length:
            return value
    raise WrongError(f"{str(value)[:60]!r} is no answer to: {question.text}")
