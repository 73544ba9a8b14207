"""`themis serve` as a process that can be asked what it costs, and killed."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.http_client import Connection, LostConnectionError
from benchmarks.peers import OUT, ROOT

__all__ = ["HOST", "START_TIMEOUT_S", "Service", "kill_process"]

START_TIMEOUT_S = 300.0
HOST = "127.0.0.1"
# What is in the command line of a process of the service, and what it is.
ROLES = {"ray::ServeReplica": "replicas", "bin/haproxy": "haproxy", "labeling.clip_server": "clip server"}


class Service:
    """`themis serve` with a folder of its own."""

    def __init__(self, folder: Path, *, num_replicas: int = 2, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port, self.clip_port = _two_ports()
        self.log = OUT / "serve" / "service.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self._options = ["--no-example", "--replicas", str(num_replicas), "--joins-per-minute", "1000000", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0

    def start(self) -> None:
        """Starts the service and returns when it is ready."""
        started = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "themis_ray.cli",
            "serve",
            "--data",
            str(self.folder),
            "--port",
            str(self.port),
        ]
        with self.log.open("a") as output:
            self._process = subprocess.Popen(
                [*command, "--clip-port", str(self.clip_port), *self._options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not asyncio.run(self._is_ready()):
            if self._process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                self.kill()
                raise RuntimeError(f"the service did not start; see {self.log}")
            time.sleep(0.25)
        self.start_s = time.monotonic() - started

    async def _is_ready(self) -> bool:
        connection = Connection(HOST, self.port, timeout_s=5)
        try:
            return (await connection.request("GET", "/readyz")).status == 200
        except LostConnectionError:
            return False
        finally:
            connection.close()

    def replicas(self) -> list[psutil.Process]:
        """Returns the processes that answer."""
        return [process for process in self._tree() if _title(process).startswith("ray::ServeReplica")]

    def cpu_s(self) -> Counter[str]:
        """Returns the CPU seconds of the service's processes so far, by what they are."""
        seconds: Counter[str] = Counter()
        for process in self._tree():
            title = _title(process)
            role = next((role for sign, role in ROLES.items() if sign in title), "ray and the rest")
            with suppress(psutil.Error):
                seconds[role] += sum(process.cpu_times()[:2])
        return seconds

    def kill(self) -> int:
        """Kills every process of the service at once, and returns how many there were."""
        tree = self._tree()
        for process in tree:
            kill_process(process)
        if self._process is not None:
            self._process.wait()
        for process in tree[1:]:
            _wait(process)
        return len(tree)

    def stop(self) -> None:
        """Ends the service as Ctrl-C does; what is left after that is killed."""
        tree = self._tree()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        for process in tree:
            kill_process(process)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_process(process: psutil.Process) -> None:
    """Kills a process that may have ended by itself."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _wait(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.wait(10)


def _two_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
