"""An annotator that is a program: it comes by a link, agrees, practises, watches, thinks and answers over HTTP.

It does what the page does, in its order, so that a test or a load test meets the service as people do. What it prefers
is decided by `themis_ray.labeling.truths`.

Clips and calls go through aiohttp: at 1000 annotators httpx takes the core that the service needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import numpy as np

from themis_ray.errors import ConfigError
from themis_ray.feedback import TeacherParameters
from themis_ray.feedback.study_client import (
    AnnotatorCalls,
    Call,
    RefusedError,
    UnreachableError,
    is_for_later,
    retry_delay_s,
    to_refusal,
)
from themis_ray.labeling.study import ChoiceQuestion, Question, ScaleQuestion, StudyConfig
from themis_ray.labeling.truths import Truths
from themis_ray.wire import AssignmentView, ClipView, NewAnswer, Session, Work

__all__ = ["MeasuredHttp", "SimulatedAnnotator", "Simulation", "SimulationResult"]

T = TypeVar("T")

CSRF_HEADER = "X-CSRF-Token"
CLIP_ROUTE = "GET clip"
NUM_HELD = 3
IDLE_POLL_S = 2.0
LATE, CONFLICT = 404, 409
# Who is refused so often in a row has no business there any more.
MAX_IN_VAIN = 20
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Simulation:
    """Who comes to which study, and how they are.

    Attributes:
        url: Address of the service.
        study: What the study asks for; its consent and questions are answered.
        invitation: The signed part of the study's link.
        num_annotators: How many people.
        think_s: Mean seconds from the clips to the answer; each time drawn uniformly from half to one and a half of it.
        teacher: What they prefer and how they err.
        seed: Every draw of theirs comes from it, but for the ids of answers.
        arrival_s: People come one after another during these seconds.
        idle_s: Who has had nothing to do for so long leaves.
        retry_s: How long an answer or another call is sent again before it is given up.
        gets_clips: Whether clips are fetched.
        max_answers: Answers of one person; None for as many as the study wants.
        max_connections: Connections at once.
        duration_s: Everybody leaves after so long; None: never.
    """

    url: str
    study: StudyConfig
    invitation: str
    num_annotators: int
    think_s: float = 8.0
    teacher: TeacherParameters = field(default_factory=TeacherParameters)
    seed: int = 0
    arrival_s: float = 0.0
    idle_s: float = 30.0
    retry_s: float = 120.0
    gets_clips: bool = True
    max_answers: int | None = None
    max_connections: int = 500
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.num_annotators < 1 or self.think_s < 0:
            raise ConfigError(
                f"{self.num_annotators} annotators who think for {self.think_s:g} s are none. Give 1 or more, and 0 s "
                "or more."
            )
        if self.study.feedback == "demonstration":
            raise ConfigError("demonstrations are not simulated: they need a policy. Use another kind of feedback.")


@dataclass
class SimulationResult:
    """What happened.

    Attributes:
        latencies_s: Seconds of every call that got through or was refused, by route.
        problems: How often what went wrong, by route and status or error; those that were tried again too.
        outcomes: How many people ended how.
        num_answers: Answers that were acknowledged and not known before.
        num_duplicates: Answers that were acknowledged again.
        num_late: Answers that came too late or for something that was over, which were not acknowledged.
        num_lost: Answers that were given up without an acknowledgement.
        wall_s: Seconds that it all took.
    """

    latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    num_answers: int = 0
    num_duplicates: int = 0
    num_late: int = 0
    num_lost: int = 0
    wall_s: float = 0.0

    def quantiles_ms(self) -> dict[str, dict[str, float]]:
        """Returns the number of calls and p50, p95 and p99 in milliseconds of each route."""
        return {
            route: {
                "count": float(len(values)),
                **{name: 1000.0 * float(np.quantile(values, q)) for name, q in QUANTILES.items()},
            }
            for route, values in sorted(self.latencies_s.items())
        }


class MeasuredHttp:
    """Sends calls, measures them, and sends again what did not get through."""

    def __init__(self, session: aiohttp.ClientSession, plan: Simulation, result: SimulationResult) -> None:
        self._session, self._plan, self._result = session, plan, result

    async def send(
        self, route: str, call: Call[T], headers: Mapping[str, str], rng: np.random.Generator
    ) -> tuple[T, str]:
        """Returns what a call brought, and NAME=VALUE of the session's cookie if it was set.

        Raises:
            RefusedError: The service said no.
            UnreachableError: It did not take the call for `retry_s` seconds.
        """
        url = urljoin(self._plan.url + "/", call.path.lstrip("/"))
        body, cookie = await self._fetch(route, call.method, url, headers, rng, call.json, call.parameters)
        return call.read(body), cookie

    async def get_clip(self, url: str, rng: np.random.Generator) -> None:
        """Fetches the clip of an address and forgets it.

        Raises:
            RefusedError: It is not shown.
            UnreachableError: It did not come.
        """
        await self._fetch(CLIP_ROUTE, "GET", urljoin(self._plan.url + "/", url), {}, rng, None, {})

    async def _fetch(
        self,
        route: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        rng: np.random.Generator,
        content: Any,
        parameters: Mapping[str, str | int],
    ) -> tuple[bytes, str]:
        deadline = time.monotonic() + self._plan.retry_s
        attempt = 0
        while True:
            began, rest_s = time.perf_counter(), 0.0
            try:
                async with self._session.request(
                    method, url, headers=headers, json=content, params=parameters or None
                ) as response:
                    body = await response.read()
                self._result.latencies_s[route].append(time.perf_counter() - began)
                if response.ok:
                    return body, next((f"{name}={row.value}" for name, row in response.cookies.items()), "")
                problem = f"status {response.status}"
                self._result.problems[f"{route}: {problem}"] += 1
                text = body.decode(errors="replace")
                if not is_for_later(response.status, text):
                    raise to_refusal(url.partition("?")[0], response.status, text)
                with contextlib.suppress(ValueError):
                    rest_s = float(response.headers.get("Retry-After", "0"))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = type(error).__name__
                self._result.problems[f"{route}: {problem}"] += 1
            # Many are turned away at once and are not to come back at once.
            delay_s = retry_delay_s(attempt, rest_s) * float(rng.uniform(1.0, 1.5))
            if time.monotonic() + delay_s > deadline:
                raise UnreachableError(f"{url.partition('?')[0]} did not take a call ({problem}).")
            await asyncio.sleep(delay_s)
            attempt += 1


class SimulatedAnnotator:
    """One person, from the link to the completion code."""

    def __init__(
        self,
        http: MeasuredHttp,
        plan: Simulation,
        truths: Truths,
        result: SimulationResult,
        ledger: TextIO | None,
        rng: np.random.Generator,
    ) -> None:
        self._http, self._plan, self._truths, self._result = http, plan, truths, result
        self._ledger, self._rng = ledger, rng
        self._headers: dict[str, str] = {}
        self._session: Session | None = None
        self._clips: dict[str, asyncio.Task[None]] = {}
        self._num_answers = 0

    async def run(self) -> str:
        """Takes part and returns in which stage it ended."""
        try:
            session = await self._enter()
            stage: str = session.stage
            if stage in ("practice", "work"):
                stage = await self._work()
            if stage == "after":
                session = await self._call("POST questions", AnnotatorCalls.questions("after", self._answers("after")))
                stage = session.stage
            with contextlib.suppress(RefusedError):  # who leaves early may not be done
                await self._call("POST finish", AnnotatorCalls.finish())
            return stage
        finally:
            for task in self._clips.values():
                task.cancel()

    async def _call(self, route: str, call: Call[T]) -> T:
        value, cookie = await self._http.send(route, call, self._headers, self._rng)
        if cookie:
            self._headers["Cookie"] = cookie
        if isinstance(value, Session):
            self._headers[CSRF_HEADER] = value.csrf_token
            self._session = value
        return value

    async def _enter(self) -> Session:
        study = self._plan.study
        panel = {name: uuid.uuid4().hex[:24] for name in study.panel.id_parameters}
        session = await self._call("POST join", AnnotatorCalls.join(study.id, self._plan.invitation, panel))
        if session.stage == "consent" and study.consent is not None:
            call = AnnotatorCalls.consent(study.consent.version, study.consent.hash)
            session = await self._call("POST consent", call)
        if session.stage == "before":
            call = AnnotatorCalls.questions("before", self._answers("before"))
            session = await self._call("POST questions", call)
        return session

    def _answers(self, which: str) -> dict[str, Any]:
        questions = self._plan.study.before if which == "before" else self._plan.study.after
        return {question.id: self._reply(question) for question in questions}

    def _reply(self, question: Question) -> Any:
        if isinstance(question, ChoiceQuestion):
            allowed = [option for option in question.options if option not in question.screens_out]
            return allowed[int(self._rng.integers(len(allowed)))] if allowed else question.options[0]
        if isinstance(question, ScaleQuestion):
            return int(self._rng.integers(question.low, question.high + 1))
        return "simulated"

    async def _work(self) -> str:
        """Answers until there is nothing left and returns the stage after it."""
        work = await self._call("GET assignments", AnnotatorCalls.assignments(NUM_HELD))
        idle_since, num_in_vain = time.monotonic(), 0
        while work.stage in ("practice", "work"):
            if not work.assignments:
                if time.monotonic() - idle_since > self._plan.idle_s:
                    break
                await asyncio.sleep(min(IDLE_POLL_S, self._plan.idle_s) * float(self._rng.uniform(0.5, 1.5)))
                work = await self._call("GET assignments", AnnotatorCalls.assignments(NUM_HELD))
                continue
            num_before = self._num_answers
            work = await self._answer(work)
            num_in_vain = 0 if self._num_answers > num_before or work.stage == "practice" else num_in_vain + 1
            if num_in_vain > MAX_IN_VAIN:
                break
            idle_since = time.monotonic()
            if self._plan.max_answers is not None and self._num_answers >= self._plan.max_answers:
                break
        return work.stage

    async def _answer(self, work: Work) -> Work:
        """Watches, thinks and answers the first assignment; returns what is on the desk then."""
        assignment = work.assignments[0]
        for row in work.assignments:
            self._prefetch(row)
        think_s = self._plan.think_s * float(self._rng.uniform(0.5, 1.5))
        await asyncio.gather(asyncio.sleep(think_s), *(self._clips[url] for url in _urls(assignment)))
        answer = await self._make_answer(assignment, think_s)
        try:
            receipt = await self._call("POST answers", AnnotatorCalls.answer(answer))
        except RefusedError as error:
            if error.status not in (LATE, CONFLICT):
                raise
            self._result.num_late += 1
            return await self._call("GET assignments", AnnotatorCalls.assignments(NUM_HELD))
        except UnreachableError:
            self._result.num_lost += 1
            raise
        self._acknowledge(assignment, answer, is_duplicate=receipt.is_duplicate)
        return receipt.work

    def _prefetch(self, assignment: AssignmentView) -> None:
        for url in _urls(assignment):
            if url not in self._clips:
                fetch = self._http.get_clip(url, self._rng) if self._plan.gets_clips else asyncio.sleep(0)
                task = asyncio.ensure_future(fetch)
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                self._clips[url] = task

    async def _make_answer(self, assignment: AssignmentView, think_s: float) -> NewAnswer:
        study = self._plan.study
        left = _clip_name(assignment.left)
        right = left if assignment.right is None else _clip_name(assignment.right)
        rewards = await self._truths.rewards(left, right)
        said: dict[str, Any] = {}
        if assignment.feedback == "pairwise":
            said["choice"] = self._truths.choose(rewards, self._plan.teacher, self._rng)
        elif assignment.feedback == "rating":
            said["rating"] = self._truths.rank(rewards[0])
        else:
            is_good = np.resize(rewards[0] > np.median(rewards[0]), assignment.left.num_frames)
            said["steps"] = tuple(np.where(is_good, 1, -1).tolist())
        milliseconds = int(1000.0 * think_s)
        watched_ms = max(milliseconds, int(1000.0 * study.min_watched_s) + 1)
        return NewAnswer(
            answer_id=str(uuid.uuid4()),
            assignment_id=assignment.assignment_id,
            response_ms=milliseconds,
            watched_ms=watched_ms,
            overlay_ms=watched_ms if assignment.overlay else 0,
            count=NUM_HELD,
            **said,
        )

    def _acknowledge(self, assignment: AssignmentView, answer: NewAnswer, *, is_duplicate: bool) -> None:
        """Writes down what the service has promised to keep."""
        assert self._session is not None
        self._num_answers += not assignment.is_practice
        self._result.num_answers += not is_duplicate
        self._result.num_duplicates += is_duplicate
        if self._ledger is not None:
            line = {
                "answer_id": answer.answer_id,
                "annotator_id": self._session.annotator_id,
                "assignment_id": assignment.assignment_id,
                "choice": answer.choice,
                "is_practice": assignment.is_practice,
                "is_duplicate": is_duplicate,
                "acknowledged_at": time.time(),
            }
            self._ledger.write(json.dumps(line) + "\n")
            self._ledger.flush()


def _urls(assignment: AssignmentView) -> list[str]:
    sides = [side for side in (assignment.left, assignment.right) if side is not None]
    return [url for side in sides for url in (side.url, side.overlay_url) if url is not None]


def _clip_name(clip: ClipView) -> str:
    return urlsplit(clip.url).path.rpartition("/")[2]
