"""Messages to experimenters: when there is something to tell, told once, signed, and to nobody else."""

import asyncio
import email
import hashlib
import hmac
import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import answer

from themis_ray.errors import ConfigError
from themis_ray.labeling import housekeeping
from themis_ray.labeling.notify import (
    Notifier,
    SmtpSettings,
    StudyState,
    check_webhook_url,
    find_events,
    sign,
    webhook_key,
)

SECRET = b"a secret of tests"
NOW = 1_800_000_000.0
STATE = StudyState("walker", "Which walks\nbetter?", "running", 40, 12, 40, NOW - 700, NOW - 5000, None)


class Ledger:
    def __init__(self):
        self.told = set()

    def claim_notice(self, study_id, event):
        is_new = (study_id, event) not in self.told
        self.told.add((study_id, event))
        return is_new


@contextmanager
def web_server(statuses=()):
    """A server that answers with these statuses, then with 200; yields its address and what it got."""
    got, remaining = [], list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            self.send_response(remaining.pop(0) if remaining else 200)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def mail_server(refusals=0):
    """A mail server of the few commands that are needed; yields its port and the messages it got."""
    got, started = [], threading.Event()
    loop = asyncio.new_event_loop()
    left = [refusals]

    async def serve(reader, writer):
        def say(text):
            writer.write(text.encode() + b"\r\n")

        say("220 test")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            if word in ("EHLO", "HELO", "RSET"):
                say("250 test")
            elif word == "MAIL" and left[0]:
                left[0] -= 1
                say("451 later")
            elif word in ("MAIL", "RCPT"):
                say("250 ok")
            elif word == "DATA":
                say("354 go on")
                body = await reader.readuntil(b"\r\n.\r\n")
                got.append(email.message_from_bytes(body[:-3], policy=email.policy.default))
                say("250 ok")
            elif word == "QUIT":
                say("221 bye")
                break
            else:
                say("502 unknown")
        writer.close()

    async def start():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        got_port.append(server.sockets[0].getsockname()[1])
        started.set()

    got_port = []
    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield got_port[0], got
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def make_notifier(ledger=None, smtp=None, pauses=None):
    waits = [] if pauses is None else pauses
    return Notifier(
        ledger or Ledger(), SECRET, lambda study: f"http://labels/studies/{study}", smtp, sleep=waits.append
    )


def smtp_settings(port):
    return SmtpSettings(host="127.0.0.1", port=port, security="none", sender="themis@example.org")


# ---------------------------------------------------------------- what there is to tell


def kinds(**changes):
    return [event.kind for event in find_events(replace(STATE, **changes), NOW)]


def test_queries_that_wait_with_nobody_answering_are_told():
    (event,) = find_events(STATE, NOW)
    assert (event.kind, event.study, event.num_waiting) == ("waiting", "walker", 12)
    assert event.text == "12 answers are wanted, and nobody has answered for 12 minutes."
    assert kinds(last_answered_at=NOW - 599) == []
    assert kinds(waiting_since=NOW - 599) == []
    assert kinds(last_answered_at=None, last_number=0) == ["waiting"]
    assert kinds(waiting_since=None, num_waiting=0) == []
    assert kinds(status="paused") == []


def test_the_end_of_a_study_is_told():
    (event,) = find_events(replace(STATE, status="stopped", stopped_at=NOW - 99), NOW)
    assert (event.kind, event.happened_at.timestamp()) == ("stopped", NOW - 99)


def test_a_lull_is_one_event_and_the_next_one_another():
    (first,) = find_events(STATE, NOW)
    (later,) = find_events(STATE, NOW + 3600)
    (after_answer,) = find_events(replace(STATE, last_number=41, last_answered_at=NOW), NOW + 3600)
    (other_study,) = find_events(replace(STATE, id="hopper"), NOW)
    assert first.id == later.id
    assert len({first.id, after_answer.id, other_study.id}) == 3
    stops = {find_events(replace(STATE, status="stopped", stopped_at=at), NOW)[0].id for at in (1.0, 2.0, 2.0)}
    assert len(stops) == 2


# ---------------------------------------------------------------- webhooks


def test_a_webhook_is_signed_json():
    with web_server() as (url, got):
        assert make_notifier().tell(find_events(STATE, NOW), url) == 1
    ((headers, body),) = got
    said = json.loads(body)
    assert (said["kind"], said["study"], said["num_waiting"]) == ("waiting", "walker", 12)
    assert said["url"] == "http://labels/studies/walker"
    assert headers["X-Themis-Event"] == said["id"]
    # As docs/labelling-quality.md tells to check it.
    key = webhook_key(SECRET, "walker")
    signed = headers["X-Themis-Timestamp"].encode() + b"." + body
    expected = "sha256=" + hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(headers["X-Themis-Signature"], expected)
    assert sign(key, headers["X-Themis-Timestamp"], body + b" ") != expected
    assert webhook_key(SECRET, "hopper") != key


def test_an_event_is_told_once_by_all_processes_together():
    ledger = Ledger()
    with web_server() as (url, got):
        for _ in range(2):
            notifier = make_notifier(ledger)
            assert [notifier.tell(find_events(STATE, NOW), url) for _ in range(3)] in ([1, 0, 0], [0, 0, 0])
    assert len(got) == 1


def test_a_webhook_that_fails_is_tried_three_times():
    pauses = []
    with web_server([500, 503]) as (url, got):
        assert make_notifier(pauses=pauses).tell(find_events(STATE, NOW), url) == 1
    assert len(got) == 3
    assert len({headers["X-Themis-Event"] for headers, _ in got}) == 1
    assert pauses == [1.0, 2.0]
    with web_server([500] * 9) as (url, got):
        assert make_notifier().tell(find_events(STATE, NOW), url) == 0
    assert len(got) == 3
    assert make_notifier().tell(find_events(STATE, NOW), "http://127.0.0.1:9/closed") == 0


def test_redirects_are_not_followed():
    with web_server([302] * 3) as (url, got):
        assert make_notifier().tell(find_events(STATE, NOW), url) == 0
    assert len(got) == 3


@pytest.mark.parametrize(
    "url", ["https://hooks.example.org/x?y=1", "http://127.0.0.1:8000/", "http://localhost/x", "http://[::1]:80/"]
)
def test_addresses_that_may_be_told(url):
    check_webhook_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "http://10.0.0.1/",
        "http://127.0.0.1.example.org/",
        "http://localhost@example.org/",
        "https://user:word@example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https://[",
        "https://a\tb/",
        "https://example.org:port/",
        "hooks.example.org",
    ],
)
def test_addresses_that_may_not_be_told(url):
    with pytest.raises(ConfigError):
        check_webhook_url(url)
    assert make_notifier().tell(find_events(STATE, NOW), url) == 0


def test_a_study_is_not_made_with_an_address_that_may_not_be_told(lab):
    for url in ("https://[", "http://example.org/"):
        settings = {"id": "cart", "title": "Carts", "webhook_url": url}
        refused = lab.member().post("/api/v1/studies", json=settings)
        assert refused.status_code == 422
        assert "webhook_url" in refused.json()["error"]
    assert lab.service.store.studies.all() == []


# ---------------------------------------------------------------- e-mail


def test_an_email_says_what_has_happened():
    with mail_server() as (port, got):
        assert make_notifier(smtp=smtp_settings(port)).tell(find_events(STATE, NOW), email="ada@example.org") == 1
    (message,) = got
    assert message["To"] == "ada@example.org"
    assert message["From"] == "themis@example.org"
    assert message["Subject"] == "Which walks better?: nobody is answering"
    text = message.get_content()
    assert "12 answers are wanted" in text
    assert "http://labels/studies/walker" in text


def test_an_email_is_tried_again_and_told_once():
    ledger = Ledger()
    with mail_server(refusals=1) as (port, got):
        assert make_notifier(ledger, smtp_settings(port)).tell(find_events(STATE, NOW), email="a@example.org") == 1
        assert make_notifier(ledger, smtp_settings(port)).tell(find_events(STATE, NOW), email="a@example.org") == 0
    assert len(got) == 1


def test_both_ways_are_told():
    with web_server() as (url, posts), mail_server() as (port, mails):
        assert make_notifier(smtp=smtp_settings(port)).tell(find_events(STATE, NOW), url, "ada@example.org") == 2
    assert (len(posts), len(mails)) == (1, 1)


def test_without_settings_there_is_no_email_and_none_goes_in_the_clear_to_elsewhere():
    ledger = Ledger()
    assert make_notifier(ledger).tell(find_events(STATE, NOW), email="ada@example.org") == 0
    assert not ledger.told
    smtp = SmtpSettings(host="mail.example.org", security="none", sender="themis@example.org")
    assert make_notifier(smtp=smtp).tell(find_events(STATE, NOW), email="ada@example.org") == 0
    assert "word" not in repr(SmtpSettings(host="h", sender="a@b", password="word"))


# ---------------------------------------------------------------- a service


def test_studies_are_watched(lab, monkeypatch):
    store = lab.service.store
    lab.study("quiet")
    with web_server() as (url, got):
        lab.study(overlap=2, webhook_url=url)
        made_at = store.studies.get("cart").created_at

        def work_at(now):
            # Another process every time, which knows from the store alone what was told.
            monkeypatch.setattr(housekeeping, "time", SimpleNamespace(time=lambda: now))
            return housekeeping.Housekeeper(lab.service).work()

        assert work_at(made_at + 10) == 0
        assert work_at(made_at + 3600) == 1
        assert work_at(made_at + 7200) == 0
        client = lab.annotator()
        (first, *_) = client.get("/api/v1/assignments").json()["assignments"]
        answer(client, first)
        assert work_at(made_at + 7200) == 1
        store.studies.set_status("cart", "paused", "test")
        assert work_at(made_at + 9999) == 0
        store.studies.set_status("cart", "stopped", "test")
        assert work_at(made_at + 9999) == 1
        assert work_at(made_at + 9999) == 0
    said = [json.loads(body) for _, body in got]
    assert [row["kind"] for row in said] == ["waiting", "waiting", "stopped"]
    assert [row["num_waiting"] for row in said] == [10, 9, 9]
    assert [row["num_answers"] for row in said] == [0, 1, 1]
    assert {row["title"] for row in said} == {"Carts"}
    assert {row["url"] for row in said} == {"http://testserver/studies/cart"}


def test_what_could_not_be_noted_is_told_later():
    class Flaky(Ledger):
        num_calls = 0

        def claim_notice(self, study_id, event):
            self.num_calls += 1
            if self.num_calls == 1:
                raise RuntimeError("the database is away")
            return super().claim_notice(study_id, event)

    with web_server() as (url, got):
        notifier = make_notifier(Flaky())
        with pytest.raises(RuntimeError):
            notifier.tell(find_events(STATE, NOW), url)
        assert notifier.tell(find_events(STATE, NOW), url) == 1
    assert len(got) == 1
