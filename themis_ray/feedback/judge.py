"""A vision model as teacher: it looks at frames of both segments and says which one is better.

Asking a vision-language model for preferences over pairs of images or clips is from Wang et al. 2024, "RL-VLM-F:
Reinforcement learning from vision language foundation model feedback" (arXiv 2402.03681); that judges favour one side,
and that asking in both orders tells, from Zheng et al. 2023, "Judging LLM-as-a-judge" (arXiv 2306.05685).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import Replayer, replay_order
from themis_ray.data import Choice, Query, Segment, mirrored
from themis_ray.envs import EnvConfig
from themis_ray.errors import TeacherError
from themis_ray.feedback.answer_cache import AnswerCache
from themis_ray.feedback.chat_endpoint import CallBudget, ChatEndpoint, Message, Reply, Spending
from themis_ray.feedback.teachers import RecentReturns, agreed

__all__ = ["JudgeParameters", "JudgeTeacher", "read_choice"]

logger = logging.getLogger("themis_ray")

INSTRUCTIONS = (
    "You compare two short clips, left and right, of an agent at work. Each clip is given as frames in the order of "
    "time. Say which clip is better at the goal: left, right, equal if neither is better, or skip if you cannot tell. "
    'Answer with JSON only: {"choice": "left"}, {"choice": "right"}, {"choice": "equal"} or {"choice": "skip"}.'
)
_WORDS = "|".join(Choice)
# Objects may hold others, one level deep.
_OBJECT = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
# `choice: left`, with the alternatives that the same sentence may add: `left|right`, `left or maybe equal`.
_BETWEEN = r"[^\w.\n]+(?:(?:and|but|nor|not|or)\b[^\w.\n]+(?:\w+[^\w.\n]+)?)?"
_PAIR = re.compile(
    rf"\b(?:choice|answer|preference)\b(?:\W+is\b)?\W*\b((?:{_WORDS})\b(?:{_BETWEEN}(?:{_WORDS})\b)*)", re.IGNORECASE
)
_LAST_LINE = re.compile(rf"(?:(?:my |the |final )*(?:answer|preference)(?: is)? )?({_WORDS})")
# What may stand behind the JSON that ends a text: white space, the end of a code block, a full stop.
_END = re.compile(r"[\s`.]*")


@dataclass(frozen=True)
class JudgeParameters:
    """The settings of a judge; `TeacherConfig` says what they mean."""

    url: str
    model: str
    prompt: str
    num_frames: int = 6
    timeout_s: float = 60.0
    max_retries: int = 5
    max_concurrency: int = 4
    max_calls: int | None = None
    max_cost: float | None = None
    price_per_1k_input_tokens: float | None = None
    price_per_1k_output_tokens: float | None = None
    ask_both_orders: bool = False


def read_choice(text: str) -> Choice | None:
    """Returns the choice in a model's answer, None where there is none or it contradicts itself.

    JSON with a key `choice` that ends the text is the answer, whatever reasoning stands before it. Otherwise choices
    are looked for as JSON, as `choice: left`, `choice is left` or the same with `answer` or `preference`, and as the
    only word of the last line; they have to be the same.
    """
    found: set[str] = set()
    prose: list[str] = []
    start = 0
    for candidate in _OBJECT.finditer(text):
        word = _json_choice(candidate.group())
        if word is None:
            continue
        if _END.fullmatch(text, candidate.end()):
            return Choice(word)
        found.add(word)
        prose.append(text[start : candidate.start()])
        start = candidate.end()
    # A word in the place of each JSON, so that what is around it is not read as one phrase.
    rest = " JSON ".join([*prose, text[start:]])
    for phrase in _PAIR.findall(rest):
        found.update(re.findall(rf"\b(?:{_WORDS})\b", phrase.lower()))
    lines = rest.strip().splitlines()
    last = _LAST_LINE.fullmatch(" ".join(re.findall(r"[^\W_]+", lines[-1].lower()))) if lines else None
    if last is not None:
        found.add(last.group(1))
    return Choice(found.pop()) if len(found) == 1 else None


def _json_choice(text: str) -> str | None:
    """Returns the choice that a JSON object names; None where it names none, or several."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    named = {str(value).strip().lower() for key, value in pairs if key.lower() == "choice"}
    word = named.pop() if len(named) == 1 else ""
    return word if word in set(Choice) else None


class JudgeTeacher:
    """Shows frames of both segments to a vision model and takes its word.

    A query that the model answers in no readable way, also when asked again, is `skip`. So is one that the endpoint
    did not answer at all, unless that is so for every one: then the run ends, and a resumed one asks again. When the
    limit of calls or cost is reached, all that is left is `skip`; one warning says so.

    With `ask_both_orders` a query is two questions, (left, right) and (right, left), and two answers that disagree are
    `equal`. One number is drawn for each call of `answer`, however often the endpoint is asked.

    Args:
        parameters: What is asked of whom, and what it may take.
        env_config: Where segments come from.
        api_key: Key for the endpoint; None sends none.
        cache_path: JSONL file of paid answers; None keeps them in memory.

    Raises:
        ConfigError: The key cannot be sent.
        DataError: The file of answers cannot be read.
    """

    def __init__(
        self,
        parameters: JudgeParameters,
        env_config: EnvConfig,
        api_key: str | None = None,
        cache_path: Path | None = None,
    ) -> None:
        self.name = f"judge:{parameters.model}"
        self.parameters = parameters
        self.cache = AnswerCache(cache_path, parameters.model, _digest(parameters))
        before = self.cache.spending
        self.budget = CallBudget(
            parameters.max_calls, parameters.max_cost, before.num_calls, before.cost, before.dearest
        )
        self._endpoint = ChatEndpoint(
            parameters.url,
            parameters.model,
            api_key,
            parameters.timeout_s,
            parameters.max_retries,
            self.budget,
            (parameters.price_per_1k_input_tokens or 0.0, parameters.price_per_1k_output_tokens or 0.0),
        )
        self._env_config = env_config
        self._is_limit_told = False

    def answer(
        self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns, feedback_session: int = 0
    ) -> list[Choice]:
        """Returns one choice for each query, in order.

        Raises:
            TeacherError: The endpoint refuses, or answers nothing at all.
            ConfigError: The environment cannot be made to draw frames.
            DataError: A segment cannot be replayed, or answers cannot be written to their file.
        """
        del returns, feedback_session
        if not queries:
            return []
        seed = int(rng.integers(2**63))
        questions = list(queries)
        if self.parameters.ask_both_orders:
            # Pair by pair, so that a limit cuts one query in half at most.
            questions = [question for query in queries for question in (query, _swapped(query))]
        missing = {question.id: question for question in questions if question.id not in self.cache.answers}
        if missing:
            self._ask_all(list(missing.values()), seed)
        return [self._choice(query) for query in queries]

    def _choice(self, query: Query) -> Choice:
        """Returns what the answers that are there say about a query."""
        first = self.cache.answers.get(query.id, Choice.SKIP)
        if not self.parameters.ask_both_orders:
            return first
        return agreed(first, mirrored(self.cache.answers.get(_swapped(query).id, Choice.SKIP)))

    def _ask_all(self, questions: list[Query], seed: int) -> None:
        """Asks in the order of the questions, several at a time, and keeps the answers in the cache."""
        if self.budget.is_spent:
            self._tell_limit()
            return
        clips = self._encode_clips(questions)
        stop = threading.Event()
        with self._endpoint.connect() as client, ThreadPoolExecutor(self.parameters.max_concurrency) as pool:
            try:
                futures = [
                    pool.submit(self._ask, client, query, clips, np.random.default_rng([seed, number]), stop)
                    for number, query in enumerate(questions)
                ]
                replies = _results(futures)
            finally:
                # Where one failed or the user stopped the run, the others end as soon as they can.
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        self._judge_replies(replies)

    def _ask(
        self,
        client: httpx.Client,
        query: Query,
        clips: dict[str, list[str]],
        rng: np.random.Generator,
        stop: threading.Event,
    ) -> Reply[Choice]:
        messages = make_messages(self.parameters.prompt, clips[query.left.id], clips[query.right.id])
        try:
            return self._ask_and_keep(client, query, messages, rng, stop)
        except Exception:
            # Here and not where results are gathered: the next question would have been sent by then.
            stop.set()
            raise

    def _ask_and_keep(
        self,
        client: httpx.Client,
        query: Query,
        messages: list[Message],
        rng: np.random.Generator,
        stop: threading.Event,
    ) -> Reply[Choice]:
        spending, choice = Spending(), None
        try:
            reply = self._endpoint.ask(client, messages, read_choice, rng, stop, spending)
            choice = Choice.SKIP if reply.outcome == "unclear" else reply.value
            return reply
        finally:
            # Whatever comes of the question: the limits of a resumed run count its calls too.
            if spending.num_calls:
                self.cache.add(query.id, choice, spending)

    def _judge_replies(self, replies: list[Reply[Choice]]) -> None:
        """Tells what went wrong.

        Raises:
            TeacherError: Nothing was answered because the endpoint did not.
        """
        lost = [reply for reply in replies if reply.outcome == "unreachable"]
        unclear = [reply for reply in replies if reply.outcome == "unclear"]
        if lost and not any(reply.outcome in ("answered", "unclear") for reply in replies):
            raise TeacherError(
                f"{self._endpoint.url} answered none of {len(lost)} questions ({lost[-1].problem}). Start it or check "
                "teacher.url and teacher.timeout_s, then resume the run."
            )
        if lost:
            logger.warning("The judge did not answer %d questions (%s); skipped.", len(lost), lost[-1].problem)
        if unclear:
            logger.warning("%d answers of the judge could not be read; skipped.", len(unclear))
        if any(reply.outcome == "limit" for reply in replies):
            self._tell_limit()

    def _tell_limit(self) -> None:
        if not self._is_limit_told:
            self._is_limit_told = True
            logger.warning(
                "The judge has taken %d calls (teacher.max_calls=%s) at a cost of %g (teacher.max_cost=%s); the "
                "queries that are left are skipped.",
                self.budget.num_calls,
                self.budget.max_calls,
                self.budget.cost,
                self.budget.max_cost,
            )

    def _encode_clips(self, questions: list[Query]) -> dict[str, list[str]]:
        """Returns PNG data URLs of evenly spaced frames of each segment, by its id.

        All are drawn here, in the thread that asks, and the simulator is there only while they are.
        """
        segments = {segment.id: segment for query in questions for segment in (query.left, query.right)}
        with Replayer(self._env_config) as replayer:
            return {
                segment.id: self._encode_clip(segment, replayer)
                for segment in sorted(segments.values(), key=replay_order)
            }

    def _encode_clip(self, segment: Segment, replayer: Replayer) -> list[str]:
        steps = np.linspace(0, len(segment) - 1, min(self.parameters.num_frames, len(segment))).round().astype(np.int64)
        return [_png_url(frame) for frame in replayer.frames(segment, steps.tolist())]


def _digest(parameters: JudgeParameters) -> str:
    """Returns a few characters that change with what a model is shown and told."""
    return hashlib.sha256(json.dumps([parameters.prompt, parameters.num_frames]).encode()).hexdigest()[:12]


def make_messages(prompt: str, left: list[str], right: list[str]) -> list[Message]:
    """Returns the messages of one question.

    Args:
        prompt: What a good clip shows.
        left: Data URLs of the left segment's frames.
        right: Those of the right segment's.
    """
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"The goal: {prompt}"}]
    for side, urls in (("Left", left), ("Right", right)):
        parts.append({"type": "text", "text": f"{side} clip, {len(urls)} frames:"})
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts.append({"type": "text", "text": "Which clip is better? Answer with the JSON."})
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": parts}]


def _results(futures: list[Future[Reply[Choice]]]) -> list[Reply[Choice]]:
    """Returns all results in order, or raises the first exception as soon as it is there."""
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        future.result()
    return [future.result() for future in futures]


def _swapped(query: Query) -> Query:
    return Query(query.right, query.left)


def _png_url(frame: NDArray[np.uint8]) -> str:
    """Returns a frame (H, W, 3) as a data URL."""
    is_written, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert is_written
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode("ascii")
