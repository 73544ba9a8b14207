"""The database: what its addresses are, and a schema that is the same however it was made."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from label_stores import BACKENDS, make_url, run_threads, temporary_folder
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from themis_ray.errors import ConfigError
from themis_ray.labeling import tables
from themis_ray.labeling.database import Database, repeated
from themis_ray.labeling.store import LabelStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=BACKENDS)
def url(request):
    with temporary_folder() as folder:
        yield make_url(request.param, folder)


@pytest.fixture
def database(url):
    database = Database(url)
    database.migrate()
    yield database
    database.close()


def add_member(connection, member_id):
    values = {"id": member_id, "name": "Ada", "role": "admin", "created_at": 0.0, "is_active": True}
    connection.execute(tables.member.insert().values(values))


def members(database):
    with database.read() as connection:
        return set(connection.execute(select(tables.member.c.id)).scalars())


def test_migrations_make_what_the_tables_say(database):
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        assert set(inspect(connection).get_table_names()) == {*tables.metadata.tables, "alembic_version"}


def test_migrating_again_keeps_everything(database, url):
    with database.write() as connection:
        add_member(connection, "m-1")
    database.migrate()
    again = LabelStore(url)
    assert again.access.member("m-1").name == "Ada"
    again.close()


def test_a_database_of_the_first_schema_keeps_what_it_holds(url, monkeypatch):
    upgrade = command.upgrade
    first = Database(url)
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        first.migrate()
    times = dict.fromkeys(("created_at", "leased_until"), 1.0)
    names = {"study_id": "s", "query_id": "q", "annotator_id": "a"}
    rows = {
        tables.study: {"id": "s", "settings": '{"id": "s", "title": "S"}', "revision": 1, "status": "running"},
        tables.query: {"id": "q", "study_id": "s", "feedback": "rating", "kind": "ordinary", "overlap": 1, "place": 0.5}
        | {"left_segment": "x", "left_clip": "c", "left_num_frames": 2, "left_clip_fps": 5.0, "about": {}}
        | {"num_taken": 1, "num_answers": 1},
        tables.annotator: {"id": "a", "study_id": "s", "arm": "", "stage": "done", "num_answered": 1, "panel": {}}
        | {"num_assigned": 1, "completion_code": "", "seen_at": 1.0},
        tables.assignment: names | {"id": "d", "repeat": 0, "is_flipped": False, "number": 0, "state": "answered"},
        tables.answer: names
        | {"id": "w", "assignment_id": "d", "rating": 0.5, "is_undone": False, "answered_at": 2.0}
        | dict.fromkeys(("response_ms", "watched_ms", "num_replays", "speed", "overlay_ms"), 3),
    }
    with first.write() as connection:
        for table, values in rows.items():
            known = {name: value for name, value in times.items() if name in table.c}
            connection.execute(table.insert().values(known | values))
    first.close()
    store = LabelStore(url)
    (row,) = store.work.answers("s").answers
    assert (row.rating, row.overlay, row.overlay_ms) == (0.5, "", 3)
    assert store.studies.query("s", "q").left_overlays is None
    store.close()


def test_several_replicas_may_start_at_once(url):
    program = "import sys; from themis_ray.labeling.database import Database; Database(sys.argv[1]).migrate()"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, url], env=environ, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]


def test_several_stores_of_one_process_may_start_at_once(url):
    run_threads(4, lambda _: LabelStore(url).close())


def test_a_transaction_that_fails_leaves_nothing(database):
    with pytest.raises(IntegrityError), database.write() as connection:
        [add_member(connection, member_id) for member_id in ("m-1", "m-1")]
    with database.write() as connection:
        add_member(connection, "m-2")
    assert members(database) == {"m-2"}


def test_what_is_stored_is_not_in_the_message_of_an_error(database):
    for statement in (tables.member.insert(), text("INSERT INTO nowhere VALUES (:id, :name)")):
        values = {"id": "m-1", "name": "PROLIFIC_PID", "role": None}
        with pytest.raises(DBAPIError) as caught, database.write() as connection:
            connection.execute(statement, values)
        assert "PROLIFIC_PID" not in str(caught.value).partition("DETAIL")[0]


def test_a_reader_sees_one_state_and_holds_up_nobody(database):
    with database.read() as reader:
        assert reader.execute(select(tables.member.c.id)).all() == []
        with database.write() as writer:
            add_member(writer, "m-1")
        assert reader.execute(select(tables.member.c.id)).all() == []
    assert members(database) == {"m-1"}


def test_writers_of_many_threads_all_get_through(database):
    def work(number):
        for turn in range(5):
            with database.write() as connection:
                add_member(connection, f"m-{number}-{turn}")

    run_threads(20, work)
    assert len(members(database)) == 100


def test_transactions_that_wait_for_each_other_are_told_to_begin_again(database):
    """`repeated` is what the store does then; SQLite lets only one write at a time, so that it never happens."""
    for member_id in ("m-1", "m-2"):
        with database.write() as connection:
            add_member(connection, member_id)
    both = threading.Barrier(2)
    is_one_done = threading.Event()
    calls = []

    @repeated
    def rename(first, second):
        calls.append(first)
        if len(calls) > 2:  # the second try of the one that lost: it shall not meet the other again
            assert is_one_done.wait(30)
        with database.write() as connection:
            for place, member_id in enumerate((first, second)):
                statement = tables.member.update().where(tables.member.c.id == member_id)
                connection.execute(statement.values(name=tables.member.c.name + "x"))
                if place == 0 and len(calls) <= 2 and not database.is_sqlite:
                    both.wait(30)
        is_one_done.set()

    run_threads(2, lambda number: rename(*(("m-1", "m-2"), ("m-2", "m-1"))[number]))
    assert len(calls) == (2 if database.is_sqlite else 3)
    with database.read() as connection:
        assert set(connection.execute(select(tables.member.c.name)).scalars()) == {"Adaxx"}


def test_sqlite_flushes_every_commit_and_checks_references(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/labels.db")
    with database.read() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2}
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() >= 10_000
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "labels.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///labels.db",
        "mysql://root@localhost/labels",
        "postgres://ada@localhost/labels",
        "postgresql+asyncpg://ada@localhost/labels",
        "postgresql://ada@localhost:port/labels",
        "postgresql://ada@127.0.0.1:1/labels",
        "sqlite:////nowhere/at/all/labels.db",
        "sqlite:///{folder}",
        "sqlite:///{folder}/text.db",
        "sqlite:///{folder}/newer.db",
    ],
)
def test_an_address_that_is_wrong_is_told_in_one_line(url, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    if "newer" in url:
        newer = Database(f"sqlite:///{tmp_path}/newer.db")
        newer.migrate()
        with newer.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        newer.close()
    with pytest.raises(ConfigError, match="database") as caught:
        LabelStore(url.replace("{folder}", str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:se/cret@localhost:port/x",
        "postgresql://ada:secret@127.0.0.1:1/x",
        "postgresql://ada:se@cret@localhost:port/x",
        "postgresql://ada:se?cret@localhost:port/x",
        "postgresql://ada@localhost:port/x?password=secret",
        "postgresql://ada@127.0.0.1:1/x?password=secret",
        "ada:secret@localhost",
    ],
)
def test_a_password_is_not_in_the_message(url):
    with pytest.raises(ConfigError) as caught:
        LabelStore(url)
    assert "cret" not in str(caught.value)
