"""The labelling service under load: `python -m benchmarks.serve`, or `make bench-serve` and `make bench-serve-chaos`.

`themis serve` is started as a user starts it, with a study of really encoded clips. Annotators that are programs then
come to it over HTTP: each joins, fetches the clips of what it has on its desk, thinks, answers, and so on until it has
given its share of answers. The load generator is a process of its own on the same cores. What is measured is the time
of each request at the generator, by route.

Every answer that was acknowledged is written into a ledger, which is compared with the database when all is over:

    lost            acknowledged, and not in the database as it was given
    doubled         more than one answer of an annotator to one assignment or query
    over_collected  answers to queries beyond the overlap

With `--chaos` a replica is killed (kill -9) every 30 s, and once, half-way, all processes of the service, which is then
started again. Annotators send an answer that was not acknowledged again, with the same id, as the page does.

The results are `benchmarks/out/serve.json` and `benchmarks/out/serve_chaos.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.http_client import Connection, LostConnectionError, Reply
from benchmarks.peers import OUT, ROOT, write_json

API = "/api/v1"
STUDY = "bench"
NUM_CLIPS = 300
NUM_FRAMES = 50
OVERLAP = 5
# Somewhat more places than answers: with exactly as many, the last annotators find only queries that they have had.
SPARE = 1.05
KILL_EVERY_S = 30.0
START_TIMEOUT_S = 300.0
MAX_RETRY_S = 4.0
REPORT_EVERY_S = 15.0
CHOICES = ("left", "right", "equal", "skip")
SWAPPED = {"left": "right", "right": "left"}
HOST = "127.0.0.1"
# What is in the command line of a process of the service, and what it is.
ROLES = {"ray::ServeReplica": "replicas", "bin/haproxy": "haproxy", "labeling.clip_server": "clip server"}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of sorted seconds, in milliseconds; 0 where there is none."""
    return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


# ---------------------------------------------------------------- the service


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
            _kill(process)
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
            _kill(process)
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


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _wait(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.wait(10)


def _two_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


# ---------------------------------------------------------------- the study


@dataclass(frozen=True)
class Study:
    """A study that annotators can come to."""

    id: str
    invitation: str
    num_queries: int
    num_clips: int
    clip_kib: float


def draw_clip(number: int, folder: str) -> str:
    """Encodes a clip: a ball that bounces over a pattern, 210 x 160 enlarged twice, as of an Atari game."""
    from themis_ray.clips import upscale, write_clip

    rng = np.random.default_rng(number)
    background = rng.integers(0, 90, (14, 10, 3), np.uint8).repeat(15, 0).repeat(16, 1)
    position, speed = rng.uniform(30, 130, 2), rng.uniform(-6, 6, 2)
    colour = rng.integers(120, 255, 3, np.uint8)
    frames = np.repeat(background[None], NUM_FRAMES, 0)
    for frame in frames:
        position += speed
        speed = np.where((position < 10) | (position > np.array([195, 145])), -speed, speed)
        row, column = position.astype(int)
        frame[max(row - 6, 0) : row + 6, max(column - 6, 0) : column + 6] = colour
    return write_clip(upscale(frames), folder).name


def make_clips(console: Console) -> list[Path]:
    """Returns the clips, which are encoded once and kept."""
    folder = OUT / "serve" / "clips"
    known = sorted(folder.glob("*.webm"))
    if len(known) == NUM_CLIPS:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(1) as pool:
        made = pool.map(draw_clip, range(NUM_CLIPS), itertools.repeat(str(folder)))
        for _ in track(made, "clips", total=NUM_CLIPS, console=console):
            pass
    return sorted(folder.glob("*.webm"))


def make_study(service: Service, clips: Sequence[Path], num_answers: int, *, overlap: int, per_annotator: int) -> Study:
    """Makes a study over the API, as an admin: its clips, its queries, the link for annotators."""
    return asyncio.run(_make_study(service, clips, num_answers, overlap, per_annotator))


async def _make_study(
    service: Service, clips: Sequence[Path], num_answers: int, overlap: int, per_annotator: int
) -> Study:
    headers = _admin_headers(service.folder)
    connection = Connection(HOST, service.port, timeout_s=120)

    async def send(method: str, path: str, content: Any) -> Any:
        reply = await connection.request(method, API + path, headers=headers, content=content)
        if reply.status >= 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.body[:300]!r}")
        return reply.json()

    settings = {"id": STUDY, "title": "Benchmark", "queries_per_annotator": per_annotator, "overlap": overlap}
    await send("POST", "/studies", settings)
    for clip in clips:
        reply = await connection.request(
            "PUT", f"{API}/studies/{STUDY}/clips/{clip.name}", headers=headers, body=clip.read_bytes()
        )
        if reply.status >= 300:
            raise RuntimeError(f"clip {clip.name}: {reply.status} {reply.body[:300]!r}")
    num_queries = int(num_answers * SPARE / overlap) + 1
    rng = random.Random(0)
    queries = []
    for number in range(num_queries):
        left, right = rng.sample(clips, 2)
        sides = {
            side: {"segment_id": clip.stem, "clip": clip.name, "num_frames": NUM_FRAMES}
            for side, clip in (("left", left), ("right", right))
        }
        queries.append({"id": f"q{number:06d}", **sides})
    for start in range(0, num_queries, 500):
        await send("POST", f"/studies/{STUDY}/queries", {"queries": queries[start : start + 500]})
    link = (await send("POST", f"/studies/{STUDY}/invitations", {"role": "annotator"}))["url"]
    connection.close()
    return Study(
        id=STUDY,
        invitation=parse_qs(urlsplit(link).query)["invitation"][0],
        num_queries=num_queries,
        num_clips=len(clips),
        clip_kib=statistics.mean(clip.stat().st_size for clip in clips) / 1024,
    )


def _admin_headers(folder: Path) -> dict[str, str]:
    """Signs in as an admin with the service's own secret: whoever owns the data folder may do everything."""
    from themis_ray.labeling.security import SESSION_COOKIE, Signer, read_secret
    from themis_ray.labeling.store import LabelStore

    signer = Signer(read_secret(folder / "secret.key"))
    store = LabelStore(f"sqlite:///{folder / 'labelling.db'}")
    member = store.access.accept_invitation(uuid.uuid4().hex, "admin", "benchmark", None)
    store.close()
    session, cookie = signer.make_session("member", member.id)
    return {"Cookie": f"{SESSION_COOKIE}={cookie}", "X-CSRF-Token": signer.csrf_token(session)}


# ---------------------------------------------------------------- annotators


@dataclass(frozen=True)
class Load:
    """What the load generator does.

    Attributes:
        port: Of the service.
        invitation: Of the study.
        num_clients: Annotators.
        num_answers: Answers of each.
        think_s: Mean seconds between seeing a pair and answering; half to one and a half times that.
        ramp_s: Seconds over which they come.
        seconds: When it ends, whether all have answered or not.
        grace_s: Seconds after that for answers under way to be acknowledged.
    """

    port: int
    invitation: str
    num_clients: int
    num_answers: int
    think_s: float
    ramp_s: float
    seconds: float
    grace_s: float = 60.0


@dataclass
class Figures:
    """What all annotators saw together.

    Attributes:
        times: Seconds of every request that was answered as it should be, by route.
        failures: How often what else came instead, by route and what.
        acknowledged: The ledger: answer id, assignment, choice by the sides of the screen.
        delays: Seconds from the first attempt at an answer to its acknowledgement.
        num_done: Annotators that gave all their answers.
        num_late: Answers that were refused because the lease had run out.
        num_duplicates: Answers that had been stored, while the acknowledgement was lost on its way.
        num_clip_bytes: Of all clips.
    """

    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    acknowledged: list[tuple[str, str, str]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    num_done: int = 0
    num_late: int = 0
    num_duplicates: int = 0
    num_clip_bytes: int = 0


class OverError(Exception):
    """The time is over."""


class Annotator:
    """A program that takes part in the study as a person's browser does."""

    def __init__(self, number: int, load: Load, figures: Figures, clock: Clock) -> None:
        self._load, self._figures, self._clock = load, figures, clock
        self._rng = random.Random(number)
        self._service = Connection(HOST, load.port)
        self._clips: Connection | None = None
        self._headers: dict[str, str] = {}
        self._fetched: set[str] = set()

    async def run(self) -> None:
        """Comes, answers, goes."""
        try:
            await asyncio.sleep(self._rng.uniform(0, self._load.ramp_s))
            await self._join()
            work = (await self._send("assignments", "GET", f"{API}/assignments?count=3")).json()
            for _ in range(self._load.num_answers):
                work = await self._answer(await self._wait_for_work(work))
            self._figures.num_done += 1
        except OverError:
            pass
        finally:
            self._service.close()
            if self._clips is not None:
                self._clips.close()

    async def _join(self) -> None:
        reply = await self._send("join", "POST", f"{API}/studies/{STUDY}/join", {"invitation": self._load.invitation})
        session = reply.json()
        self._headers = {"Cookie": reply.headers["set-cookie"].split(";")[0], "X-CSRF-Token": session["csrf_token"]}

    async def _wait_for_work(self, work: dict[str, Any]) -> dict[str, Any]:
        while not work["assignments"]:
            if work["stage"] not in ("practice", "work"):
                raise OverError
            await asyncio.sleep(2.0)
            work = (await self._send("assignments", "GET", f"{API}/assignments?count=3")).json()
        return work

    async def _answer(self, work: dict[str, Any]) -> dict[str, Any]:
        """Fetches the clips of everything on the desk, thinks, and answers the first."""
        for assignment in work["assignments"]:
            for side in ("left", "right"):
                url = assignment[side]["url"]
                if (key := f"{assignment['assignment_id']}{side}") not in self._fetched:
                    self._fetched.add(key)
                    await self._fetch(url)
        think_s = self._load.think_s * self._rng.uniform(0.5, 1.5)
        if time.monotonic() + think_s > self._clock.until:
            raise OverError
        await asyncio.sleep(think_s)
        assignment_id = work["assignments"][0]["assignment_id"]
        choice = self._rng.choice(CHOICES)
        answer = {
            "answer_id": str(uuid.UUID(int=self._rng.getrandbits(128))),
            "assignment_id": assignment_id,
            "choice": choice,
            "response_ms": int(1000 * think_s),
        }
        started = time.monotonic()
        reply = await self._send("answer", "POST", f"{API}/answers", answer)
        if reply.status == 409:
            self._figures.num_late += 1
            return dict((await self._send("assignments", "GET", f"{API}/assignments?count=3")).json())
        receipt = reply.json()
        self._figures.acknowledged.append((answer["answer_id"], assignment_id, choice))
        self._figures.delays.append(time.monotonic() - started)
        self._figures.num_duplicates += receipt["is_duplicate"]
        return dict(receipt["work"])

    async def _fetch(self, url: str) -> None:
        parts = urlsplit(url)
        if self._clips is None:
            self._clips = Connection(HOST, parts.port or self._load.port)
        reply = await self._send("clip", "GET", f"{parts.path}?{parts.query}", connection=self._clips)
        self._figures.num_clip_bytes += len(reply.body)

    async def _send(
        self, route: str, method: str, path: str, content: Any = None, *, connection: Connection | None = None
    ) -> Reply:
        """Sends until there is an answer that means something; the same again where none came."""
        delay_s = 0.25
        while True:
            started = time.perf_counter()
            try:
                reply = await (connection or self._service).request(
                    method, path, headers={} if connection else self._headers, content=content
                )
            except LostConnectionError as error:
                what, wait_s = str(error).split(":")[0], delay_s
            else:
                if reply.status < 300 or (reply.status == 409 and route == "answer"):
                    self._figures.times[route].append(time.perf_counter() - started)
                    return reply
                what, wait_s = str(reply.status), float(reply.headers.get("retry-after", delay_s))
                if reply.status < 500 and reply.status != 429:
                    self._clock.complaints.append(f"{route}: {reply.status} {reply.body[:200]!r}")
                    raise OverError
            self._figures.failures[f"{route} {what}"] += 1
            if time.monotonic() > self._clock.until + self._load.grace_s:
                raise OverError
            await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.5))
            delay_s = min(2 * delay_s, MAX_RETRY_S)


@dataclass
class Clock:
    """When the load ends, and what should not have happened."""

    until: float
    complaints: list[str] = field(default_factory=list)


async def _generate(load: Load) -> dict[str, Any]:
    figures, clock = Figures(), Clock(time.monotonic() + load.seconds)
    started = time.monotonic()

    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            last = sorted(figures.times["answer"][-2000:])
            print(
                f"{time.monotonic() - started:4.0f} s: {len(figures.acknowledged)} answers, "
                f"{len(figures.times['clip'])} clips, p99 of the last answers {quantile(last, 0.99):.0f} ms, "
                f"{sum(figures.failures.values())} failures",
                flush=True,
            )

    reporter = asyncio.create_task(report())
    await asyncio.gather(*(Annotator(number, load, figures, clock).run() for number in range(load.num_clients)))
    reporter.cancel()
    return {
        "seconds": time.monotonic() - started,
        "times": {route: sorted(times) for route, times in figures.times.items()},
        "failures": dict(figures.failures),
        "acknowledged": figures.acknowledged,
        "delays": sorted(figures.delays),
        "num_done": figures.num_done,
        "late": figures.num_late,
        "duplicates": figures.num_duplicates,
        "clip_bytes": figures.num_clip_bytes,
        "complaints": Counter(clock.complaints).most_common(20),
        "cpu_s": sum(os.times()[:2]),
    }


def generate(load: Load, folder: Path, must_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs the load generator in a process of its own and returns what it saw."""
    settings, result = folder / "load.json", folder / "load.result.json"
    settings.write_text(json.dumps(load.__dict__))
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.serve", "--generate", str(settings), str(result)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            if must_stop():
                process.kill()
            time.sleep(0.5)
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    found: dict[str, Any] = json.loads(result.read_text())
    return found


# ---------------------------------------------------------------- the ledger


def check_ledger(database: Path, acknowledged: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compares what was acknowledged with what is stored."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        stored = {
            answer: (assignment, choice, bool(is_flipped))
            for answer, assignment, choice, is_flipped in connection.execute(
                "SELECT answer.id, assignment_id, choice, is_flipped FROM answer "
                "JOIN assignment ON assignment.id = answer.assignment_id"
            )
        }

        def count(query: str) -> int:
            return int(connection.execute(query).fetchone()[0] or 0)

        doubled = count(
            "SELECT SUM(n - 1) FROM (SELECT COUNT(*) AS n FROM answer WHERE NOT is_undone GROUP BY assignment_id)"
        ) + count(
            "SELECT SUM(n - 1) FROM (SELECT COUNT(*) AS n FROM answer JOIN assignment ON assignment.id = assignment_id "
            "WHERE NOT is_undone GROUP BY answer.annotator_id, answer.query_id, repeat)"
        )
        over = count(
            "SELECT SUM(MAX(0, n - overlap)) FROM (SELECT query.overlap, COUNT(*) AS n FROM answer "
            "JOIN query ON query.study_id = answer.study_id AND query.id = answer.query_id "
            "WHERE NOT is_undone AND kind = 'ordinary' GROUP BY query.study_id, query.id)"
        )
        miscounted = count(
            "SELECT COUNT(*) FROM query WHERE num_answers != (SELECT COUNT(*) FROM answer "
            "WHERE answer.study_id = query.study_id AND answer.query_id = query.id AND NOT is_undone)"
        )
    num_lost = num_changed = 0
    for answer, assignment, choice in acknowledged:
        if answer not in stored:
            num_lost += 1
            continue
        kept_assignment, kept_choice, is_flipped = stored[answer]
        given = SWAPPED.get(choice, choice) if is_flipped else choice
        num_changed += (kept_assignment, kept_choice) != (assignment, given)
    return {
        "lost": num_lost + num_changed,
        "doubled": doubled,
        "over_collected": over,
        "changed": num_changed,
        "miscounted": miscounted,
        "stored": len(stored),
        "acknowledged": len(acknowledged),
        "stored_unacknowledged": len(stored) - (len(acknowledged) - num_lost),
    }


# ---------------------------------------------------------------- chaos


class Chaos:
    """Kills replicas one after the other, and once everything."""

    def __init__(self, service: Service, seconds: float, kill_all_after_s: float) -> None:
        self._service, self._seconds, self._kill_all_after_s = service, seconds, kill_all_after_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.num_replicas_killed = 0
        self.num_restarts = 0
        self.restart_s = 0.0
        self.error: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Kills while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
            if self.error is not None:
                raise self.error

    def _run(self) -> None:
        started = time.monotonic()
        rng = random.Random(0)
        try:
            while not self._stopping.wait(KILL_EVERY_S):
                if not self.num_restarts and time.monotonic() - started > self._kill_all_after_s:
                    num = self._service.kill()
                    self.num_restarts += 1
                    print(f"killed all {num} processes of the service", flush=True)
                    self._service.start()
                    self.restart_s = self._service.start_s
                    print(f"the service is back after {self.restart_s:.0f} s", flush=True)
                elif replicas := self._service.replicas():
                    _kill(rng.choice(replicas))
                    self.num_replicas_killed += 1
                    print(f"killed one of {len(replicas)} replicas", flush=True)
        except Exception as error:
            self.error = error


# ---------------------------------------------------------------- the command


def summarise(seen: Mapping[str, Any], ledger: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the report."""
    routes = {
        route: {
            "requests": len(times),
            "p50_ms": quantile(times, 0.5),
            "p95_ms": quantile(times, 0.95),
            "p99_ms": quantile(times, 0.99),
            "max_ms": quantile(times, 1.0),
            "failures": sum(n for what, n in seen["failures"].items() if what.startswith(f"{route} ")),
        }
        for route, times in sorted(seen["times"].items())
    }
    num_complaints = sum(number for _, number in seen["complaints"])
    answers, clips = routes.get("answer", {}), routes.get("clip", {})
    return {
        "clients": arguments.clients,
        "think_s": arguments.think_s,
        "answers": len(seen["acknowledged"]),
        "p99_answer_ms": answers.get("p99_ms", 0.0),
        "p99_clip_ms": clips.get("p99_ms", 0.0),
        "errors": sum(seen["failures"].values()) + num_complaints,
        "lost": ledger["lost"],
        "doubled": ledger["doubled"],
        "over_collected": ledger["over_collected"],
        "p50_answer_ms": answers.get("p50_ms", 0.0),
        "p95_answer_ms": answers.get("p95_ms", 0.0),
        "p50_clip_ms": clips.get("p50_ms", 0.0),
        "p95_clip_ms": clips.get("p95_ms", 0.0),
        "p99_answer_until_acknowledged_ms": quantile(seen["delays"], 0.99),
        "max_answer_until_acknowledged_ms": quantile(seen["delays"], 1.0),
        "seconds": seen["seconds"],
        "answers_per_s": len(seen["acknowledged"]) / seen["seconds"],
        "clips_per_s": clips.get("requests", 0) / seen["seconds"],
        "clip_mib": seen["clip_bytes"] / 2**20,
        "annotators_done": seen["num_done"],
        "late": seen["late"],
        "stored_before_retry": seen["duplicates"],
        "failures": seen["failures"],
        "complaints": seen["complaints"],
        "routes": routes,
        "ledger": dict(ledger),
    }


def make_table(report: Mapping[str, Any]) -> Table:
    """The table that the command ends with."""
    title = (
        f"{report['clients']} annotators, {report['think_s']:g} s of thought, {report['answers']} answers in "
        f"{report['seconds']:.0f} s"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("route")
    for heading in ("requests", "p50 ms", "p95 ms", "p99 ms", "max ms", "failures"):
        table.add_column(heading, justify="right")
    for route, row in report["routes"].items():
        times = [f"{row[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
        table.add_row(route, str(row["requests"]), *times, str(row["failures"]))
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=1000, help="annotators (default 1000)")
    parser.add_argument("--think-s", type=float, default=8.0, help="mean seconds of thought (default 8)")
    parser.add_argument("--answers", type=int, default=20, help="answers of each annotator (default 20)")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest time (default 600)")
    parser.add_argument("--ramp-s", type=float, default=30.0, help="seconds over which annotators come (default 30)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of the service (default 2)")
    parser.add_argument("--no-haproxy", action="store_true", help="Ray Serve's own proxy instead of HAProxy")
    parser.add_argument("--chaos", action="store_true", help="kill replicas, and once the whole service")
    parser.add_argument("--out", type=Path, help="file of the result (default benchmarks/out/serve[_chaos].json)")
    parser.add_argument("--generate", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in ("clients", "answers", "replicas"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.generate:
        settings, result = arguments.generate
        seen = asyncio.run(_generate(Load(**json.loads(settings.read_text()))))
        result.write_text(json.dumps(seen))
        return 0
    console = Console()
    out = arguments.out or OUT / ("serve_chaos.json" if arguments.chaos else "serve.json")
    clips = make_clips(console)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as temporary:
        folder = Path(temporary) / "data"
        service = Service(
            folder, num_replicas=arguments.replicas, options=["--no-haproxy"] if arguments.no_haproxy else []
        )
        try:
            service.start()
            console.print(f"the service is ready after {service.start_s:.0f} s", highlight=False)
            study = make_study(
                service, clips, arguments.clients * arguments.answers, overlap=OVERLAP, per_annotator=arguments.answers
            )
            load = Load(
                port=service.port,
                invitation=study.invitation,
                num_clients=arguments.clients,
                num_answers=arguments.answers,
                think_s=arguments.think_s,
                ramp_s=arguments.ramp_s,
                seconds=arguments.seconds,
                # A restart of the whole service takes its time on two cores.
                grace_s=START_TIMEOUT_S if arguments.chaos else 60.0,
            )
            cpu_before = service.cpu_s()
            expected_s = min(arguments.seconds, arguments.ramp_s + arguments.answers * arguments.think_s)
            chaos = Chaos(service, arguments.seconds, expected_s / 2)
            if arguments.chaos:
                with chaos.running():
                    seen = generate(load, Path(temporary), lambda: chaos.error is not None)
            else:
                seen = generate(load, Path(temporary))
            cpu_s = service.cpu_s() - cpu_before
        finally:
            service.stop()
        ledger = check_ledger(folder / "labelling.db", seen["acknowledged"])
    report = summarise(seen, ledger, arguments) | {
        "queries": study.num_queries,
        "overlap": OVERLAP,
        "clips": study.num_clips,
        "clip_kib": study.clip_kib,
        "ramp_s": arguments.ramp_s,
        "replicas": arguments.replicas,
        "haproxy": not arguments.no_haproxy,
        # Of processes that lived from beginning to end.
        "cpu_s": {"load generator": seen["cpu_s"], **cpu_s},
        "start_s": service.start_s,
        "replicas_killed": chaos.num_replicas_killed,
        "restarts": chaos.num_restarts,
        "restart_s": chaos.restart_s,
        "load_before": load_before,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "num_cpus": os.cpu_count(), "python": platform.python_version()},
    }
    write_json(out, report)
    console.print(make_table(report))
    console.print(
        f"acknowledged {report['answers']}, lost {report['lost']}, doubled {report['doubled']}, "
        f"over-collected {report['over_collected']}, errors {report['errors']}, late {report['late']}",
        highlight=False,
    )
    cpu = ", ".join(f"{role} {seconds:.0f}" for role, seconds in report["cpu_s"].items())
    console.print(f"CPU seconds: {cpu}", highlight=False)
    for complaint, number in report["complaints"]:
        console.print(f"{number} x {complaint}", highlight=False)
    console.print(f"written: {out}", highlight=False)
    return 1 if report["lost"] or report["doubled"] or report["over_collected"] else 0


if __name__ == "__main__":
    sys.exit(main())
