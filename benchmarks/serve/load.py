"""Annotators that come, fetch clips, think and answer: `python -m benchmarks.serve.load LOAD.json RESULT.json`.

The generator is a process of its own, which `generate` starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.http_client import Connection, LostConnectionError, Reply
from benchmarks.peers import ROOT
from benchmarks.serve.service import HOST
from benchmarks.serve.study import API, STUDY

__all__ = ["Load", "generate", "quantile"]

MAX_RETRY_S = 4.0
REPORT_EVERY_S = 15.0
CHOICES = ("left", "right", "equal", "skip")


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of sorted seconds, in milliseconds; 0 where there is none."""
    return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


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
    command = [sys.executable, "-m", "benchmarks.serve.load", str(settings), str(result)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            if must_stop():
                process.kill()
            time.sleep(0.5)
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def main() -> int:
    settings, result = map(Path, sys.argv[1:])
    seen = asyncio.run(_generate(Load(**json.loads(settings.read_text()))))
    result.write_text(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
