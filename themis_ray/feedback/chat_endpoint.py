"""Questions to an endpoint that speaks the OpenAI chat-completions protocol: retries, waiting, and what they cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Literal, TypeVar

import httpx
import numpy as np

from themis_ray.errors import ConfigError, TeacherError

__all__ = ["CallBudget", "ChatEndpoint", "Reply", "Spending", "retry_after_s"]

T = TypeVar("T")

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 60.0
# An endpoint that wants a longer pause than this is taken as down.
MAX_RETRY_AFTER_S = 600.0
RETRIED_STATUS = frozenset({408, 409, 425, 429})
MAX_SHOWN_CHARACTERS = 200
# A count of tokens above this is no count.
MAX_TOKENS = 10**12
# Sums of prices are not exact; a limit of 0.3 allows three calls of 0.1.
RELATIVE_TOLERANCE = 1e-9

Message = dict[str, Any]


class CallBudget:
    """Counts calls and their cost over several threads, and says when there may be no more.

    The cost of a call is known when it is over. So a call may start only if one as dear as the dearest so far can be
    paid for every call under way; with a limit of cost, the first call is waited for alone.

    Args:
        max_calls: Most calls; None for no limit.
        max_cost: Highest cost; None for no limit.
        num_calls: Calls made before, by the run that is resumed.
        cost: Their cost.
        dearest: The cost of the dearest of them.
    """

    def __init__(
        self,
        max_calls: int | None,
        max_cost: float | None,
        num_calls: int = 0,
        cost: float = 0.0,
        dearest: float = 0.0,
    ) -> None:
        self.max_calls = max_calls
        self.max_cost = max_cost
        self.num_calls = num_calls
        self.cost = cost
        self.dearest = dearest
        self._num_under_way = 0
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def is_spent(self) -> bool:
        """Whether no call may start even when all others are over."""
        has_calls = self.max_calls is None or self.num_calls < self.max_calls
        return not (has_calls and self._can_pay(1))

    def start(self) -> bool:
        """Takes one call out of the budget; False if none is left. Waits for calls under way where they decide."""
        with self._changed:
            while not (self._is_closed or self.is_spent):
                is_known = self.max_cost is None or self.dearest > 0.0 or self._num_under_way == 0
                if is_known and self._can_pay(self._num_under_way + 1):
                    self.num_calls += 1
                    self._num_under_way += 1
                    return True
                self._changed.wait()
            return False

    def finish(self, cost: float) -> None:
        """Books the cost of a call that is over."""
        with self._changed:
            self.cost += cost
            self.dearest = max(self.dearest, cost)
            self._num_under_way -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Lets no call start any more, those that wait for others included."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _can_pay(self, num_more_calls: int) -> bool:
        if self.max_cost is None:
            return True
        expected = self.cost + num_more_calls * self.dearest
        return self.cost < self.max_cost and expected <= self.max_cost * (1.0 + RELATIVE_TOLERANCE)


@dataclass
class Spending:
    """Calls, what they cost together, and the cost of the dearest of them."""

    num_calls: int = 0
    cost: float = 0.0
    dearest: float = 0.0

    def add(self, other: Spending) -> None:
        """Adds what was spent elsewhere."""
        self.num_calls += other.num_calls
        self.cost += other.cost
        self.dearest = max(self.dearest, other.dearest)


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came of one question.

    Attributes:
        value: What was read from the answer; None unless answered.
        outcome: answered; unclear, when no answer could be read; unreachable, when none came; limit, when the budget
            was spent; stopped, when it was given up.
        problem: The last thing that went wrong, in words.
    """

    value: T | None
    outcome: Literal["answered", "unclear", "unreachable", "limit", "stopped"]
    problem: str = ""


@dataclass(frozen=True)
class _Call:
    """One HTTP call: the text of its answer or the problem, its cost, and seconds that the endpoint wants to rest."""

    text: str | None
    problem: str
    is_reached: bool
    cost: float = 0.0
    rest_s: float = 0.0


class ChatEndpoint:
    """Asks one model.

    Args:
        url: Base URL such as `https://api.openai.com/v1`, or the address of its chat completions.
        model: Name of the model there.
        api_key: Sent as a bearer token; None sends none. It is in no message and no log.
        timeout_s: Seconds that connecting, and each wait for more of an answer, may take.
        max_retries: Further calls for one question, at most.
        budget: What may be spent.
        prices: Price of 1000 tokens sent and of 1000 received.

    Raises:
        ConfigError: The key holds characters that no HTTP header can hold.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None,
        timeout_s: float,
        max_retries: int,
        budget: CallBudget,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.model = model
        self.budget = budget
        self._api_key = api_key.strip() if api_key else ""
        if not all("!" <= character <= "~" for character in self._api_key):
            raise ConfigError("the API key holds blanks or letters that no key has. Copy it again, without quotes.")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._prices = prices

    def connect(self) -> httpx.Client:
        """Returns a client to ask with; several threads may share it."""
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        return httpx.Client(headers=headers, timeout=self._timeout_s)

    def ask(
        self,
        client: httpx.Client,
        messages: list[Message],
        read: Callable[[str], T | None],
        rng: np.random.Generator,
        stop: threading.Event,
        spending: Spending,
    ) -> Reply[T]:
        """Asks one question until there is an answer, and says what came of it.

        Time-outs, broken connections, status 408, 409, 425, 429 and 5xx are asked again after
        max(Retry-After, min(60, 2**i) s times a uniform number from 0.5 to 1) for the i-th time; an answer that `read`
        cannot read, at once.

        Args:
            client: From `connect`.
            messages: The question.
            read: Returns the value of an answer's text, None where it has none.
            rng: Draws the waiting times.
            stop: Once set, no call is started and no waiting goes on.
            spending: Each call is added to it, also when the question ends in an error.

        Raises:
            TeacherError: The endpoint refuses the question or the key, or reports no usage to compute a cost from.
        """
        call = _Call(None, "", is_reached=False)
        for attempt in range(self._max_retries + 1):
            if stop.is_set():
                return Reply(None, "stopped", call.problem)
            if not self.budget.start():
                return Reply(None, "limit", call.problem)
            spending.add(Spending(num_calls=1))
            call = self._call(client, messages)
            spending.add(Spending(cost=call.cost, dearest=call.cost))
            value = None if call.text is None else read(call.text)
            if value is not None:
                return Reply(value, "answered")
            if call.rest_s > MAX_RETRY_AFTER_S:
                break
            if not call.is_reached and attempt < self._max_retries:
                delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 30)) * rng.uniform(0.5, 1.0)
                stop.wait(max(delay_s, call.rest_s))
        return Reply(None, "unclear" if call.is_reached else "unreachable", call.problem)

    def _call(self, client: httpx.Client, messages: list[Message]) -> _Call:
        """Makes one call and books its cost, whatever comes of it.

        An answer that is not waited for may be charged all the same, so it counts as the dearest so far.
        """
        cost = 0.0
        try:
            response = client.post(self.url, json={"model": self.model, "messages": messages})
            if not response.is_success:
                return self._explain_status(response)
            body = _json_object(response)
            cost = self._cost(body)
            text = _answer_text(body)
            problem = "" if text is not None else f"no text in the answer: {self._show(response.text)}"
            return _Call(text, problem, is_reached=True, cost=cost)
        except httpx.RequestError as error:
            if isinstance(error, httpx.ReadTimeout):
                cost = self.budget.dearest
            return _Call(None, self._show(f"{type(error).__name__}: {error}"), is_reached=False, cost=cost)
        except Exception:
            self.budget.close()  # Before the call is booked, which lets the next one start.
            raise
        finally:
            self.budget.finish(cost)

    def _explain_status(self, response: httpx.Response) -> _Call:
        """Returns a call that may be repeated.

        Raises:
            TeacherError: Repeating it would not help.
        """
        status = response.status_code
        problem = f"status {status}: {self._show(response.text)}"
        if status in RETRIED_STATUS or status >= 500:
            return _Call(None, problem, is_reached=False, rest_s=retry_after_s(response))
        advice = (
            "Check the key that teacher.api_key_env names" if status in (401, 403) else "Check teacher.url and model"
        )
        raise TeacherError(
            f"{self.url} refused the question to {self.model} ({problem}). {advice}, then resume the run."
        )

    def _cost(self, body: dict[str, Any]) -> float:
        """Returns the cost of an answer; one that does not tell its tokens counts as the dearest so far.

        Raises:
            TeacherError: There is a limit of cost, and nothing to compute the first cost from.
        """
        sent, received = _num_tokens(body, "prompt_tokens"), _num_tokens(body, "completion_tokens")
        if sent is not None and received is not None:
            return sent / 1000.0 * self._prices[0] + received / 1000.0 * self._prices[1]
        if self.budget.max_cost is not None and self.budget.dearest == 0.0 and body:
            raise TeacherError(
                f"{self.url} does not report the tokens it used, so teacher.max_cost={self.budget.max_cost:g} cannot "
                "be kept. Use teacher.max_calls instead."
            )
        return self.budget.dearest

    def _show(self, text: str) -> str:
        """Returns the start of a text on one line, without the key that some servers repeat."""
        shown = " ".join(text.split())
        if self._api_key:
            shown = shown.replace(self._api_key, "***")
        return shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}..."


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """Returns the object in a body, an empty one where there is none."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _num_tokens(body: dict[str, Any], name: str) -> int | None:
    """Returns a count of tokens that a body reports; None where it reports none, or a number that is none."""
    usage = body.get("usage")
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if isinstance(number, int) and 0 <= number <= MAX_TOKENS else None


def _answer_text(body: dict[str, Any]) -> str | None:
    """Returns the text of the first answer in a body; None where there is none."""
    try:
        content = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) and content.strip() else None


def retry_after_s(response: httpx.Response) -> float:
    """Returns the seconds, or the seconds until the date, of a Retry-After header; 0 where there is none."""
    value = response.headers.get("Retry-After", "").strip()
    if value.replace(".", "", 1).isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
