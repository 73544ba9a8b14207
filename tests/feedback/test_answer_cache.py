"""A judge's answers are kept by query id, so that a resumed run never pays twice."""

import json

import pytest
from chat_server import KEY, PRICES, ask, by_brightness, completion, judge, make_queries

from themis_ray.config import load_config
from themis_ray.data import Choice
from themis_ray.errors import DataError, RunFolderError, TeacherError
from themis_ray.feedback.judge import AnswerCache
from themis_ray.tracking import RunFolder


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
