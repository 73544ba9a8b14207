"""The database: an engine made for many short transactions, and the schema brought up to date."""

from __future__ import annotations

import functools
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from themis_ray.errors import ConfigError

__all__ = ["Database", "repeated"]

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 20_000
POOL_SIZE = 8
# What people say about themselves is in parameters, and errors are logged.
ENGINE: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE, "hide_parameters": True}
WAL_TRIES, WAL_PAUSE_S = 200, 0.02
# Any number that no other program takes: replicas that start together migrate one after another.
MIGRATION_LOCK, ANSWER_LOCK = 7_461_001, 7_461_002
DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
PASSING_ERRORS = ("40001", "40P01")  # Postgres' serialization_failure and deadlock_detected
NUM_ATTEMPTS = 6
_alembic_lock = threading.Lock()  # alembic keeps what it does in global variables


def repeated(method: Callable[P, T]) -> Callable[P, T]:
    """Calls again what Postgres gave up because two transactions waited for each other; nothing of it was stored."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(1, NUM_ATTEMPTS):
            try:
                return method(*args, **kwargs)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in PASSING_ERRORS:
                    raise
            time.sleep(0.005 * attempt)
        return method(*args, **kwargs)

    return call


class Database:
    """SQLite or Postgres behind two context managers, `read()` and `write()`, each one transaction.

    SQLite runs with a write-ahead log and flushes it to the disk with every commit: what was acknowledged survives a
    power cut. A write transaction takes the lock when it begins, so that it never fails half-way; the threads of a
    process queue for it in memory, which is fairer and faster than SQLite's own waiting.

    Args:
        url: An address of SQLAlchemy, such as `sqlite:///labelling.db` or `postgresql+psycopg://user@host/name`.

    Raises:
        ConfigError: The address is wrong, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            if parsed.drivername not in DRIVERS:
                raise ConfigError(
                    f"database_url {parsed.drivername!r} is not supported. Give sqlite:///FILE or "
                    "postgresql+psycopg://USER@HOST/NAME."
                )
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.engine = (
                _sqlite_engine(parsed) if self.is_sqlite else create_engine(parsed, pool_pre_ping=True, **ENGINE)
            )
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ConfigError(
                f"database_url {_without_password(url)!r} is no address of a database. Give sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME."
            ) from error
        except ImportError as error:
            raise ConfigError(
                f"database_url needs a driver that is not here ({error}). pip install 'themis-ray[postgres]'."
            ) from error
        self._write_lock = threading.Lock()
        self._reader = (
            self.engine
            if self.is_sqlite
            else self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )

    def migrate(self) -> None:
        """Brings the schema to its newest version; does nothing where it is.

        Raises:
            ConfigError: The database cannot be reached, is none, or was made by a newer version.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with _alembic_lock, self._write_lock, self.engine.execution_options(writes=True).begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (SQLAlchemyError, sqlite3.Error, CommandError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            address = _without_password(self.engine.url.render_as_string())
            raise ConfigError(f"the database {address} cannot be prepared: {reason}. Check database_url.") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing and sees one state of the data."""
        with self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or undone by an exception."""
        if self.is_sqlite:
            with self._write_lock, self.engine.execution_options(writes=True).begin() as connection:
                yield connection
        else:
            with self.engine.begin() as connection:
                yield connection

    def lock_answers(self, connection: Connection, study_id: str) -> None:
        """Lets answers of a study get numbers in the order in which they become visible, so that a cursor misses none.

        The lock is held until the transaction ends. Who takes it last of all waits for nothing while holding it.
        """
        if not self.is_sqlite:
            keys = {"key": ANSWER_LOCK, "study": zlib.crc32(study_id.encode()) - 2**31}
            connection.execute(text("SELECT pg_advisory_xact_lock(:key, :study)"), keys)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def _without_password(url: str) -> str:
    """Returns an address without who signs in, up to the last @, and without its parameters, such as ?password=."""
    return re.sub(r"^(\w[\w+]*:/+)?.*@", r"\1***@", url, flags=re.DOTALL).partition("?")[0]


def _write_ahead(cursor: Any) -> None:
    """Turns the write-ahead log on. Of two processes that do so to a new file at once, SQLite lets neither wait."""
    for _ in range(WAL_TRIES):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(WAL_PAUSE_S)
        else:
            return
    cursor.execute("PRAGMA journal_mode=WAL")


def _sqlite_engine(url: Any) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise ConfigError("database_url names no file. Give sqlite:///FILE; a database in memory would lose answers.")
    engine = create_engine(url, connect_args={"check_same_thread": False}, **ENGINE)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent by `_begin`
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
