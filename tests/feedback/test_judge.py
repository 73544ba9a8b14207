"""A judge asks a local HTTP server: what is sent, what comes back, both orders, secrets and settings."""

import json
import logging
import pickle
import threading
import time

import numpy as np
import pytest
from chat_server import (
    KEY,
    PRICES,
    USAGE,
    ask,
    by_brightness,
    choose,
    clips_of,
    completion,
    judge,
    make_queries,
    segment,
)
from lantern import LANTERN, lantern_frame
from recording import record

from themis_ray.data import Choice, Query
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError, TeacherError
from themis_ray.feedback import TeacherConfig, check_teacher, make_teacher
from themis_ray.feedback import judge as judge_module
from themis_ray.feedback.judge import read_choice

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
        np.testing.assert_array_equal(clip, [lantern_frame(int(side.episode_id), step) for step in (0, 4, 7, 11)])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "FrozenLake-v1"])
def test_the_model_sees_what_the_agent_saw(server, env_id):
    config = EnvConfig(id=env_id)
    pool, frames = record(config, 60)
    settings = {"kind": "judge", "model": "seer", "prompt": "p", "url": server.url, "num_frames": 3}
    queries = pool.sample_queries(3, 9, np.random.default_rng(0))
    ask(make_teacher(TeacherConfig(**settings, max_concurrency=1), config), queries)
    for query, request in zip(queries, server.requests, strict=True):
        for side, clip in zip((query.left, query.right), clips_of(request["body"]), strict=True):
            expected = [frames[side.episode_id][side.start_step + step] for step in (0, 4, 8)]
            np.testing.assert_array_equal(clip, expected)


def test_a_segment_without_an_origin_is_shown_to_nobody(server):
    strangers = pickle.loads(pickle.dumps((segment(1), segment(2))))
    with pytest.raises(DataError, match="has no origin"):
        ask(judge(server), [Query(*strangers)])
    assert not server.requests


def test_the_simulator_is_made_for_questions_only_and_closed_after_them(server, monkeypatch):
    told = []

    class Listened(judge_module.Replayer):
        def __init__(self, config):
            told.append("made")
            super().__init__(config)

        def close(self):
            told.append("closed")
            super().close()

    monkeypatch.setattr(judge_module, "Replayer", Listened)
    teacher, queries = judge(server), make_queries(2)[0]
    assert told == []
    ask(teacher, queries)
    ask(teacher, queries)  # Already answered.
    assert told == ["made", "closed"]


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
        ('{"choice": "left"}\nFinal answer: right', None),
        ('{"choice": "left"}\nFinal answer: left', "left"),
        ('{"choice": "left"}\nThe right clip shows a fall.', "left"),
        ('At first {"choice": "left"} seemed right.\n\nOn reflection: my choice is right.', None),
        ('I compared {"choice": "left"}, {"choice": "right"} and found none better.', None),
        ('I compared {"choice": "left"} and {"choice": "right"}.\n```json\n{"choice": "equal"}\n```.\n', "equal"),
        ('My choice is right.\n{"choice": "left", "why": {"speed": 1}}', "left"),
        ('{"choice": "left", "scores": {"left": 1, "right": 0}} That is all.', "left"),
        ('{"choice": "left", "choice": "right"}', None),
        ('{"choice": "left|right"}', None),
        ('{"choice": [1, "left"]}', None),
        ("choice: left or equal", None),
        ("choice: left\nchoice: left or maybe equal", None),
        ("choice: left. Right falls.", "left"),
        ("My choice is left, because the right clip shows a fall.", "left"),
        ("__right__", "right"),
        ('{"choice": ' + "[" * 100_000 + "]" * 100_000 + "}", None),
        ("choice" + "-" * 100_000 + "|", None),
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
        "[" * 200_000,
        "",
    ],
    ids=["words", "null", "empty", "no-choices", "no-answer", "list", "broken", "deep", "nothing"],
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


@pytest.mark.parametrize("limit", [{"max_calls": 8}, {"max_cost": 8.0, **PRICES}], ids=["calls", "cost"])
def test_a_limit_is_spent_on_whole_queries(server, limit):
    queries, expected = make_queries(8)
    teacher = judge(server, ask_both_orders=True, max_concurrency=1, **limit)
    assert ask(teacher, queries) == [*expected[:4], *[Choice.SKIP] * 4]
    assert len(server.requests) == 8


# ---------------------------------------------------------------- secrets and settings


def test_the_key_is_in_no_log_and_no_settings(server, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    server.reply = lambda server, request: (
        (500, f"your key {KEY} is fine", {}) if request["number"] == 0 else completion("?")
    )
    config = TeacherConfig(kind="judge", model="seer", prompt="p", url=server.url, max_retries=1)
    teacher = make_teacher(config, LANTERN, tmp_path / "answers.jsonl")
    ask(teacher, make_queries(3)[0])
    server.reply = lambda server, request: (503, f"{KEY}", {})
    with pytest.raises(TeacherError) as raised:
        ask(make_teacher(config, LANTERN, None), make_queries(2)[0])
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
        check_teacher(TeacherConfig(**settings, url="https://example.com/v1"), LANTERN)
    check_teacher(TeacherConfig(**settings, url="https://example.com/v1", api_key_env=None), LANTERN)
    check_teacher(TeacherConfig(**settings, url="http://localhost:8000/v1"), LANTERN)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check_teacher(TeacherConfig(**settings, url="https://example.com/v1"), LANTERN)


def test_environments_without_frames_are_refused_before_the_run():
    config = TeacherConfig(kind="judge", model="seer", prompt="p", url="http://localhost:8000/v1")
    with pytest.raises(ConfigError, match="lantern:Lantern draws no frames"):
        check_teacher(config, EnvConfig(id=LANTERN.id, kwargs={"fault": "broken"}))
