"""Answers per second against Label Studio: `python -m benchmarks.peer_labels`, or `make bench-peer-labels`.

Both services run as their own command starts them, with SQLite, one after the other on the same machine. The same
number of keep-alive connections send one answer after another for the same time. Label Studio is sent annotations,
`POST /api/tasks/ID/annotations/`, for pairs of videos; ours `POST /api/v1/answers`, each of which also leases the
annotator's next query and returns it, for which Label Studio would need a second call.

Label Studio gets a virtual environment of its own under `.venvs`. `label-studio start` is what its documentation gives
for one machine; it is Django's development server, and a uwsgi set-up of its own would be faster. The result is
`benchmarks/out/peer_labels.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.http_client import Connection, LostConnectionError, Reply
from benchmarks.peers import OUT, ensure_venv, write_json
from benchmarks.serve.ledger import check_ledger
from benchmarks.serve.load import quantile
from benchmarks.serve.service import Service
from benchmarks.serve.study import API, STUDY, make_clips, make_study

TOKEN = "0123456789abcdef0123456789abcdef01234567"
LABEL_CONFIG = """
<View>
  <Video name="left" value="$left"/>
  <Video name="right" value="$right"/>
  <Choices name="choice" toName="left" choice="single">
    <Choice value="left"/><Choice value="right"/><Choice value="equal"/><Choice value="skip"/>
  </Choices>
</View>
"""
NUM_TASKS = 5000
# Places for answers are made for so many a second; more than two cores can give.
MAX_OUR_RPS = 1500
PEOPLE_PER_CONNECTION = 20
START_TIMEOUT_S = 900.0
Ask = Callable[[], Awaitable[Reply]]


async def closed_loop(asks: list[Ask], seconds: float) -> dict[str, Any]:
    """Every connection asks again as soon as it has its answer; what is refused counts as an error."""
    until = time.perf_counter() + seconds
    times: list[float] = []
    statuses: Counter[str] = Counter()

    async def loop(ask: Ask) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            try:
                reply = await ask()
            except LostConnectionError:
                statuses["lost connection"] += 1
                continue
            statuses[str(reply.status)] += 1
            if reply.status < 300:
                times.append(time.perf_counter() - started)

    await asyncio.gather(*map(loop, asks))
    times.sort()
    return {
        "rps": len(times) / max(seconds, 1e-9),
        "p50_ms": quantile(times, 0.5),
        "p95_ms": quantile(times, 0.95),
        "p99_ms": quantile(times, 0.99),
        "errors": sum(number for status, number in statuses.items() if not status.startswith("2")),
        "answers": len(times),
        "statuses": dict(statuses),
    }


# ---------------------------------------------------------------- Label Studio


class LabelStudio:
    """Label Studio with a fresh SQLite database, ended with everything that it started."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        python = ensure_venv("label-studio", START_TIMEOUT_S)
        command = [python.with_name("label-studio"), "start", "--no-browser", "--data-dir", folder]
        command += ["--port", str(port), "--internal-host", "127.0.0.1", "--log-level", "ERROR"]
        command += ["--username", "bench@example.org", "--password", uuid.uuid4().hex, "--user-token", TOKEN]
        environment = os.environ | {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False", "SENTRY_DSN": ""}
        self.log = OUT / "peers" / "label-studio.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                [*map(str, command), "--enable-legacy-api-token"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def wait(self) -> str:
        """Returns the version when it answers; the first start migrates for minutes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        connection = Connection("127.0.0.1", self.port)
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return str((await connection.request("GET", "/api/version")).json()["release"])
            except (LostConnectionError, ValueError, KeyError):
                await asyncio.sleep(1.0)
        raise RuntimeError(f"Label Studio did not start; see {self.log}")

    async def measure(self, num_connections: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
        """Makes a project with pairs and sends annotations."""
        headers = {"Authorization": f"Token {TOKEN}"}
        connection = Connection("127.0.0.1", self.port, timeout_s=120)
        project = {"title": "bench", "label_config": LABEL_CONFIG, "maximum_annotations": 1000}
        reply = await connection.request("POST", "/api/projects/", headers=headers, content=project)
        number = reply.json()["id"]
        pairs = [{"left": f"http://x/{n}a.webm", "right": f"http://x/{n}b.webm"} for n in range(NUM_TASKS)]
        path = f"/api/projects/{number}/import"
        reply = await connection.request("POST", path, headers=headers, content=pairs)
        if reply.status != 201 or reply.json()["task_count"] != NUM_TASKS:
            raise RuntimeError(f"Label Studio imported nothing: {reply.status} {reply.body[:200]!r}")
        tasks = iter(range(10**9))
        choices = {"from_name": "choice", "to_name": "left", "type": "choices", "value": {"choices": ["left"]}}

        def asker() -> Ask:
            own = Connection("127.0.0.1", self.port)

            async def ask() -> Reply:
                path = f"/api/tasks/{1 + next(tasks) % NUM_TASKS}/annotations/"
                return await own.request("POST", path, headers=headers, content={"result": [choices], "lead_time": 3.0})

            return ask

        asks = [asker() for _ in range(num_connections)]
        warm = await closed_loop(asks, warm_up_s)
        figures = await closed_loop(asks, seconds)
        with sqlite3.connect(self.folder / "label_studio.sqlite3") as database:
            (stored,) = database.execute("SELECT COUNT(*) FROM task_completion").fetchone()
        return figures | {"lost": max(0, warm["answers"] + figures["answers"] - stored)}

    def stop(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def measure_label_studio(num_connections: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        studio = LabelStudio(Path(folder), port)
        try:
            version = asyncio.run(studio.wait())
            return asyncio.run(studio.measure(num_connections, seconds, warm_up_s)) | {"version": version}
        finally:
            studio.stop()


# ---------------------------------------------------------------- ours


class OurAnnotator:
    """An annotator, who answers without thought."""

    def __init__(self, connection: Connection, invitation: str) -> None:
        self._connection = connection
        self._invitation = invitation
        self._headers: dict[str, str] = {}
        self._assignments: list[dict[str, Any]] = []
        self.acknowledged: list[tuple[str, str, str]] = []

    async def join(self) -> None:
        """Comes to the study and gets a first query."""
        path = f"{API}/studies/{STUDY}/join"
        reply = await self._connection.request("POST", path, content={"invitation": self._invitation})
        self._headers = {
            "Cookie": reply.headers["set-cookie"].split(";")[0],
            "X-CSRF-Token": reply.json()["csrf_token"],
        }
        await self._look()

    async def _look(self) -> None:
        reply = await self._connection.request("GET", f"{API}/assignments?count=1", headers=self._headers)
        self._assignments = reply.json()["assignments"]

    async def answer(self) -> Reply:
        """Sends an answer, which brings the next query."""
        answer = {
            "answer_id": str(uuid.uuid4()),
            "assignment_id": self._assignments[0]["assignment_id"],
            "choice": "left",
            "response_ms": 3000,
            "count": 1,
        }
        reply = await self._connection.request("POST", f"{API}/answers", headers=self._headers, content=answer)
        if reply.status < 300:
            self.acknowledged.append((answer["answer_id"], answer["assignment_id"], "left"))
            self._assignments = reply.json()["work"]["assignments"]
        else:
            await self._look()
        return reply


async def load_ours(
    port: int, invitation: str, num_connections: int, seconds: float, warm_up_s: float
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    connections = [Connection("127.0.0.1", port) for _ in range(num_connections)]
    # The service refuses more than 240 answers a minute of one person, so many take turns on a connection.
    groups = [
        [OurAnnotator(connection, invitation) for _ in range(PEOPLE_PER_CONNECTION)] for connection in connections
    ]
    for annotator in itertools.chain(*groups):
        await annotator.join()
    turns = [itertools.cycle(group) for group in groups]
    senders = [partial(_answer_in_turn, turn) for turn in turns]
    await closed_loop(senders, warm_up_s)
    figures = await closed_loop(senders, seconds)
    return figures, [row for annotator in itertools.chain(*groups) for row in annotator.acknowledged]


async def _answer_in_turn(turn: Iterator[OurAnnotator]) -> Reply:
    return await next(turn).answer()


def measure_ours(
    console: Console, num_connections: int, seconds: float, warm_up_s: float, num_replicas: int
) -> dict[str, Any]:
    clips = make_clips(console)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        service = Service(folder, num_replicas=num_replicas)
        try:
            service.start()
            num_places = int((seconds + warm_up_s) * MAX_OUR_RPS)
            study = make_study(service, clips, num_places, overlap=5, per_annotator=100_000)
            figures, acknowledged = asyncio.run(
                load_ours(service.port, study.invitation, num_connections, seconds, warm_up_s)
            )
        finally:
            service.stop()
        ledger = check_ledger(folder / "labelling.db", acknowledged)
    return figures | {key: ledger[key] for key in ("lost", "doubled", "over_collected")}


# ---------------------------------------------------------------- the command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_labels", description=__doc__.split("\n")[0])
    parser.add_argument("--connections", type=int, default=20, help="connections at once (default 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each measurement (default 60)")
    parser.add_argument("--warm-up-s", type=float, default=5.0, help="seconds before it (default 5)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of ours (default 2)")
    parser.add_argument("--systems", default="ours,label_studio", help="which to measure (default both)")
    parser.add_argument("--out", type=Path, default=OUT / "peer_labels.json", help="file of the result")
    arguments = parser.parse_args()
    arguments.systems = arguments.systems.split(",")
    unknown = set(arguments.systems) - {"ours", "label_studio"}
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}. Known: ours, label_studio")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    console = Console()
    found: dict[str, dict[str, Any]] = {}
    load_before = os.getloadavg()[0]
    if "label_studio" in arguments.systems:
        console.print("Label Studio: its first start migrates for minutes", highlight=False)
        found["label_studio"] = measure_label_studio(arguments.connections, arguments.seconds, arguments.warm_up_s)
    if "ours" in arguments.systems:
        found["ours"] = measure_ours(
            console, arguments.connections, arguments.seconds, arguments.warm_up_s, arguments.replicas
        )
    report: dict[str, Any] = {"connections": arguments.connections, "seconds": arguments.seconds}
    for name, figures in found.items():
        report |= {f"{name}_rps": figures["rps"], f"{name}_p95_ms": figures["p95_ms"]}
    if len(found) == 2:
        report["ours_vs_label_studio_rps"] = found["ours"]["rps"] / max(found["label_studio"]["rps"], 1e-9)
    report |= {
        "systems": found,
        "load_before": load_before,
        "machine": {"platform": platform.platform(), "num_cpus": os.cpu_count(), "python": platform.python_version()},
    }
    write_json(arguments.out, json.loads(json.dumps(report)))
    table = Table(title=f"{arguments.connections} connections, {arguments.seconds:.0f} s", title_justify="left")
    for heading in ("system", "answers/s", "p50 ms", "p95 ms", "p99 ms", "errors", "lost"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for name, figures in found.items():
        times = [f"{figures[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
        table.add_row(name, f"{figures['rps']:.0f}", *times, str(figures["errors"]), str(figures["lost"]))
    console.print(table)
    console.print(f"written: {arguments.out}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
