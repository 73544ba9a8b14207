"""A judge's answers are kept by query id, so that a resumed run never pays twice."""

import json

import pytest
from chat_server import KEY, PRICES, ask, by_brightness, choose, completion, judge, make_queries

from themis_ray.config import load_config
from themis_ray.data import Choice
from themis_ray.errors import DataError, RunFolderError, TeacherError
from themis_ray.feedback.answer_cache import AnswerCache
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
    fields = {"query_id", "choice", "num_calls", "cost", "dearest", "model", "asked", "answered_at"}
    assert all(set(row) == fields for row in rows)
    assert KEY not in path.read_text()


def test_limits_are_those_of_the_whole_run(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    queries, expected = make_queries(6)
    ask(judge(server, path, max_cost=4.0, **PRICES), queries[:3])
    assert ask(judge(server, path, max_cost=4.0, **PRICES), queries).count(Choice.SKIP) == 2
    assert ask(judge(server, path, max_calls=4), queries).count(Choice.SKIP) == 2
    assert len(server.requests) == 4
    assert ask(judge(server, path, max_calls=6), queries) == expected


def test_calls_without_an_answer_count_after_a_resume(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    query = make_queries(1)[0]
    server.reply = lambda server, request: (503, "", {})
    with pytest.raises(TeacherError):
        ask(judge(server, path, max_calls=3, max_retries=1), query)
    for _ in range(2):
        assert ask(judge(server, path, max_calls=3, max_retries=1), query) == [Choice.SKIP]
    assert len(server.requests) == 3


def test_unreadable_answers_count_after_a_resume(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    server.reply = lambda server, request: completion("hm")
    for _ in range(3):
        assert ask(judge(server, path, max_calls=3), make_queries(1)[0]) == [Choice.SKIP]
    assert len(server.requests) == 3


def test_calls_before_a_refusal_count_after_a_resume(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    server.reply = lambda server, request: completion("hm") if request["number"] < 2 else (401, "", {})
    with pytest.raises(TeacherError, match="refused"):
        ask(judge(server, path, max_cost=3.0, **PRICES), make_queries(1)[0])
    resumed = judge(server, path, max_cost=3.0, **PRICES)
    assert resumed.budget.num_calls == 3
    assert resumed.budget.cost == pytest.approx(2.0)
    server.reply = by_brightness
    assert ask(resumed, make_queries(3)[0]).count(Choice.SKIP) == 2
    assert resumed.budget.cost == pytest.approx(3.0)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_the_dearest_call_is_known_after_a_resume(server, tmp_path, is_resumed):
    """Two calls that cost nothing and one of 1.0: another of 1.0 does not fit into 1.5."""
    path = tmp_path / "answers.jsonl"
    queries = make_queries(3)[0]
    server.reply = lambda server, request: (503, "", {}) if request["number"] < 2 else by_brightness(server, request)
    teacher = judge(server, path, max_cost=1.5, **PRICES)
    ask(teacher, queries[:1])
    if is_resumed:
        teacher = judge(server, path, max_cost=1.5, **PRICES)
    assert ask(teacher, queries[1:]) == [Choice.SKIP] * 2
    assert teacher.budget.cost == pytest.approx(1.0)


def test_a_file_of_an_older_version_is_read(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    queries, _ = make_queries(3)
    row = {"query_id": queries[0].id, "choice": "equal", "num_calls": 3, "cost": 1.0, "model": "seer"}
    path.write_text(json.dumps({**row, "answered_at": "2026-01-01T00:00:00+00:00"}) + "\n")
    teacher = judge(server, path, max_cost=1.5, **PRICES)
    assert (teacher.budget.num_calls, teacher.budget.cost) == (3, 1.0)
    assert ask(teacher, queries) == [Choice.EQUAL, Choice.SKIP, Choice.SKIP]
    assert not server.requests


@pytest.mark.parametrize("change", [{"model": "oracle"}, {"prompt": "Be dark."}, {"num_frames": 2}])
def test_answers_of_another_model_or_to_another_question_are_not_taken(server, tmp_path, caplog, change):
    path = tmp_path / "answers.jsonl"
    query = make_queries(1)[0]
    server.reply = lambda server, request: choose("left" if request["number"] == 0 else "right")
    assert ask(judge(server, path, **PRICES), query) == [Choice.LEFT]
    other = judge(server, path, **PRICES, **change)
    assert "1 answers in" in caplog.text
    assert (other.budget.num_calls, other.budget.cost) == (1, 1.0)
    assert ask(other, query) == [Choice.RIGHT]
    # Both are kept, each for its own.
    assert ask(judge(server, path, **PRICES), query) == [Choice.LEFT]
    assert ask(judge(server, path, **PRICES, **change), query) == [Choice.RIGHT]
    assert len(server.requests) == 2


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
        AnswerCache(tmp_path, "seer", "")
