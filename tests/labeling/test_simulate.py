"""Simulated annotators take part over HTTP as people do, and what they were promised is in the database."""

import asyncio
import json

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from live_service import live_service

from themis_ray.clips import write_clip
from themis_ray.data import Choice
from themis_ray.errors import ConfigError
from themis_ray.feedback import TEACHERS
from themis_ray.feedback.study_client import AnnotatorCalls, RefusedError
from themis_ray.labeling.simulate import read_simulation, simulate
from themis_ray.labeling.simulated_annotator import MeasuredHttp, Simulation, SimulationResult
from themis_ray.labeling.study import StudyConfig
from themis_ray.labeling.truths import Truths
from themis_ray.wire import NewQuery, NewSide

CONSENT = {"version": "1", "text": "You agree to **compare** clips."}
QUESTIONS = {
    "before": (
        {"kind": "choice", "id": "plays", "text": "Do you play?", "options": ["yes", "no"], "screens_out": ["no"]},
        {"kind": "scale", "id": "skill", "text": "How well?"},
    ),
    "after": ({"kind": "text", "id": "said", "text": "Anything else?", "is_required": True},),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with live_service(tmp_path_factory.mktemp("service")) as live:
        yield live


def fill(client, study, folder, num_queries, *, kinds=("ordinary",), has_rewards=True):
    """Adds pairs of clips of which the one with the larger number is worth more; returns which choice is right."""
    clips = []
    for number in range(num_queries + 1):
        frames = np.full((3, 8, 8, 3), 10 * number % 250, np.uint8)
        clips.append(write_clip(frames, folder))
        client.upload_clip(study, clips[-1])
    rights, queries = {}, []
    for number in range(num_queries):
        left, right = (number, number + 1) if number % 3 else (number + 1, number)
        rights[f"q{number}"] = Choice.RIGHT if right > left else Choice.LEFT
        about = {"true_rewards": [[float(left)] * 3, [float(right)] * 3]} if has_rewards else {}
        kind = kinds[number % len(kinds)]
        queries.append(
            NewQuery(
                id=f"q{number}",
                kind=kind,
                left=NewSide(segment_id=f"s{left}", clip=clips[left].name, num_frames=3),
                right=NewSide(segment_id=f"s{right}", clip=clips[right].name, num_frames=3),
                gold_choice=None if kind == "ordinary" else rights[f"q{number}"],
                about=about,
            )
        )
    client.add_queries(study, queries)
    return rights


def take_part(client, study, num_annotators, ledger=None, **settings):
    settings = {"think_s": 0.01, "idle_s": 1.0, **settings}
    plan = read_simulation(client, study, num_annotators, **settings)
    return asyncio.run(simulate(plan, Truths(client, study), ledger=ledger))


def test_people_go_through_a_whole_study(service, tmp_path):
    client = service.study(
        id="whole",
        consent=CONSENT,
        **QUESTIONS,
        num_practice=2,
        queries_per_annotator=4,
        overlap=3,  # nine ordinary pairs are work for all, however few gold ones are drawn
        gold_share=0.2,
        panel={"kind": "prolific", "code_complete": "DONE"},
    )
    rights = fill(client, "whole", tmp_path, 15, kinds=("ordinary", "practice", "ordinary", "gold", "ordinary"))
    ledger = tmp_path / "ledger.jsonl"
    result = take_part(client, "whole", 5, ledger)
    assert result.outcomes == {"done": 5, "sent home": 0}
    assert not result.problems
    answers = list(client.all_answers("whole"))
    assert len(answers) == result.num_answers == 5 * (2 + 4)
    assert all(row.choice is rights[row.query_id] for row in answers), "the oracle is right whichever side it saw"
    assert {row.is_flipped for row in answers} == {True, False}
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {line["answer_id"] for line in lines} == {row.answer_id for row in answers}
    routes = result.quantiles_ms()
    expected = {"POST join", "POST consent", "POST questions", "GET assignments", "POST answers", "POST finish"}
    assert set(routes) == {*expected, "GET clip"}
    assert routes["POST answers"]["count"] == len(answers)
    assert 0 < routes["POST answers"]["p50"] <= routes["POST answers"]["p99"]


def test_overlap_is_met_and_never_exceeded(service, tmp_path):
    client = service.study(id="overlap", queries_per_annotator=6, overlap=3)
    fill(client, "overlap", tmp_path, 10)
    result = take_part(client, "overlap", 8)
    answers = list(client.all_answers("overlap"))
    pairs = {(row.query_id, row.annotator_id) for row in answers}
    assert len(pairs) == len(answers) == result.num_answers == 30
    assert client.answers("overlap").num_waiting == 0


def test_teachers_err_as_their_presets_say(service, tmp_path):
    client = service.study(id="mistakes", queries_per_annotator=60, overlap=5)
    rights = fill(client, "mistakes", tmp_path, 60)
    take_part(client, "mistakes", 5, teacher=TEACHERS["mistake"], think_s=0.0)
    answers = list(client.all_answers("mistakes"))
    assert len(answers) == 300
    wrong = np.mean([row.choice is not rights[row.query_id] for row in answers])
    assert 0.04 < wrong < 0.18


def test_the_same_seed_says_the_same(service):
    """Two people with the same stream judge alike; ids of answers differ, or one would be taken for the other."""
    truths = Truths(None, "none")
    rewards = np.array([[1.0, 0.0], [0.0, 1.1]])
    for name, teacher in TEACHERS.items():
        rngs = [np.random.default_rng(7) for _ in range(2)]
        first, second = ([truths.choose(rewards, teacher, rng) for _ in range(20)] for rng in rngs)
        assert first == second, name
    assert truths.choose(rewards, TEACHERS["oracle"], np.random.default_rng(0)) is Choice.RIGHT
    assert truths.choose(rewards[::-1], TEACHERS["oracle"], np.random.default_rng(0)) is Choice.LEFT
    truths._returns = np.array([[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]])
    assert truths.choose(rewards, TEACHERS["skip"], np.random.default_rng(0)) is Choice.SKIP


def test_clips_without_rewards_are_preferred_alike_by_all(service, tmp_path):
    client = service.study(id="names", queries_per_annotator=9, overlap=4)
    fill(client, "names", tmp_path, 9, has_rewards=False)
    take_part(client, "names", 4)
    said = {}
    for row in client.all_answers("names"):
        said.setdefault(row.query_id, set()).add(row.choice)
    assert len(said) == 9
    assert all(len(choices) == 1 for choices in said.values())


def test_other_feedback_is_simulated_too(service, tmp_path):
    for feedback in ("rating", "steps"):
        client = service.study(id=feedback, feedback=feedback, queries_per_annotator=2)
        clip = write_clip(np.full((4, 8, 8, 3), 7, np.uint8), tmp_path)
        client.upload_clip(feedback, clip)
        side = NewSide(segment_id="s", clip=clip.name, num_frames=4)
        client.add_queries(feedback, [NewQuery(id=f"q{i}", feedback=feedback, left=side) for i in range(2)])
        assert take_part(client, feedback, 1).num_answers == 2
    client = service.study(id="shown", feedback="demonstration", env_id="CartPole-v1")
    with pytest.raises(ConfigError, match="not simulated"):
        read_simulation(client, "shown", 1)


def test_who_finds_nothing_to_do_waits_and_leaves(service, tmp_path):
    client = service.study(id="empty")
    result = take_part(client, "empty", 2, idle_s=0.5)
    assert (result.num_answers, result.outcomes["work"]) == (0, 2)
    client = service.study(id="long", queries_per_annotator=50)
    fill(client, "long", tmp_path, 20)
    result = take_part(client, "long", 1, think_s=0.2, duration_s=1.5)
    assert result.outcomes["sent home"] == 1
    assert take_part(client, "long", 1, max_answers=3).num_answers == 3


def test_a_service_that_is_away_for_a_moment_loses_nothing(tmp_path):
    with live_service(tmp_path) as live:
        port = int(live.url.rpartition(":")[2])
        client = live.study(queries_per_annotator=15, overlap=4)
        fill(client, "tea", tmp_path / "drawn", 15)
        plan = read_simulation(client, "tea", 4, think_s=0.3, idle_s=20.0)
    ledger = tmp_path / "ledger.jsonl"

    async def run():
        plan_result = asyncio.ensure_future(simulate(plan, Truths(None, "tea"), ledger=ledger))
        for _ in range(3):
            stack = live_service(tmp_path, port)
            await asyncio.to_thread(stack.__enter__)
            await asyncio.wait([plan_result], timeout=2.0)
            await asyncio.to_thread(stack.__exit__, None, None, None)
            await asyncio.sleep(0.3)
        with live_service(tmp_path, port) as live:
            result = await plan_result
            return result, live.store.work.answers("tea", limit=1000).answers

    result, answers = asyncio.run(run())
    promised = [json.loads(line)["answer_id"] for line in ledger.read_text().splitlines()]
    assert len(promised) == len(set(promised)) == 60
    assert {row.answer_id for row in answers} == set(promised)
    assert result.num_lost == 0
    assert any("POST answers" in problem or "clip" in problem for problem in result.problems)


def test_a_404_of_a_proxy_whose_application_is_not_there_yet_is_sent_again():
    replies = [(404, "Path '/api/v1/finish' not found."), (200, '{"code": "DONE"}'), (404, '{"error": "nobody"}')]

    async def reply(_):
        status, text = replies.pop(0)
        return web.Response(status=status, text=text)

    async def run():
        app, result = web.Application(), SimulationResult()
        app.router.add_post("/api/v1/finish", reply)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            plan = Simulation(str(server.make_url("")), StudyConfig(id="tea", title="Tea"), "signed", 1)
            http, rng = MeasuredHttp(session, plan, result), np.random.default_rng(0)
            done, _ = await http.send("POST finish", AnnotatorCalls.finish(), {}, rng)
            with pytest.raises(RefusedError, match="nobody"):
                await http.send("POST finish", AnnotatorCalls.finish(), {}, rng)
        return done, result

    done, result = asyncio.run(run())
    assert done == {"code": "DONE"}
    assert result.problems == {"POST finish: status 404": 2}
