"""The calls of a labelling service, for programs: training, commands, and annotators that are programs.

A `Call` says what goes over the wire and how the reply is read, and knows nothing of connections; `StudyClient` sends
calls one after the other over httpx and sends again what did not get through. Every call that changes something may be
sent twice: queries, clips and answers have names of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from themis_ray.errors import ConfigError, DataError, TeacherError
from themis_ray.feedback.addresses import is_address
from themis_ray.feedback.chat_endpoint import retry_after_s
from themis_ray.wire import (
    AnswerPage,
    AnswerReceipt,
    JoinRequest,
    NewAnswer,
    NewQuery,
    Session,
    StoredAnswer,
    Work,
)

__all__ = [
    "CLIP_TYPES",
    "AnnotatorCalls",
    "Call",
    "RefusedError",
    "StudyClient",
    "UnreachableError",
    "is_for_later",
    "retry_delay_s",
    "to_refusal",
]

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

_OBJECT = TypeAdapter(dict[str, Any])
_OBJECTS = TypeAdapter(list[dict[str, Any]])
API = "/api/v1"
# What a service that is restarted, overloaded or behind a proxy says.
RETRIED_STATUS = frozenset({429, 502, 503, 504})
CLIP_TYPES: Mapping[str, str] = {".webm": "video/webm", ".mp4": "video/mp4"}
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 20.0
MAX_QUERIES_PER_CALL = 500
MAX_SHOWN_CHARACTERS = 300


class RefusedError(TeacherError):
    """The service understood and said no; sending again would not help.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(TeacherError):
    """The service did not answer, or could not just now; later it may."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of the API.

    Attributes:
        method: GET, POST, PUT or DELETE.
        path: Below the address of the service.
        read: Returns the reply's value from its body.
        json: Sent as JSON; None sends nothing.
        content: Sent as it is.
        parameters: What stands behind the question mark.
        content_type: Of `content`.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    json: Any = None
    content: bytes | None = None
    parameters: Mapping[str, str | int] = field(default_factory=dict)
    content_type: str = ""

    @property
    def changes_something(self) -> bool:
        """Whether a browser's session has to prove with its CSRF token that it means it."""
        return self.method != "GET"


def _path(*parts: str) -> str:
    return "/".join([API, *(quote(part, safe="~") for part in parts)])


def _read_model(model: type[Model]) -> Callable[[bytes], Model]:
    return model.model_validate_json


def _read_json(body: bytes) -> Any:
    return httpx.Response(200, content=body).json() if body.strip() else {}


def _read_object(body: bytes) -> dict[str, Any]:
    return _OBJECT.validate_json(body)


def _read_list(body: bytes) -> list[dict[str, Any]]:
    return _OBJECTS.validate_json(body)


class AnnotatorCalls:
    """What a person's page sends."""

    @staticmethod
    def join(study: str, invitation: str, panel: Mapping[str, str] | None = None) -> Call[Session]:
        """Comes to a study as somebody new; the reply sets the session's cookie."""
        body = JoinRequest(invitation=invitation, panel=dict(panel or {}))
        return Call("POST", _path("studies", study, "join"), _read_model(Session), body.model_dump(mode="json"))

    @staticmethod
    def me() -> Call[Session]:
        """Asks who the caller is and what comes next."""
        return Call("GET", _path("me"), _read_model(Session))

    @staticmethod
    def consent(version: str, hash_: str, *, agrees: bool = True) -> Call[Session]:
        """Agrees to the consent text of this version and hash, or does not."""
        body = {"version": version, "hash": hash_, "agrees": agrees}
        return Call("POST", _path("consent"), _read_model(Session), body)

    @staticmethod
    def questions(which: str, answers: Mapping[str, Any]) -> Call[Session]:
        """Answers the questions before or after the work."""
        return Call("POST", _path("questions", which), _read_model(Session), {"answers": dict(answers)})

    @staticmethod
    def assignments(count: int = 3) -> Call[Work]:
        """Asks for work, up to `count` assignments in all."""
        return Call("GET", _path("assignments"), _read_model(Work), parameters={"count": count})

    @staticmethod
    def answer(answer: NewAnswer) -> Call[AnswerReceipt]:
        """Answers an assignment; the receipt holds the next ones."""
        body = answer.model_dump(mode="json", exclude_none=True)
        return Call("POST", _path("answers"), _read_model(AnswerReceipt), body)

    @staticmethod
    def undo(answer_id: str) -> Call[Work]:
        """Takes the last answer back."""
        return Call("POST", _path("answers", answer_id, "undo"), _read_model(Work))

    @staticmethod
    def withdraw() -> Call[dict[str, Any]]:
        """Leaves the study; all answers go."""
        return Call("POST", _path("withdraw"), _read_json)

    @staticmethod
    def finish() -> Call[dict[str, Any]]:
        """Asks for the completion code."""
        return Call("POST", _path("finish"), _read_json)


class StudyClient:
    """Sends calls with an experimenter's token and reads the replies.

    Broken connections and replies that are for later (`is_for_later`) are tried again after max(Retry-After, min(20,
    0.2 * 2**i) s) for the i-th time, as long as `patience_s` lasts.

    Args:
        url: Address of the service, such as `http://localhost:8000`.
        token: API token of a study; None sends none. It is in no message.
        patience_s: Seconds that one call may take, trying again included.
        timeout_s: Seconds that connecting, and each wait for more of a reply, may take.
        transport: Replaces the network; for tests.

    Raises:
        ConfigError: The address is none, or the token holds characters that no HTTP header can hold.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not is_address(url):
            raise ConfigError(
                f"{url!r} is no address. Give http:// or https:// with a host, as themis serve prints it."
            )
        self.url = url.rstrip("/").removesuffix(API)
        self.patience_s = patience_s
        self._token = (token or "").strip()
        if not all("!" <= character <= "~" for character in self._token):
            raise ConfigError("the API token holds blanks or letters that no token has. Copy it again, without quotes.")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def send(self, call: Call[T]) -> T:
        """Sends a call until it gets through and returns what came back.

        Raises:
            RefusedError: The service said no, or its reply cannot be read.
            UnreachableError: It did not answer in time.
        """
        deadline = time.monotonic() + self.patience_s
        headers = {"Content-Type": call.content_type} if call.content_type else None
        attempt = 0
        while True:
            rest_s, problem = 0.0, ""
            try:
                response = self._client.request(
                    call.method,
                    call.path,
                    json=call.json,
                    content=call.content,
                    params=dict(call.parameters) or None,
                    headers=headers,
                )
                if response.is_success:
                    return self._read(call, response)
                if not is_for_later(response.status_code, response.text):
                    raise to_refusal(f"{self.url}{call.path}", response.status_code, self._hide(response.text))
                problem = f"status {response.status_code}: {self._hide(response.text)}"
                rest_s = retry_after_s(response)
            except httpx.RequestError as error:
                problem = self._hide(f"{type(error).__name__}: {error}")
            delay_s = retry_delay_s(attempt, rest_s)
            if time.monotonic() + delay_s > deadline:
                raise UnreachableError(
                    f"{self.url} did not take {call.method} {call.path} ({problem}). Start the service with themis "
                    "serve, or check the address."
                )
            time.sleep(delay_s)
            attempt += 1

    def _read(self, call: Call[T], response: httpx.Response) -> T:
        try:
            return call.read(response.content)
        except ValueError as error:
            raise RefusedError(
                f"{self.url}{call.path} answered something else than a labelling service of this version does "
                f"({self._hide(str(error))}). Check the address, and that both sides have the same version.",
                response.status_code,
            ) from error

    def _hide(self, text: str) -> str:
        """Returns the start of a text on one line without the token."""
        shown = " ".join(text.split())
        return _shorten(shown.replace(self._token, "***") if self._token else shown)

    # ---------------------------------------------------------------- studies

    def create_study(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a study from its settings; the same study again changes nothing."""
        return self.send(Call("POST", _path("studies"), _read_object, dict(settings)))

    def studies(self) -> list[dict[str, Any]]:
        """Returns the studies that the caller may see."""
        return self.send(Call("GET", _path("studies"), _read_list))

    def study(self, study: str) -> dict[str, Any]:
        """Returns a study: its settings, its status and counts."""
        return self.send(Call("GET", _path("studies", study), _read_object))

    def set_status(self, study: str, status: str) -> dict[str, Any]:
        """Lets a study run, pauses or stops it."""
        return self.send(Call("POST", _path("studies", study, "status"), _read_object, {"status": status}))

    def report(self, study: str) -> dict[str, Any]:
        """Returns counts and quality."""
        return self.send(Call("GET", _path("studies", study, "report"), _read_object))

    def export(self, study: str, format_name: str) -> bytes:
        """Returns the answers as a file: parquet, jsonl, csv or huggingface (a zip)."""
        parameters = {"format": format_name}
        return self.send(Call("GET", _path("studies", study, "export"), bytes, parameters=parameters))

    def responses(self, study: str) -> list[dict[str, Any]]:
        """Returns what people answered to the questions before and after the work."""
        return self.send(Call("GET", _path("studies", study, "responses"), _read_list))

    def invite(self, study: str, **settings: Any) -> dict[str, Any]:
        """Makes a signed link through which people come to a study."""
        return self.send(Call("POST", _path("studies", study, "invitations"), _read_object, settings))

    def withdraw_annotator(self, study: str, annotator_id: str) -> dict[str, Any]:
        """Removes a person's answers from a study."""
        path = _path("studies", study, "annotators", annotator_id, "withdraw")
        return self.send(Call("POST", path, _read_object))

    # ---------------------------------------------------------------- queries and answers

    def upload_clip(self, study: str, path: Path) -> None:
        """Sends a clip that `write_clip` has written, unless the study has it.

        Raises:
            DataError: The file cannot be read.
        """
        address = _path("studies", study, "clips", path.name)
        try:
            self.send(Call("GET", address, bytes))
        except RefusedError as error:
            if error.status != 404:
                raise
        else:
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"the clip {path} cannot be read ({error.strerror}). Write it again.") from error
        kind = CLIP_TYPES.get(path.suffix, "application/octet-stream")
        self.send(Call("PUT", address, _read_json, content=content, content_type=kind))

    def add_queries(self, study: str, queries: Sequence[NewQuery]) -> None:
        """Puts queries to people; ids that are known change nothing."""
        for start in range(0, len(queries), MAX_QUERIES_PER_CALL):
            rows = [query.model_dump(mode="json") for query in queries[start : start + MAX_QUERIES_PER_CALL]]
            self.send(Call("POST", _path("studies", study, "queries"), _read_json, {"queries": rows}))

    def query(self, study: str, query_id: str) -> dict[str, Any]:
        """Returns a query with its clips and answers."""
        return self.send(Call("GET", _path("studies", study, "queries", query_id), _read_object))

    def queries(self, study: str) -> Iterator[dict[str, Any]]:
        """Yields every query of a study, with its clips and without its answers."""
        after = ""
        while True:
            parameters: dict[str, str | int] = {"after": after, "limit": MAX_QUERIES_PER_CALL}
            page = self.send(Call("GET", _path("studies", study, "queries"), _read_object, parameters=parameters))
            yield from page["queries"]
            after = page["after"]
            if not after:
                return

    def answers(self, study: str, after: int = 0) -> AnswerPage:
        """Returns answers in the order of arrival, those behind the cursor `after`."""
        return self.send(
            Call("GET", _path("studies", study, "answers"), _read_model(AnswerPage), parameters={"after": after})
        )

    def all_answers(self, study: str) -> Iterator[StoredAnswer]:
        """Yields every answer of a study."""
        cursor = 0
        while True:
            page = self.answers(study, cursor)
            yield from page.answers
            if not page.answers or page.cursor <= cursor:
                return
            cursor = page.cursor


def is_for_later(status: int, text: str) -> bool:
    """Whether a reply says that the service is busy or not there just now; everything else is meant.

    Ray Serve's own proxy answers 404 in plain text until its application is registered. A 404 that is meant is one of
    the service's errors.

    Args:
        status: HTTP status.
        text: Body of the reply; `{"error": ...}` if it is an error of a labelling service.
    """
    return status in RETRIED_STATUS or (status == 404 and _own_error(text) is None)


def to_refusal(address: str, status: int, text: str) -> RefusedError:
    """Returns the error for a status that is meant: what the service said and what to do.

    Args:
        address: What was called.
        status: HTTP status.
        text: Body of the reply; `{"error": ...}` if it is a labelling service.
    """
    told = _own_error(text) or text
    advice = {
        401: " Give an API token of this study in the environment variable THEMIS_STUDY_TOKEN.",
        403: " Give an API token of this study in the environment variable THEMIS_STUDY_TOKEN.",
        404: " Check the id of the study and the address; themis study list shows what is there.",
    }.get(status, "")
    return RefusedError(f"{address} refused ({status}: {_shorten(told)}).{advice}", status)


def _own_error(text: str) -> str | None:
    """Returns what a labelling service says is wrong; None if the reply is somebody else's."""
    try:
        body = json.loads(text)
    except ValueError:
        return None
    return str(body["error"]) if isinstance(body, dict) and "error" in body else None


def retry_delay_s(attempt: int, rest_s: float = 0.0) -> float:
    """Returns how long to wait after the `attempt`-th failure, from 0, of a service that wants `rest_s` of rest."""
    return max(rest_s, min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 30)))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
