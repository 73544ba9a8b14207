"""Tells experimenters that queries wait with nobody answering, or that a study has ended: by webhook and by e-mail.

A webhook is a POST of JSON. `X-Themis-Signature` is `sha256=` and the hexadecimal HMAC-SHA256 of timestamp, a dot and
the body, by a key of the study that is made of the service's secret; `X-Themis-Timestamp` is in seconds since 1970.
Every event has an id of its own and is told once, by whichever process sees it first: one that dies in between has told
nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import smtplib
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from typing import Literal, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field

from themis_ray.errors import ConfigError
from themis_ray.feedback.addresses import is_address

__all__ = [
    "Event",
    "EventKind",
    "Ledger",
    "Notifier",
    "SmtpSettings",
    "StudyState",
    "check_webhook_url",
    "find_events",
    "sign",
    "webhook_key",
]

logger = logging.getLogger("themis_ray")

EventKind = Literal["waiting", "stopped"]

TIMEOUT_S = 5.0
NUM_TRIES = 3
PAUSE_S = 1.0
WAITING_AFTER_S = 600.0


class SmtpSettings(BaseModel):
    """How e-mail is sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1)
    port: int = Field(default=587, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="none sends in the clear: only to a server on the same machine."
    )
    user: str = ""
    password: str = Field(default="", repr=False)
    sender: str = Field(min_length=3, description="Address in From.")
    timeout_s: float = Field(default=10.0, gt=0, le=120)


@dataclass(frozen=True)
class StudyState:
    """What events are found in.

    Attributes:
        id: Of the study.
        title: Of the study.
        status: running, paused or stopped.
        num_answers: Answers that count.
        num_waiting: Places of ordinary queries without an answer.
        last_number: Number of the newest answer; 0 without one.
        last_answered_at: Seconds since 1970; None without an answer.
        waiting_since: When the oldest query that waits was added, seconds since 1970; None where none does.
        stopped_at: Seconds since 1970; None where the study goes on.
    """

    id: str
    title: str
    status: Literal["running", "paused", "stopped"]
    num_answers: int
    num_waiting: int
    last_number: int
    last_answered_at: float | None
    waiting_since: float | None
    stopped_at: float | None


@dataclass(frozen=True)
class Event:
    """Something to tell.

    Attributes:
        id: The same whoever finds it, so that it is told once.
        kind: What happened.
        study: Id of the study.
        title: Of the study.
        text: What happened, in a sentence.
        num_answers: As in `StudyState`.
        num_waiting: As in `StudyState`.
        happened_at: When, in UTC.
    """

    id: str
    kind: EventKind
    study: str
    title: str
    text: str
    num_answers: int
    num_waiting: int
    happened_at: datetime

    def as_json(self, page_url: str) -> bytes:
        """Returns the body of a webhook."""
        values = {
            "id": self.id,
            "kind": self.kind,
            "study": self.study,
            "title": self.title,
            "text": self.text,
            "num_answers": self.num_answers,
            "num_waiting": self.num_waiting,
            "happened_at": self.happened_at.isoformat(),
            "url": page_url,
        }
        return json.dumps(values, ensure_ascii=False).encode()


class Ledger(Protocol):
    """Remembers what was told; `Studies` is one."""

    def claim_notice(self, study_id: str, event: str) -> bool:
        """Whether nobody has been told of this event yet; from now on somebody has."""


def find_events(state: StudyState, now: float, waiting_after_s: float = WAITING_AFTER_S) -> list[Event]:
    """Returns what there is to tell of a study.

    * `waiting`: it runs, a query has waited and no answer has come for `waiting_after_s`. Once for each such lull:
      after the next answer another can begin.
    * `stopped`: it was stopped, by somebody or by itself.
    """
    if state.status == "stopped" and state.stopped_at is not None:
        text = f"The study has stopped after {state.num_answers} answers."
        return [_event(state, "stopped", f"{state.stopped_at:.3f}", text, state.stopped_at)]
    if state.status != "running" or state.waiting_since is None:
        return []
    since = max(state.waiting_since, state.last_answered_at or 0.0)
    if now - since < waiting_after_s:
        return []
    text = f"{state.num_waiting} answers are wanted, and nobody has answered for {(now - since) / 60:.0f} minutes."
    return [_event(state, "waiting", f"{state.last_number}", text, now)]


def _event(state: StudyState, kind: EventKind, key: str, text: str, at: float) -> Event:
    return Event(
        id=f"{kind}-{hashlib.sha256(f'{state.id}|{kind}|{key}'.encode()).hexdigest()[:24]}",
        kind=kind,
        study=state.id,
        title=state.title,
        text=text,
        num_answers=state.num_answers,
        num_waiting=state.num_waiting,
        happened_at=datetime.fromtimestamp(at, UTC),
    )


# ---------------------------------------------------------------- webhooks


def check_webhook_url(url: str) -> None:
    """Checks that an address may be told: https, or http to this machine.

    Raises:
        ConfigError: It is something else, or has a user and password in it.
    """
    if not is_address(url):
        raise ConfigError(f"webhook_url {url!r} is no address. Give an https:// address.")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError("webhook_url holds a user or password, which logs would show. Use the signature instead.")
    if parts.scheme == "http" and not _is_loopback(str(parts.hostname)):
        raise ConfigError(f"webhook_url {url!r} is sent in the clear. Give an https:// address.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def webhook_key(secret: bytes, study_id: str) -> str:
    """Returns the key that signs the webhooks of a study; whoever has it can check them and nothing else."""
    return hmac.new(secret, f"webhook|{study_id}".encode(), hashlib.sha256).hexdigest()


def sign(key: str, timestamp: str, body: bytes) -> str:
    """Returns the value of X-Themis-Signature."""
    digest = hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"sha256={digest}"


# ---------------------------------------------------------------- telling


class Notifier:
    """Tells each event once, by every way that the study names.

    Args:
        ledger: Remembers what was told.
        secret: Of the service; keys of webhooks are made of it.
        page_url: Returns the address of a study's page.
        smtp: How e-mail is sent; None: not at all.
        pause_s: How long it waits before it tries again, doubled every time.
        sleep: Waits.
    """

    def __init__(
        self,
        ledger: Ledger,
        secret: bytes,
        page_url: Callable[[str], str],
        smtp: SmtpSettings | None = None,
        *,
        pause_s: float = PAUSE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger, self._secret, self._page_url, self._smtp = ledger, secret, page_url, smtp
        self._pause_s, self._sleep = pause_s, sleep
        self._seen: set[str] = set()  # saves asking the ledger again

    def tell(self, events: Iterable[Event], webhook_url: str = "", email: str = "") -> int:
        """Tells what nobody was told yet and returns how many messages arrived.

        A message that does not arrive after three tries is logged and given up: what it would say is on the page too.

        Args:
            events: What there is to tell.
            webhook_url: Of the study; empty: none.
            email: Address; empty: none.
        """
        num_sent = 0
        for event in events:
            if webhook_url and self._claim(event, "web"):
                num_sent += self._try("webhook", event, partial(self._post, event, webhook_url))
            if email and self._smtp is not None and self._claim(event, "mail"):
                num_sent += self._try("e-mail", event, partial(self._mail, event, email, self._smtp))
        return num_sent

    def _claim(self, event: Event, way: str) -> bool:
        key = f"{event.id}:{way}"
        if key in self._seen:
            return False
        is_first = self._ledger.claim_notice(event.study, key)
        self._seen.add(key)
        return is_first

    def _try(self, way: str, event: Event, send: Callable[[], None]) -> bool:
        for number in range(NUM_TRIES):
            if number:
                self._sleep(self._pause_s * 2 ** (number - 1))
            try:
                send()
            except ConfigError as error:
                logger.warning("Study %s: no %s is sent, %s", event.study, way, error)
                return False
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, smtplib.SMTPException) as error:
                logger.warning("Study %s: try %d of the %s failed (%s).", event.study, number + 1, way, error)
            else:
                return True
        return False

    def _post(self, event: Event, url: str) -> None:
        check_webhook_url(url)
        body = event.as_json(self._page_url(event.study))
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "themis_ray",
            "X-Themis-Event": event.id,
            "X-Themis-Timestamp": timestamp,
            "X-Themis-Signature": sign(webhook_key(self._secret, event.study), timestamp, body),
        }
        # A redirect could lead anywhere; the environment's proxies are no business of ours.
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            response = client.post(url, content=body, headers=headers)
        if not response.is_success:
            raise httpx.HTTPError(f"the answer was {response.status_code}")

    def _mail(self, event: Event, address: str, smtp: SmtpSettings) -> None:
        message = _message(event, address, smtp.sender, self._page_url(event.study))
        context = ssl.create_default_context()
        if smtp.security == "none" and not _is_loopback(smtp.host):
            raise ConfigError(f"the mail server {smtp.host} is not on this machine and needs starttls or tls.")
        if smtp.security == "tls":
            client: smtplib.SMTP = smtplib.SMTP_SSL(smtp.host, smtp.port, timeout=smtp.timeout_s, context=context)
        else:
            client = smtplib.SMTP(smtp.host, smtp.port, timeout=smtp.timeout_s)
        with client:
            if smtp.security == "starttls":
                client.starttls(context=context)
            if smtp.user:
                client.login(smtp.user, smtp.password)
            client.send_message(message)


def _message(event: Event, address: str, sender: str, page_url: str) -> EmailMessage:
    """Returns an e-mail; line breaks in a title would be headers, so there are none."""
    message = EmailMessage()
    title = " ".join(event.title.split())
    subject = {"waiting": "nobody is answering", "stopped": "the study has stopped"}[event.kind]
    message["Subject"] = f"{title}: {subject}"
    message["From"] = sender
    message["To"] = " ".join(address.split())
    message["Date"] = formatdate(event.happened_at.timestamp())
    message["Message-ID"] = make_msgid(event.id, domain="themis-ray.invalid")
    message.set_content(f"{title}\n\n{event.text}\n\nAnswers so far: {event.num_answers}\n{page_url}\n")
    return message
