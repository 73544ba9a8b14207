"""Lets programs take part in a study over HTTP, as many at once as are wanted, and tells what happened.

One of them is `themis_ray.labeling.simulated_annotator`; what they say comes from `themis_ray.labeling.truths`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import numpy as np

from themis_ray.errors import TeacherError
from themis_ray.feedback.study_client import StudyClient
from themis_ray.labeling.simulated_annotator import MeasuredHttp, SimulatedAnnotator, Simulation, SimulationResult
from themis_ray.labeling.study import StudyConfig
from themis_ray.labeling.truths import Truths

__all__ = ["read_simulation", "simulate"]


def read_simulation(client: StudyClient, study: str, num_annotators: int, **settings: Any) -> Simulation:
    """Asks the service what a study wants and how people come to it.

    Args:
        client: With a token of the study.
        study: Its id.
        num_annotators: How many come.
        **settings: The other settings of `Simulation`.

    Raises:
        ConfigError: The study has something that is not simulated.
        TeacherError: The service cannot be reached or refuses.
    """
    found = client.study(study)
    invitation = parse_qs(urlsplit(found["entrance"]).query).get("invitation", [""])[0]
    config = StudyConfig.model_validate(found["settings"])
    return Simulation(client.url, config, invitation, num_annotators, **settings)


async def simulate(
    plan: Simulation,
    truths: Truths | None = None,
    *,
    ledger: Path | None = None,
    on_progress: Callable[[SimulationResult], None] | None = None,
) -> SimulationResult:
    """Lets everybody take part and returns what happened.

    Args:
        plan: Who comes, and how they are.
        truths: What the clips are worth; None: what their names say.
        ledger: JSON lines of all acknowledged answers are appended to this file.
        on_progress: Told the result so far, about once a second.
    """
    result = SimulationResult()
    truths = truths if truths is not None else Truths(None, plan.study.id)
    began = time.monotonic()
    connector = aiohttp.TCPConnector(limit=plan.max_connections)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=30.0)
    with contextlib.ExitStack() as stack:
        if ledger is not None:
            ledger.parent.mkdir(parents=True, exist_ok=True)
        file = None if ledger is None else stack.enter_context(ledger.open("a", encoding="utf-8"))
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            http = MeasuredHttp(session, plan, result)

            async def take_part(number: int, seed: np.random.SeedSequence) -> None:
                await asyncio.sleep(plan.arrival_s * number / plan.num_annotators)
                annotator = SimulatedAnnotator(http, plan, truths, result, file, np.random.default_rng(seed))
                try:
                    result.outcomes[await annotator.run()] += 1
                except TeacherError as error:
                    result.outcomes["failed"] += 1
                    result.problems[f"annotator: {error}"[:200]] += 1

            seeds = np.random.SeedSequence(plan.seed).spawn(plan.num_annotators)
            tasks = [asyncio.ensure_future(take_part(number, seed)) for number, seed in enumerate(seeds)]
            await _finish(tasks, plan, result, on_progress)
    result.wall_s = time.monotonic() - began
    return result


async def _finish(
    tasks: Iterable[asyncio.Future[None]],
    plan: Simulation,
    result: SimulationResult,
    on_progress: Callable[[SimulationResult], None] | None,
) -> None:
    """Waits for everybody, or sends them home after `duration_s`."""
    deadline = None if plan.duration_s is None else time.monotonic() + plan.duration_s
    pending: set[asyncio.Future[None]] = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=1.0)
            for task in done:
                task.result()
            if on_progress is not None:
                on_progress(result)
            if deadline is not None and time.monotonic() > deadline:
                break
    finally:
        result.outcomes["sent home"] += len(pending)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
