"""Studies, people and answers for tests of the label store, and what has to be true of its counts at any time."""

import functools
import hashlib
import itertools
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from postgres_server import make_database
from sqlalchemy import Row, Table, select

from themis_ray.data import Choice
from themis_ray.labeling import tables
from themis_ray.labeling.store import Assignment, LabelStore, Receipt, access, answering, assigning, people, studies
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import NewAnswer, NewQuery

BACKENDS = ("sqlite", "postgres")
LEASE_S = 60.0
QUESTIONS = [
    {"kind": "choice", "id": "age", "text": "Of age?", "options": ["yes", "no"], "screens_out": ["no"]},
    {"kind": "scale", "id": "games", "text": "How often?", "low": 1, "high": 5},
    {"kind": "text", "id": "words", "text": "Anything else?", "max_length": 10},
]
CLIP_NAMES = [hashlib.md5(str(number).encode()).hexdigest() + ".webm" for number in range(2)]
_numbers = itertools.count()


def make_url(backend: str, folder: Path) -> str:
    """Returns the address of an empty database."""
    return make_database() if backend == "postgres" else f"sqlite:///{folder}/{uuid.uuid4().hex}.db"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in memory where there is such a thing, for databases that are written very often."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="themis-store-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@contextmanager
def open_store(backend: str) -> Iterator[LabelStore]:
    """An empty store."""
    with temporary_folder() as folder:
        store = LabelStore(make_url(backend, folder))
        try:
            yield store
        finally:
            store.close()


@pytest.fixture(scope="module", params=BACKENDS)
def each_store(request: pytest.FixtureRequest) -> Iterator[LabelStore]:
    """An empty store of each kind; `store = each_store` in a module of tests."""
    with open_store(request.param) as store:
        yield store


def clear(store: LabelStore) -> None:
    """Makes a store empty."""
    with store.database.write() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(table.delete())


class Clock:
    """What the store takes the time from; `advance` lets it pass at once."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def time(self) -> float:
        return time.time() + self.passed_s

    def advance(self, seconds: float) -> None:
        self.passed_s += seconds

    @contextmanager
    def used(self) -> Iterator["Clock"]:
        """Gives this clock to the whole store."""
        with (
            mock.patch.object(access, "time", self),
            mock.patch.object(answering, "time", self),
            mock.patch.object(assigning, "time", self),
            mock.patch.object(people, "time", self),
            mock.patch.object(studies, "time", self),
        ):
            yield self


@pytest.fixture
def used_clock() -> Iterator[Clock]:
    """A clock that the store takes the time from; `clock = used_clock` in a module of tests."""
    with Clock().used() as clock:
        yield clock


class Ids:
    """In place of `secrets`: ids that are the same in every run."""

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def token_hex(self, num_bytes: int) -> str:
        return f"{next(self.numbers):0{2 * num_bytes}x}"

    @contextmanager
    def used(self) -> Iterator["Ids"]:
        """Gives these ids to people and assignments."""
        with mock.patch.object(people, "secrets", self), mock.patch.object(assigning, "secrets", self):
            yield self


def new_query(name: str | int, **changes) -> NewQuery:
    """A query whose segments are called left-... and right-..., so that a test sees where they are shown."""
    left, right = (
        {"segment_id": f"{side}-{name}", "clip": clip, "num_frames": 4}
        for side, clip in zip(("left", "right"), CLIP_NAMES, strict=True)
    )
    return NewQuery.model_validate({"id": f"q-{name}", "left": left, "right": right, **changes})


def make_study(
    store: LabelStore,
    num_queries: int = 5,
    *,
    num_gold: int = 0,
    num_practice: int = 0,
    study_id: str | None = None,
    **settings,
) -> str:
    """Makes a study with queries and returns its id. `num_practice` is both asked for and there."""
    study_id = study_id or f"study-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    config = StudyConfig(id=study_id, title="Walkers", num_practice=num_practice, **settings)
    store.studies.create(config, "tests")
    for name in CLIP_NAMES:
        store.studies.add_clip(study_id, name, 10)
    changes = {"feedback": config.feedback} | ({} if config.feedback == "pairwise" else {"right": None})
    gold = {} if config.feedback != "pairwise" else {"gold_choice": Choice.LEFT}
    queries = [
        *(new_query(number, **changes) for number in range(num_queries)),
        *(new_query(f"gold-{number}", kind="gold", **changes, **gold) for number in range(num_gold)),
        *(new_query(f"practice-{number}", kind="practice", **changes, **gold) for number in range(num_practice)),
    ]
    if queries:
        assert store.studies.add_queries(study_id, queries, "tests") == len(queries)
    return study_id


def join(store: LabelStore, study_id: str, **panel: str) -> str:
    """Lets somebody come and returns who they are."""
    return store.people.join(study_id, panel).id


def screen_choice(assignment: Assignment, choice: Choice = Choice.LEFT) -> Choice:
    """Returns what to choose on the screen, so that `choice` is said about the query."""
    is_flipped = assignment.left.segment_id.startswith("right-")
    mirrored = {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}
    return mirrored.get(choice, choice) if is_flipped else choice


def new_answer(assignment_id: str, **changes) -> NewAnswer:
    """An answer with an id of its own."""
    values = {"answer_id": str(uuid.uuid4()), "assignment_id": assignment_id, "response_ms": 900, "watched_ms": 800}
    return NewAnswer.model_validate(
        values | ({} if {"rating", "steps", "actions"} & set(changes) else {"choice": "left"}) | changes
    )


def answer(store: LabelStore, person: str, assignment: Assignment, choice: Choice = Choice.LEFT, **changes) -> Receipt:
    """Answers what is on a desk; `choice` is by the query."""
    given = {"choice": screen_choice(assignment, choice)} if assignment.feedback == "pairwise" else {}
    return store.work.answer(person, new_answer(assignment.id, **given | changes))


def answer_one(store: LabelStore, person: str, choice: Choice = Choice.LEFT, **changes) -> str:
    """Answers what is first on the desk and returns the id of the answer."""
    answer_id = str(uuid.uuid4())
    assignment = store.work.desk(person, 1).assignments[0]
    assert not answer(store, person, assignment, choice, answer_id=answer_id, **{"count": 1} | changes).is_duplicate
    return answer_id


def answer_all(store: LabelStore, person: str, *, count: int = 3, limit: int = 10_000) -> list[str]:
    """Answers as long as there is something to answer and returns the ids of the answers."""
    answer_ids = []
    desk = store.work.desk(person, count)
    while desk.assignments and len(answer_ids) < limit:
        answer_ids.append(str(uuid.uuid4()))
        desk = answer(store, person, desk.assignments[0], answer_id=answer_ids[-1], count=count).desk
    return answer_ids


def rows_of(store: LabelStore, table: Table, **values) -> Sequence[Row]:
    """Returns the rows of a table that have these values."""
    with store.database.read() as connection:
        return connection.execute(select(table).where(*(table.c[name] == values[name] for name in values))).all()


def check_counts(store: LabelStore, study_id: str) -> None:
    """Checks in one transaction everything that has to be true of a study at any time."""
    with store.database.read() as connection:
        rows = {
            table.name: connection.execute(select(table).where(table.c.study_id == study_id)).all()
            for table in (tables.query, tables.assignment, tables.answer, tables.annotator)
        }
    assignments = {row.id: row for row in rows["assignment"]}
    valid = [row for row in rows["answer"] if not row.is_undone]
    kinds = {row.id: row.kind for row in rows["query"]}
    num_answers = Counter(row.query_id for row in valid if assignments[row.assignment_id].repeat == 0)
    num_leased = Counter(row.query_id for row in rows["assignment"] if row.state == "leased" and row.repeat == 0)
    for query in rows["query"]:
        assert query.num_answers == num_answers[query.id], query.id
        assert query.num_taken == num_answers[query.id] + num_leased[query.id], query.id
        assert query.kind != "ordinary" or query.num_taken <= query.overlap, f"{query.id} is over-collected"
    per_assignment = Counter(row.assignment_id for row in valid)
    for row in rows["assignment"]:
        assert per_assignment[row.id] == (row.state == "answered"), f"{row.state}: {per_assignment[row.id]} answers"
    for (person, query, repeat), number in Counter(
        (row.annotator_id, row.query_id, assignments[row.assignment_id].repeat) for row in valid
    ).items():
        assert number == 1, f"{person} answered {query} (repeat {repeat}) {number} times"
    stages = {row.id: row.stage for row in rows["annotator"]}
    assert {stages[row.annotator_id] for row in rows["assignment"] if row.state == "leased"} <= {"practice", "work"}
    num_by_person = Counter(row.annotator_id for row in valid if kinds[row.query_id] != "practice")
    for person in rows["annotator"]:
        assert person.num_answered == num_by_person[person.id]


def run_threads(num_threads: int, target) -> None:
    """Runs `target(number)` in threads that begin together, and raises the first error of any."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(num_threads)

    def call(number: int) -> None:
        try:
            barrier.wait(60)
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=functools.partial(call, number), daemon=True) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def work_in_threads(url: str, study_id: str, num_threads: int) -> None:
    """Opens a store and lets new people answer everything that is there; run by processes of their own."""
    store = LabelStore(url)
    run_threads(num_threads, lambda _: answer_all(store, join(store, study_id), count=2))
    store.close()


def answer_and_print(url: str, study_id: str) -> None:
    """Answers for ever and prints the id of every answer that was acknowledged; run by a process to be killed."""
    store = LabelStore(url)
    while True:
        person = join(store, study_id)
        for _ in range(20):
            print(answer_one(store, person, count=3), flush=True)
