"""Calls of a chat endpoint: what is tried again, what ends the run, and limits of calls and cost."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
from chat_server import (
    KEY,
    PRICES,
    USAGE,
    USUAL_DELAY_S,
    FakeEndpoint,
    ask,
    by_brightness,
    choose,
    clips_of,
    completion,
    judge,
    make_queries,
)

from themis_ray.data import Choice
from themis_ray.errors import TeacherError
from themis_ray.feedback import chat_endpoint
from themis_ray.feedback.chat_endpoint import CallBudget, ChatEndpoint, Spending

# ---------------------------------------------------------------- retries


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_busy_endpoints_are_asked_again(server, status):
    server.reply = lambda server, request: (status, "busy", {}) if request["number"] < 3 else choose("left")
    assert ask(judge(server, max_retries=3), make_queries(1)[0]) == [Choice.LEFT]
    assert len(server.requests) == 4


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that were waited between calls, which are not waited for."""
    recorded: list[float] = []
    original = threading.Event.wait

    def wait(event, timeout=None):
        # Threads wait for each other without a limit, the server's for a moment.
        if timeout is None or timeout < 0.1:
            return original(event, timeout)
        recorded.append(timeout)
        return event.is_set()

    monkeypatch.setattr(chat_endpoint, "FIRST_DELAY_S", USUAL_DELAY_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", wait)
        yield recorded


def test_waiting_times_double_with_jitter_and_honour_retry_after(server, waits):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    headers = [{}, {}, {}, {"Retry-After": "7"}, {"Retry-After": date}, {"Retry-After": "soon"}, {}, {}]
    server.reply = lambda server, request: (429, "busy", headers[request["number"]])
    with pytest.raises(TeacherError):
        ask(judge(server, max_retries=7), make_queries(1)[0])
    assert len(waits) == 7
    for attempt in (0, 1, 2, 5):
        assert 0.5 * 2**attempt <= waits[attempt] <= 2**attempt
    assert 7 <= waits[3] <= 8
    assert 40 <= waits[4] <= 50
    assert 30 <= waits[6] <= 60, "no more than a minute"


def test_an_endpoint_may_be_asked_again_a_thousand_times(waits):
    endpoint = ChatEndpoint("http://judge.test", "seer", None, 1.0, 1100, CallBudget(None, None))
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(503)))
    reply = endpoint.ask(client, [], str, np.random.default_rng(0), threading.Event(), Spending())
    assert reply.outcome == "unreachable"
    assert len(waits) == 1100
    assert max(waits) <= 60


def test_jitter_differs_between_questions_and_not_between_runs(server, waits):
    def waits_of(seed: int) -> list[float]:
        waits.clear()
        with pytest.raises(TeacherError):
            ask(judge(server, max_retries=1), make_queries(5)[0], seed)
        return sorted(waits)

    server.reply = lambda server, request: (503, "", {})
    first = waits_of(0)
    assert len(set(first)) == 5
    assert waits_of(0) == first
    assert waits_of(1) != first


def test_a_pause_of_hours_is_not_waited_for(server):
    server.reply = lambda server, request: (429, "quota", {"Retry-After": "86400"})
    with pytest.raises(TeacherError, match="status 429: quota"):
        ask(judge(server), make_queries(1)[0])
    assert len(server.requests) == 1


def test_time_outs_are_asked_again(server):
    release = threading.Event()

    def reply(server, request):
        if request["number"] == 0:
            release.wait(60)
        return choose("left")

    server.reply = reply
    assert ask(judge(server, timeout_s=0.3), make_queries(1)[0]) == [Choice.LEFT]
    # The first call is still under way.
    assert not release.is_set()
    assert server.num_under_way >= 1
    release.set()
    assert len(server.requests) >= 2


def test_an_endpoint_that_never_answers_ends_the_run(server):
    release = threading.Event()
    server.reply = lambda server, request: (release.wait(5), choose("left"))[1]
    with pytest.raises(TeacherError, match=r"answered none of 1 questions .*ReadTimeout"):
        ask(judge(server, timeout_s=0.1, max_retries=1), make_queries(1)[0])
    release.set()


def test_an_endpoint_that_is_not_there_ends_the_run(server, tmp_path):
    gone = FakeEndpoint()
    gone.server_close()
    teacher = judge(gone, tmp_path / "answers.jsonl", max_retries=1)
    with pytest.raises(TeacherError, match=r"answered none of 3 questions .*ConnectError.*then resume the run"):
        ask(teacher, make_queries(3)[0])
    # Nothing was answered, so nothing is kept: the resumed run asks again.
    assert not teacher.cache.answers


def test_one_question_that_is_lost_is_skipped_and_told(server, caplog, tmp_path):
    queries, expected = make_queries(4)

    def reply(server, request):
        is_third = clips_of(request["body"])[0][0][0, 0, 0] == queries[2].left.observations[0, 0]
        return (500, "oops", {}) if is_third else by_brightness(server, request)

    server.reply = reply
    teacher = judge(server, tmp_path / "answers.jsonl", max_retries=1)
    assert ask(teacher, queries) == [*expected[:2], Choice.SKIP, expected[3]]
    assert "did not answer 1 questions (status 500: oops)" in caplog.text
    assert queries[2].id not in teacher.cache.answers


@pytest.mark.parametrize(("status", "advice"), [(401, "api_key_env"), (403, "api_key_env"), (404, "url"), (400, "url")])
def test_a_refusal_ends_the_run_at_once_in_one_line(server, status, advice):
    server.reply = lambda server, request: (status, f"wrong:\n{KEY}", {})
    with pytest.raises(
        TeacherError, match=rf"refused the question to seer \(status {status}: wrong: \*\*\*.*{advice}"
    ) as raised:
        ask(judge(server, max_concurrency=1), make_queries(5)[0])
    assert len(server.requests) == 1
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)


# ---------------------------------------------------------------- limits


def test_the_limit_of_calls_is_kept_and_told_once(server, caplog):
    queries, expected = make_queries(10)
    teacher = judge(server, max_calls=4)
    assert ask(teacher, queries[:8]) == expected[:4] + [Choice.SKIP] * 4
    assert ask(teacher, queries[8:]) == [Choice.SKIP] * 2
    assert len(server.requests) == 4
    assert caplog.text.count("queries that are left are skipped") == 1


def test_repeated_calls_count(server):
    server.reply = lambda server, request: completion("?") if request["number"] % 2 == 0 else choose("left")
    choices = ask(judge(server, max_calls=5, max_concurrency=1), make_queries(4)[0])
    assert choices == [Choice.LEFT, Choice.LEFT, Choice.SKIP, Choice.SKIP]
    assert len(server.requests) == 5


@pytest.mark.parametrize(("max_cost", "num_paid"), [(3.0, 3), (3.5, 3), (0.5, 1), (0.0, 0)])
@pytest.mark.parametrize("max_concurrency", [1, 8])
def test_the_limit_of_cost_is_kept(server, caplog, max_cost, num_paid, max_concurrency):
    """Each call costs 1: 500 tokens at 1 and 125 at 4 for 1000. The first one has to be made to know."""
    queries, expected = make_queries(6)
    teacher = judge(server, max_cost=max_cost, max_concurrency=max_concurrency, **PRICES)
    choices = ask(teacher, queries)
    assert len(server.requests) == num_paid
    assert sum(choice is not Choice.SKIP for choice in choices) == num_paid
    assert all(choice in (Choice.SKIP, right) for choice, right in zip(choices, expected, strict=True))
    assert teacher.budget.cost == pytest.approx(num_paid)
    assert caplog.text.count("queries that are left are skipped") == 1


def test_a_limit_of_cost_needs_reported_tokens(server):
    server.reply = lambda server, request: completion('{"choice": "left"}', usage=None)
    with pytest.raises(TeacherError, match="does not report the tokens"):
        ask(judge(server, max_cost=3.0, **PRICES), make_queries(1)[0])


@pytest.mark.parametrize("refusal", [completion('{"choice": "left"}', usage=None), (401, "who are you?", {})])
def test_calls_that_wait_for_the_first_one_are_not_made_after_a_refusal(server, refusal):
    server.reply = lambda server, request: refusal
    with pytest.raises(TeacherError):
        ask(judge(server, max_cost=30.0, max_concurrency=4, **PRICES), make_queries(10)[0])
    assert len(server.requests) == 1


@pytest.mark.parametrize("num_tokens", [10**400, -(10**6), 0.5, "500"], ids=["huge", "negative", "half", "text"])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_number_of_tokens_that_is_none_counts_as_the_dearest_call(server, name, num_tokens):
    odd = completion('{"choice": "left"}', usage={**USAGE, name: num_tokens})
    server.reply = lambda server, request: odd if request["number"] == 1 else choose("left")
    teacher = judge(server, max_cost=3.0, max_concurrency=1, **PRICES)
    assert ask(teacher, make_queries(4)[0]) == [Choice.LEFT] * 3 + [Choice.SKIP]
    assert teacher.budget.cost == pytest.approx(3.0)


def test_a_time_out_counts_as_the_dearest_call(server, tmp_path):
    release = threading.Event()
    path = tmp_path / "answers.jsonl"

    def reply(server, request):
        if request["number"] > 0:
            release.wait(60)
        return choose("left")

    server.reply = reply
    teacher = judge(server, path, max_cost=3.0, max_concurrency=1, timeout_s=0.5, **PRICES)
    assert ask(teacher, make_queries(3)[0]) == [Choice.LEFT, Choice.SKIP, Choice.SKIP]
    assert len(server.requests) == 3
    assert teacher.budget.cost == pytest.approx(3.0)
    assert judge(server, path).budget.cost == pytest.approx(3.0)
    release.set()
