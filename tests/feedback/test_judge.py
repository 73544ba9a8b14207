"""A judge asks a local HTTP server that speaks the chat-completions protocol as the test tells it to."""

import base64
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from themis_ray.config import load_config
from themis_ray.data import Choice, Query, Segment
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError, RunFolderError, TeacherError
from themis_ray.feedback import TeacherConfig, chat_endpoint, check_teacher, make_teacher, segment_frames
from themis_ray.feedback.judge import AnswerCache, read_choice
from themis_ray.tracking import RunFolder

ENV = EnvConfig(id="CarRacing-v3")
KEY = "sk-secret-0123456789"
NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
PRICES = {"price_per_1k_input_tokens": 1.0, "price_per_1k_output_tokens": 4.0}
USAGE = {"prompt_tokens": 500, "completion_tokens": 125}  # costs 1.0 at these prices
USUAL_DELAY_S = 1.0


def completion(text, usage=USAGE) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def choose(word: str) -> dict:
    return completion(json.dumps({"choice": word}))


def by_brightness(server, request) -> dict:
    """Prefers the clip whose first frame is brighter."""
    left, right = (clip[0].mean() for clip in clips_of(request["body"]))
    return choose("left" if left > right else "right")


def clips_of(body: dict) -> list[list[np.ndarray]]:
    """Returns the frames of both clips, decoded from a request."""
    clips: list[list[np.ndarray]] = []
    for part in body["messages"][1]["content"]:
        if part["type"] == "text" and "clip," in part["text"]:
            clips.append([])
        elif part["type"] == "image_url":
            scheme, _, data = part["image_url"]["url"].partition(",")
            assert scheme == "data:image/png;base64"
            image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            clips[-1].append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return clips


class FakeEndpoint(ThreadingHTTPServer):
    """Answers each POST with what `reply(server, request)` returns: a body, or (status, body, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = by_brightness
        self.requests: list[dict] = []
        self.lock = threading.Lock()
        self.num_under_way = 0
        self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """Says nothing about clients that hung up."""


class Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            request = {"path": self.path, "headers": dict(self.headers), "body": body, "number": number}
            server.requests.append(request)
            server.num_under_way += 1
            server.most_under_way = max(server.most_under_way, server.num_under_way)
        reply = server.reply(server, request)
        with server.lock:
            server.num_under_way -= 1
        status, answer, headers = reply if isinstance(reply, tuple) else (200, reply, {})
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(chat_endpoint, "FIRST_DELAY_S", 0.01)
    endpoint = FakeEndpoint()
    thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    endpoint.shutdown()
    endpoint.server_close()
    thread.join()


def segment(brightness: int, length: int = 12) -> Segment:
    """A clip that becomes darker step by step."""
    observations = np.zeros((length, 36, 40, 3), np.uint8)
    observations[..., 0] = brightness
    observations[..., 1] = np.arange(length)[:, None, None]
    return Segment.create(ENV.id, "e", 0, observations, np.zeros((length, 1), np.float32), np.zeros(length))


def make_queries(n: int) -> tuple[list[Query], list[Choice]]:
    """Returns queries and what `by_brightness` answers."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 200, n)
    right = (left + rng.integers(1, 100, n)) % 255
    queries = [Query(segment(int(a)), segment(int(b))) for a, b in zip(left, right, strict=True)]
    return queries, [Choice.LEFT if a > b else Choice.RIGHT for a, b in zip(left, right, strict=True)]


def judge(server: FakeEndpoint, cache_path=None, **settings):
    settings = {"model": "seer", "prompt": "Be bright.", "url": server.url, **settings}
    return make_teacher(TeacherConfig(kind="judge", **settings), ENV, cache_path)


def ask(teacher, queries, seed: int = 0) -> list[Choice]:
    return teacher.answer(queries, np.random.default_rng(seed), NO_RETURNS)


# ---------------------------------------------------------------- what is sent


def test_the_request_is_the_protocols(server):
    query = make_queries(1)[0][0]
    ask(judge(server, num_frames=4), [query])
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["headers"]["Content-Type"] == "application/json"
    assert request["body"]["model"] == "seer"
    system, user = request["body"]["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert '{"choice": "left"}' in system["content"]
    assert "Be bright." in user["content"][0]["text"]
    clips = clips_of(request["body"])
    for side, clip in zip((query.left, query.right), clips, strict=True):
        # 4 of 12 steps, the first and the last among them: 0, 3.67, 7.33, 11.
        np.testing.assert_array_equal(clip, segment_frames(side, ENV)[[0, 4, 7, 11]])


@pytest.mark.parametrize(("length", "num_frames", "expected"), [(3, 6, 3), (12, 6, 6), (12, 1, 1)])
def test_no_more_frames_than_steps(server, length, num_frames, expected):
    ask(judge(server, num_frames=num_frames), [Query(segment(1, length), segment(2, length))])
    assert [len(clip) for clip in clips_of(server.requests[0]["body"])] == [expected] * 2


@pytest.mark.parametrize("suffix", ["", "/", "/chat/completions", "/chat/completions/"])
def test_base_url_and_full_address_mean_the_same(server, suffix):
    ask(judge(server, url=server.url + suffix), make_queries(1)[0])
    assert server.requests[0]["path"] == "/v1/chat/completions"


def test_no_key_is_sent_where_none_is_wanted(server):
    ask(judge(server, api_key_env=None), make_queries(1)[0])
    assert "Authorization" not in server.requests[0]["headers"]


def test_the_key_comes_from_the_variable_that_is_named(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", " another-key \n")
    ask(judge(server, api_key_env="MY_KEY"), make_queries(1)[0])
    assert server.requests[0]["headers"]["Authorization"] == "Bearer another-key"


# ---------------------------------------------------------------- what comes back


def test_answers_are_in_the_order_of_the_queries(server):
    queries, expected = make_queries(24)
    rng = np.random.default_rng(1)
    delays = rng.uniform(0, 0.03, 100)

    def reply(server, request):
        time.sleep(delays[request["number"]])
        return by_brightness(server, request)

    server.reply = reply
    assert ask(judge(server, max_concurrency=8), queries) == expected
    assert len(server.requests) == 24


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_calls_at_a_time_than_allowed(server, most):
    together = threading.Barrier(most)

    def reply(server, request):
        together.wait(10)
        return by_brightness(server, request)

    server.reply = reply
    queries, expected = make_queries(12)
    assert ask(judge(server, max_concurrency=most), queries) == expected
    assert server.most_under_way == most


def test_no_query_no_call(server):
    assert ask(judge(server), []) == []
    assert not server.requests


def test_a_query_asked_twice_is_paid_once(server):
    queries, expected = make_queries(3)
    assert ask(judge(server), queries * 2) == expected * 2
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        *((json.dumps({"choice": word}), word) for word in ("left", "right", "equal", "skip")),
        ('```json\n{"choice": "Left"}\n```', "left"),
        ('First {"choice": "left"} seemed good. On balance:\n{"choice": "right", "why": "it is bright"}', "right"),
        ('{"choice": "left", "why": {"speed": 1}}', "left"),
        ("{'choice': 'equal'}", "equal"),
        ("**Choice:** RIGHT", "right"),
        ("My choice is left.", "left"),
        ("Both fall.\n\nThe final answer is: skip.", "skip"),
        ("right", "right"),
        ("Left.", "left"),
        ("", None),
        ("   \n", None),
        ("I like both clips.", None),
        ("The left clip shows a fall, the right clip does not.", None),
        ('{"choice": "both"}', None),
        ('{"choice": 1}', None),
        ('{"choice": null}', None),
        ("[1, 2]", None),
        ("choice: left\nchoice: right", None),
        ('{"answer": "left"}', "left"),
        ('{"better": "left"}', None),
    ],
)
def test_answers_are_read_leniently_and_never_guessed(text, choice):
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    "garbage",
    [
        completion("I cannot tell."),
        completion(None),
        completion(""),
        {"choices": [], "usage": USAGE},
        {"usage": USAGE},
        ["left"],
        "no json {",
        "",
    ],
    ids=["words", "null", "empty", "no-choices", "no-answer", "list", "broken", "nothing"],
)
def test_an_unreadable_answer_is_asked_again_then_skipped(server, garbage, caplog):
    server.reply = lambda server, request: garbage if request["number"] < 2 else choose("right")
    query = make_queries(1)[0]
    assert ask(judge(server, max_retries=2), query) == [Choice.RIGHT]
    server.requests.clear()
    server.reply = lambda server, request: garbage
    assert ask(judge(server, max_retries=2), query) == [Choice.SKIP]
    assert len(server.requests) == 3
    assert "1 answers of the judge could not be read" in caplog.text


def test_answers_in_parts_are_read(server):
    server.reply = lambda server, request: completion([{"type": "text", "text": '{"choice":'}, {"text": ' "left"}'}])
    assert ask(judge(server), make_queries(1)[0]) == [Choice.LEFT]


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
        is_third = clips_of(request["body"])[0][0][0, 0, 0] == queries[2].left.observations[0, 0, 0, 0]
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


# ---------------------------------------------------------------- the file of answers


def test_a_resumed_run_never_pays_twice(server, tmp_path):
    path = tmp_path / "preferences" / "judge_answers.jsonl"
    queries, expected = make_queries(6)
    assert ask(judge(server, path, **PRICES), queries[:4]) == expected[:4]
    resumed = judge(server, path, **PRICES)
    assert ask(resumed, queries) == expected
    assert len(server.requests) == 6
    assert resumed.budget.num_calls == 6
    assert resumed.budget.cost == pytest.approx(6.0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["query_id"]: row["choice"] for row in rows} == {q.id: c for q, c in zip(queries, expected, strict=True)}
    assert all(set(row) == {"query_id", "choice", "num_calls", "cost", "model", "answered_at"} for row in rows)
    assert KEY not in path.read_text()


def test_limits_are_those_of_the_whole_run(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    queries, expected = make_queries(6)
    ask(judge(server, path, max_cost=4.0, **PRICES), queries[:3])
    assert ask(judge(server, path, max_cost=4.0, **PRICES), queries).count(Choice.SKIP) == 2
    assert ask(judge(server, path, max_calls=4), queries).count(Choice.SKIP) == 2
    assert len(server.requests) == 4
    assert ask(judge(server, path, max_calls=6), queries) == expected


def test_skips_for_want_of_money_are_not_kept(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    queries, expected = make_queries(3)
    assert ask(judge(server, path, max_calls=1), queries).count(Choice.SKIP) == 2
    assert ask(judge(server, path), queries) == expected


def test_unreadable_answers_were_paid_and_are_kept(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    server.reply = lambda server, request: completion("hm")
    query = make_queries(1)[0]
    for _ in range(2):
        assert ask(judge(server, path, max_retries=1), query) == [Choice.SKIP]
    assert len(server.requests) == 2


def test_answers_that_came_before_a_failure_are_kept(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    queries, expected = make_queries(5)
    server.reply = lambda server, request: (401, "", {}) if request["number"] == 3 else by_brightness(server, request)
    with pytest.raises(TeacherError):
        ask(judge(server, path, max_concurrency=1), queries)
    server.reply = by_brightness
    server.requests.clear()
    assert ask(judge(server, path), queries) == expected
    assert len(server.requests) == 2


def test_a_run_that_is_replaced_takes_its_answers_along(tmp_path):
    config = load_config(None, ["env.id=Pendulum-v1"])
    (tmp_path / "judge_answers.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"judge_answers\.jsonl"):
        RunFolder.create(tmp_path, config)
    RunFolder.create(tmp_path, config, overwrite=True)
    assert not (tmp_path / "judge_answers.jsonl").exists()


def test_a_torn_line_is_asked_again(server, tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    queries, expected = make_queries(3)
    ask(judge(server, path, max_concurrency=1), queries)
    text = path.read_text()
    path.write_text(text[:-20])
    assert ask(judge(server, path), queries) == expected
    assert len(server.requests) == 4
    assert "1 lines of" in caplog.text
    caplog.clear()
    assert ask(judge(server, path), queries) == expected
    assert len(server.requests) == 4


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        AnswerCache(tmp_path, "seer")


# ---------------------------------------------------------------- both orders


def swap(query: Query) -> Query:
    return Query(query.right, query.left)


def test_a_judge_without_bias_answers_the_same_in_both_orders(server):
    queries, expected = make_queries(6)
    teacher = judge(server, ask_both_orders=True)
    assert ask(teacher, queries) == expected
    assert len(server.requests) == 12
    # The other way round both questions are already answered.
    assert ask(teacher, [swap(query) for query in queries]) == [
        Choice.RIGHT if choice is Choice.LEFT else Choice.LEFT for choice in expected
    ]
    assert len(server.requests) == 12


@pytest.mark.parametrize(
    ("first", "second", "choice"),
    [
        ("left", "right", "left"),
        ("right", "left", "right"),
        ("left", "left", "equal"),
        ("right", "right", "equal"),
        ("equal", "equal", "equal"),
        ("left", "equal", "equal"),
        ("skip", "right", "skip"),
        ("left", "skip", "skip"),
    ],
)
def test_answers_that_disagree_become_equal(server, first, second, choice):
    query = Query(segment(10), segment(20))

    def reply(server, request):
        is_first = clips_of(request["body"])[0][0][0, 0, 0] == 10
        return choose(first if is_first else second)

    server.reply = reply
    assert ask(judge(server, ask_both_orders=True), [query]) == [choice]


# ---------------------------------------------------------------- secrets and settings


def test_the_key_is_in_no_log_and_no_settings(server, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    server.reply = lambda server, request: (
        (500, f"your key {KEY} is fine", {}) if request["number"] == 0 else completion("?")
    )
    config = TeacherConfig(kind="judge", model="seer", prompt="p", url=server.url, max_retries=1)
    teacher = make_teacher(config, ENV, tmp_path / "answers.jsonl")
    ask(teacher, make_queries(3)[0])
    server.reply = lambda server, request: (503, f"{KEY}", {})
    with pytest.raises(TeacherError) as raised:
        ask(make_teacher(config, ENV, None), make_queries(2)[0])
    for text in (
        caplog.text,
        str(raised.value),
        config.model_dump_json(),
        repr(config),
        (tmp_path / "answers.jsonl").read_text(),
    ):
        assert KEY not in text
    assert server.requests[0]["headers"]["Authorization"].endswith(KEY)


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(ConfigError, match="API key") as raised:
        judge(server)
    assert "secret" not in str(raised.value)


def test_a_judge_needs_the_environment(server):
    config = TeacherConfig(kind="judge", model="seer", prompt="p", url=server.url)
    with pytest.raises(ConfigError, match="environment"):
        make_teacher(config)


def test_a_key_is_asked_for_before_the_run(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = {"kind": "judge", "model": "seer", "prompt": "p"}
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY is not set.*teacher.api_key_env"):
        check_teacher(TeacherConfig(**settings, url="https://example.com/v1"), ENV)
    check_teacher(TeacherConfig(**settings, url="https://example.com/v1", api_key_env=None), ENV)
    check_teacher(TeacherConfig(**settings, url="http://localhost:8000/v1"), ENV)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check_teacher(TeacherConfig(**settings, url="https://example.com/v1"), ENV)


def test_environments_without_frames_are_refused_before_the_run():
    config = TeacherConfig(kind="judge", model="seer", prompt="p", url="http://localhost:8000/v1")
    with pytest.raises(ConfigError, match="frames of LunarLander-v3 cannot be drawn"):
        check_teacher(config, EnvConfig(id="LunarLander-v3"))
