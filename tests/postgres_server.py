"""A Postgres server of Debian's package for tests, in a folder of its own, without any outside account."""

import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
import pytest

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
START_TIMEOUT_S = 60.0
SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


def make_database() -> str:
    """Returns the address of a new, empty database; without Postgres the test is skipped, and in CI it fails."""
    if not PROGRAMS:
        give_up = pytest.fail if "CI" in os.environ else pytest.skip
        give_up("Postgres is not installed: apt-get install postgresql")
    server = start_server()
    name = f"db_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{server}/{name}"


@functools.cache
def start_server() -> str:
    """Starts the one server of this process, which ends with it, and returns its address without a database."""
    folder = Path(tempfile.mkdtemp(prefix="themis-postgres-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    other_user = {}
    if os.geteuid() == 0:  # which Postgres refuses to be
        shutil.chown(folder, "postgres", "postgres")
        other_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder.chmod(0o700)
    programs, data = PROGRAMS[-1].parent, folder / "data"
    options = ["-D", data, "-U", "themis", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"]
    made = subprocess.run([programs / "initdb", *options], capture_output=True, text=True, cwd=folder, **other_user)
    assert made.returncode == 0, made.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [flag for name, value in SETTINGS.items() for flag in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port), *flags],
            stdout=log,
            stderr=log,
            cwd=folder,
            **other_user,
        )
    atexit.register(stop_server, server)
    address, deadline = f"postgresql://themis@127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(f"{address}/postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        else:
            return address


def stop_server(server: subprocess.Popen) -> None:
    server.send_signal(2)  # fast shutdown: connections are ended
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
