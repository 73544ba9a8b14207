"""The database: an engine made for many short transactions, and the schema brought up to date."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from themis_ray.errors import ConfigError

__all__ = ["Database"]

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 20_000
POOL_SIZE = 16
# Any number that no other program takes: replicas that start together migrate one after another.
MIGRATION_LOCK, ANSWER_LOCK = 7_461_001, 7_461_002


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
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise ConfigError(f"database_url {parsed.drivername!r} is not supported. Give sqlite or postgresql.")
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.engine = (
                _sqlite_engine(parsed)
                if self.is_sqlite
                else create_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_pre_ping=True)
            )
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(f"database_url {url!r} is no address of a database ({error}).") from error
        except ImportError as error:
            raise ConfigError(
                f"database_url needs a driver that is not here ({error}). pip install 'themis-ray[postgres]'."
            ) from error
        self._write_lock = threading.Lock()

    def migrate(self) -> None:
        """Brings the schema to its newest version; does nothing where it is.

        Raises:
            ConfigError: The database cannot be reached.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self._write_lock, self.engine.execution_options(writes=True).begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise ConfigError(f"the database cannot be prepared: {error.__cause__ or error}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing and sees one state of the data."""
        with self.engine.begin() as connection:
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

    def lock_answers(self, connection: Connection) -> None:
        """Lets answers get their numbers in the order in which they become visible, so that a cursor misses none."""
        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ANSWER_LOCK})

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def _sqlite_engine(url: Any) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise ConfigError("database_url names no file. Give sqlite:///FILE; a database in memory would lose answers.")
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent by `_begin`
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
