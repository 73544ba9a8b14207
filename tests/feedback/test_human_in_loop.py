"""The preference loop with people as teachers: when it asks, when it fits, what an answer weighs, what it saves."""

import numpy as np
import pytest
from fake_study import TOKEN, URL, FakeStudy
from recording import record

from themis_ray.config import load_config, resolve
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError
from themis_ray.feedback import make_human_teacher
from themis_ray.feedback.study_client import StudyClient
from themis_ray.rllib import PreferenceLoop
from themis_ray.rllib import loop as loop_module

SETTINGS = [
    "env.id=Pendulum-v1",
    "num_env_steps=1000",
    "exploration.num_seed_steps=100",
    "exploration.num_env_steps=100",
    "feedback.budget=12",
    "feedback.session_size=4",
    "feedback.segment_length=5",
    "feedback.sampler=uniform",
    "teacher.kind=human",
    "teacher.study=tea",
    f"teacher.url={URL}",
    "teacher.answers_per_fit=3",
    "teacher.poll_s=1e-9",
]


class Model:
    """A reward model that remembers what it was fitted to."""

    def __init__(self):
        self.version, self.fits, self.state = 0, [], None

    def fit(self, pairs, seed, bonus=0.0, unlabelled=None):
        self.version += 1
        self.fits.append(pairs)
        return {}

    def predict(self, observations, actions):
        return observations[:, 0].astype(np.float32)

    def load(self, state):
        self.state = state


@pytest.fixture
def service():
    return FakeStudy()


@pytest.fixture(scope="module")
def pool():
    return record(EnvConfig(id="Pendulum-v1"), 300)[0]


@pytest.fixture
def build(service, pool, tmp_path, monkeypatch):
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", TOKEN)

    def hire(config, env, dataset, about, budget):
        client = StudyClient(URL, TOKEN, transport=service.transport, patience_s=0.0)
        return make_human_teacher(config, env, dataset, about, budget, client)

    monkeypatch.setattr(loop_module, "make_human_teacher", hire)

    def build(folder="run", *settings):
        config, spec = resolve(load_config(None, [*SETTINGS, *settings]))
        loop = PreferenceLoop(config, spec, tmp_path / folder, Model(), None)
        loop.pool = pool
        return loop

    return build


def answer_all(service, queries=None, **fields):
    for query_id in queries or list(service.queries):
        service.answer(query_id, **fields)


def test_queries_are_asked_on_schedule_and_count_at_once(build, service):
    loop = build()
    assert not loop.hold_session_if_due(100)
    assert not service.queries
    assert not loop.hold_session_if_due(200)
    assert len(service.queries) == 4
    for step in range(210, 400, 10):
        assert not loop.hold_session_if_due(step)
    assert len(service.queries) == 4, "what waits counts against the budget"
    assert not loop.hold_session_if_due(999)
    assert len(service.queries) == 12
    assert not loop.hold_session_if_due(1000)
    assert len(service.queries) == 12
    assert {row["about"]["feedback_session"] for row in service.queries.values()} == {0, 1}
    assert not loop.reward_model.fits


def test_answers_are_fitted_as_they_come(build, service):
    loop = build()
    loop.hold_session_if_due(200)
    first, *others = service.queries
    service.answer(first)
    assert not loop.hold_session_if_due(210), "one answer alone is not worth a fit"
    assert loop.dataset.num_preferences == 1
    answer_all(service, others[:2])
    assert loop.hold_session_if_due(220)
    assert not loop.hold_session_if_due(230)
    service.answer(others[2])
    assert loop.hold_session_if_due(240), "nothing more is to come"
    assert [len(pairs) for pairs in loop.reward_model.fits] == [3, 4]
    assert np.ptp(loop.reward_model.fits[-1].weights) == 0


def test_skips_alone_are_nothing_to_learn(build, service):
    loop = build()
    loop.hold_session_if_due(200)
    answer_all(service, choice="skip")
    assert not loop.hold_session_if_due(210)
    assert not loop.reward_model.fits


@pytest.mark.parametrize(("setting", "expected"), [("null", {0.25, 1.0}), ("true", {0.25, 1.0}), ("false", {1.0})])
def test_answers_weigh_what_their_annotator_is_trusted(build, service, setting, expected):
    service.overlap = 2
    loop = build("run", f"reward.reliability_weights={setting}")
    loop.hold_session_if_due(200)
    service.weights = {"bob": 0.25}
    answer_all(service, annotator="ann")
    answer_all(service, annotator="bob", choice="right")
    assert loop.hold_session_if_due(210)
    (pairs,) = loop.reward_model.fits
    assert len(pairs) == 8
    assert set(pairs.weights.tolist()) == expected
    assert len(pairs.observations) <= 8, "a segment is there once, however many people judge it"


def test_people_who_are_not_trusted_at_all_teach_nothing(build, service):
    loop = build()
    loop.hold_session_if_due(200)
    service.weights = {"ann": 0.0}
    answer_all(service)
    assert not loop.hold_session_if_due(210)
    assert not loop.reward_model.fits


def test_weights_without_annotators_are_refused():
    with pytest.raises(ConfigError, match=r"reliability_weights=true .* teacher\.kind=synthetic"):
        resolve(load_config(None, ["env.id=Pendulum-v1", "reward.reliability_weights=true"]))


def test_withdrawn_answers_are_dropped_before_the_next_fit(build, service):
    loop = build()
    loop.hold_session_if_due(200)
    ids = list(service.queries)
    answer_all(service, ids[:2], annotator="ann")
    answer_all(service, ids[2:], annotator="bob", choice="right")
    assert loop.hold_session_if_due(210)
    service.withdraw("bob")
    undone = service.answer(ids[2], annotator="cat", number=10)
    service.answer(ids[3], annotator="cat", number=11, answer_id="stays")
    service.undo(undone)
    assert loop.hold_session_if_due(220)
    assert len(loop.reward_model.fits[-1]) == 3
    assert {row.teacher for row in loop.dataset.preferences} == {"ann", "cat"}


def test_a_checkpoint_holds_what_waits_and_what_came(build, service, tmp_path):
    loop = build()
    loop.hold_session_if_due(200)
    ids = list(service.queries)
    answer_all(service, ids[:3])
    loop.hold_session_if_due(210)
    loop.reward_model.state = {}
    state = loop.get_state()

    # The same run goes on in its own folder, where an answer has arrived since.
    service.answer(ids[3], "right")
    loop.hold_session_if_due(220)
    resumed = build()
    resumed.set_state(state)
    assert len(resumed.dataset.preferences) == 4
    assert resumed.hold_session_if_due(230), "the answer that came after the checkpoint is fitted"
    assert len(service.queries) == 4

    # Another folder gets what it lacks, once.
    copy = build("copy")
    copy.set_state(state)
    copy.set_state(state)
    assert set(copy.dataset.asked) == set(ids)
    assert [row.answer_id for row in copy.dataset.preferences] == ["answer-1", "answer-2", "answer-3"]
    assert copy.hold_session_if_due(220)
    assert len(copy.dataset.preferences) == 4
    assert len(service.queries) == 4


def test_samplers_look_elsewhere_than_at_what_waits(build, service):
    loop = build()
    loop.hold_session_if_due(200)
    assert {query.id for query in loop._labelled_queries()} == set(service.queries)
    service.answer(next(iter(service.queries)), "skip")
    loop.hold_session_if_due(210)
    assert len(loop._labelled_queries()) == 3


def test_waiting_holds_the_learner_up(build, service):
    loop = build("run", "teacher.wait=true")
    service.on_call = lambda: [service.answer(id_) for id_ in list(service.queries)[len(service.answers) :]]
    assert loop.hold_session_if_due(200)
    assert loop.hold_session_if_due(999)
    assert [len(pairs) for pairs in loop.reward_model.fits] == [4, 12]
