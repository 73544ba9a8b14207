"""People as teachers: nothing is asked twice, no answer is lost or counted twice, and what is taken back goes."""

import json
import logging

import httpx
import numpy as np
import pytest
from fake_study import TOKEN, URL, FakeStudy
from lantern import LANTERN, lantern_segment

from themis_ray.clips import read_clip
from themis_ray.data import PreferenceDataset, Query
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, TeacherError, ThemisError
from themis_ray.feedback import TeacherConfig, check_teacher, make_human_teacher, make_teacher
from themis_ray.feedback.human import REREAD_S, HumanTeacher
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.feedback.study_client import StudyClient


class Clock:
    """Seconds that pass by sleeping only; `on_sleep` is what people do meanwhile."""

    def __init__(self):
        self.now = 100.0
        self.on_sleep = lambda: None

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def service():
    return FakeStudy()


@pytest.fixture
def clock():
    return Clock()


def make_queries(number, start=1):
    rewards = np.arange(4, dtype=np.float32)
    segments = [lantern_segment(start + i, rewards + i) for i in range(2 * number)]
    return [Query(left, right) for left, right in zip(segments[::2], segments[1::2], strict=True)]


@pytest.fixture
def hire(service, clock, tmp_path):
    """Makes a teacher as a process that starts does; everything that it knows is in the folder."""

    def hire(folder="run", patience_s=0.0, budget=10, **settings):
        config = TeacherConfig(kind="human", study="tea", url=URL, **settings)
        dataset = PreferenceDataset(tmp_path / folder)
        client = StudyClient(URL, TOKEN, transport=service.transport, patience_s=patience_s)
        about = {"run": folder, "seed": 3}
        teacher = make_human_teacher(config, LANTERN, dataset, about, budget, client)
        teacher._clock, teacher._sleep = clock, clock.sleep
        teacher._next_reread = clock.now + REREAD_S
        return teacher

    return hire


def ask(teacher, queries, session=0):
    teacher.ask(queries, session, 500, 2)


def given(teacher):
    return [(row.query_id, str(row.choice), row.teacher) for row in teacher.dataset.preferences]


# ---------------------------------------------------------------- asking


def test_queries_are_sent_with_their_clips_and_where_they_come_from(hire, service, tmp_path):
    teacher, queries = hire(), make_queries(3)
    (tmp_path / "run" / "checkpoints" / "checkpoint_000000400").mkdir(parents=True)
    ask(teacher, queries, session=1)
    assert set(service.queries) == {query.id for query in queries}
    row = service.queries[queries[0].id]
    assert row["left"]["segment_id"] == queries[0].left.id
    assert (row["left"]["num_frames"], row["left"]["clip_fps"]) == (4, 15.0)
    about = row["about"]
    assert about["true_returns"] == [queries[0].left.true_return, queries[0].right.true_return]
    assert about["true_rewards"][1] == queries[0].right.true_rewards.tolist()
    expected = {"env_id": LANTERN.id, "run": "run", "seed": 3, "num_env_steps": 500, "feedback_session": 1}
    expected |= {"reward_version": 2, "checkpoint": "checkpoint_000000400"}
    assert {name: about[name] for name in expected} == expected
    clip = tmp_path / "clip.webm"
    clip.write_bytes(service.clips[row["right"]["clip"]])
    assert read_clip(clip).shape[0] == 4


def test_queries_are_on_the_disk_before_anything_is_sent(hire, service, tmp_path):
    teacher, queries = hire(), make_queries(2)
    seen = []
    service.on_call = lambda: seen.append(len(PreferenceDataset(tmp_path / "run").asked))
    ask(teacher, queries)
    assert seen
    assert set(seen) == {2}


def test_a_run_that_was_killed_before_it_sent_sends_when_it_goes_on(hire, service):
    queries = make_queries(2)
    service.broken = []
    teacher = hire()
    service.broken = [httpx.ConnectError("down")]
    ask(teacher, queries)
    assert not service.queries
    resumed = hire()
    resumed.collect()
    assert set(service.queries) == {query.id for query in queries}
    assert resumed.dataset.num_questions == 2


def test_nothing_is_asked_twice(hire, service):
    teacher, queries = hire(), make_queries(3)
    ask(teacher, [queries[0], queries[0], queries[1]])
    ask(teacher, [queries[1], queries[2]], session=1)
    assert list(service.queries) == [query.id for query in queries]
    assert teacher.dataset.num_questions == 3
    assert [row.feedback_session for row in teacher.dataset.asked.values()] == [0, 0, 1]
    service.answer(queries[0].id)
    teacher.collect(at_once=True)
    service.calls.clear()
    resumed = hire()
    resumed.collect()
    sent = [path for method, path in service.calls if method == "POST"]
    assert len(sent) == 1, "what waits is sent once more, as nobody knows what had arrived"
    assert list(service.queries) == [query.id for query in queries]


def test_clips_are_drawn_once(hire, service, monkeypatch):
    queries = make_queries(2)
    ask(hire(), queries)
    monkeypatch.setattr("themis_ray.feedback.segment_clips.Replayer", None)
    resumed = hire()
    resumed.collect()
    assert len(resumed.dataset.asked) == 2


def test_a_lost_or_broken_list_of_clips_costs_drawing_again(tmp_path, caplog):
    segment = make_queries(1)[0].left
    folder = tmp_path / "clips"
    (first,) = SegmentClips(folder, LANTERN).paths([segment]).values()
    index = folder / "segments.jsonl"
    index.write_text(index.read_text() + '{"segment_id": "hal')
    clips = SegmentClips(folder, LANTERN)
    assert "1 lines" in caplog.text
    other = make_queries(1, start=9)[0].left
    assert set(clips.paths([segment, other])) == {segment.id, other.id}
    assert len(SegmentClips(folder, LANTERN).index) == 2
    first.unlink()
    assert SegmentClips(folder, LANTERN).paths([segment])[segment.id].is_file()
    assert SegmentClips(folder, LANTERN, clip_fps=30.0).paths([segment])[segment.id] != first


# ---------------------------------------------------------------- answers


def test_answers_come_in_once_whatever_is_read_again(hire, service):
    teacher, queries = hire(), make_queries(3)
    ask(teacher, queries)
    service.page_size = 1
    service.answer(queries[1].id, "right", "bob")
    service.answer(queries[0].id, "skip")
    assert teacher.collect(at_once=True)
    assert not teacher.collect(at_once=True)
    expected = [(queries[1].id, "right", "bob"), (queries[0].id, "skip", "ann")]
    assert given(teacher) == expected
    row = teacher.dataset.preferences[0]
    assert (row.feedback_session, row.num_env_steps) == (0, 500)
    assert row.asked_at <= row.answered_at
    resumed = hire()
    resumed.collect()
    assert given(resumed) == expected
    service.answer(queries[2].id, "equal")
    resumed.collect(at_once=True)
    assert len(given(hire())) == 3


def test_a_run_that_was_killed_after_it_read_reads_again(hire, service):
    teacher, queries = hire(), make_queries(1)
    ask(teacher, queries)
    service.answer(queries[0].id)
    teacher._cursor = 99  # as if the answer had been read but not stored
    teacher.collect(at_once=True)
    assert not given(teacher)
    resumed = hire()
    assert resumed.collect()
    assert len(given(resumed)) == 1


def test_an_answer_that_shows_late_is_found(hire, service, clock):
    """On Postgres a smaller number may become visible after a larger one was read."""
    teacher, queries = hire(), make_queries(2)
    ask(teacher, queries)
    service.answer(queries[0].id, number=7, answer_id="seven")
    teacher.collect(at_once=True)
    service.answers.insert(0, {**service.answers[0], "number": 6, "answer_id": "six", "query_id": queries[1].id})
    teacher.collect(at_once=True)
    assert len(given(teacher)) == 1
    clock.now += REREAD_S
    teacher.collect(at_once=True)
    assert len(given(teacher)) == 2


def test_only_answers_to_the_runs_own_queries_count(hire, service):
    teacher, queries = hire(), make_queries(2)
    ask(teacher, queries)
    service.answer("somebody elses query")
    service.answer(queries[0].id, kind="gold")
    service.answer(queries[0].id, repeat=1)
    service.answer(queries[0].id, choice=None, rating=0.5)
    service.undo(service.answer(queries[0].id))
    assert not teacher.collect(at_once=True)
    assert given(teacher) == []


def test_a_clock_that_is_behind_does_no_harm(hire, service):
    teacher, queries = hire(), make_queries(1)
    ask(teacher, queries)
    service.answer(queries[0].id, answered_at="2001-01-01T00:00:00+02:00")
    teacher.collect(at_once=True)
    (row,) = teacher.dataset.preferences
    assert row.asked_at == row.answered_at
    assert row.answered_at.hour == 22


def test_withdrawn_and_undone_answers_go_and_stay_away(hire, service):
    teacher, queries = hire(), make_queries(3)
    ask(teacher, queries)
    first = service.answer(queries[0].id, "left", "ann")
    service.answer(queries[1].id, "left", "bob")
    service.answer(queries[2].id, "left", "bob")
    teacher.collect(at_once=True)
    before = teacher.dataset.num_changes
    service.undo(first)
    service.withdraw("bob")
    assert teacher.collect(at_once=True)
    assert given(teacher) == []
    assert teacher.dataset.num_changes == before + 3
    assert [(row.answer_id, row.reason) for row in teacher.dataset.withdrawals] == [
        (first, "undone"),
        ("answer-2", "withdrawn"),
        ("answer-3", "withdrawn"),
    ]
    assert teacher.num_missing == 3, "others are asked instead"
    service.answer(queries[0].id, "right", "ann", number=9, answer_id="second-thoughts")
    teacher.collect(at_once=True)
    resumed = hire()
    assert not resumed.collect()
    assert given(resumed) == [(queries[0].id, "right", "ann")]


def test_several_people_answer_one_query(hire, service):
    service.overlap = 2
    teacher, queries = hire(), make_queries(2)
    ask(teacher, queries)
    service.weights = {"ann": 0.25}
    service.answer(queries[0].id, "left", "ann")
    service.answer(queries[0].id, "right", "bob")
    teacher.collect(at_once=True)
    assert (teacher.dataset.num_questions, teacher.dataset.num_queries, teacher.num_missing) == (2, 2, 2)
    assert [teacher.weight(row) for row in teacher.dataset.preferences] == [0.25, 1.0]
    resumed = hire()
    assert [resumed.weight(row) for row in resumed.dataset.preferences] == [0.25, 1.0], "weights are kept"
    service.weights = {"ann": 0.75, "bob": 0.5}
    service.answer(queries[1].id, "left", "ann")
    service.answer(queries[1].id, "left", "bob")
    resumed.collect()
    assert resumed.is_fit_due(2)
    assert [resumed.weight(row) for row in resumed.dataset.preferences] == [0.75, 0.5] * 2


def test_an_overlap_that_is_raised_is_seen_within_a_minute(hire, service, clock):
    teacher, queries = hire(wait=True), make_queries(2)
    ask(teacher, queries)
    for query in queries:
        service.answer(query.id)
    teacher.collect(at_once=True)
    service.overlap = 2
    service.calls.clear()
    for _ in range(60):
        clock.now += REREAD_S / 30
        teacher.collect()
    assert service.calls.count(("GET", "/api/v1/studies/tea")) == 2
    assert teacher.num_missing == 2
    assert not teacher.is_fit_due(1)
    left = [query.id for query in queries]
    clock.on_sleep = lambda: left and service.answer(left.pop(), "right", "bob")
    teacher.wait()
    assert len(given(teacher)) == 4


def test_the_service_is_not_asked_all_the_time(hire, service, clock):
    teacher = hire(poll_s=2.0)
    teacher.collect()
    service.calls.clear()
    for _ in range(50):
        teacher.collect()
    assert not service.calls
    clock.now += 2.0
    teacher.collect()
    assert service.calls == [("GET", "/api/v1/studies/tea/answers")]


def test_training_goes_on_while_the_service_is_down(hire, service, clock, caplog):
    teacher, queries = hire(), make_queries(1)
    ask(teacher, queries)
    service.broken = [httpx.ConnectError("down")] * 3
    pauses = []
    while service.broken:
        clock.now = teacher._next_poll
        teacher.collect()
        pauses.append(teacher._next_poll - clock.now)
    assert pauses == [4.0, 8.0, 16.0]
    assert caplog.text.count("The run goes on") == 1
    service.answer(queries[0].id)
    clock.now = teacher._next_poll
    assert teacher.collect()
    assert "answers again" in caplog.text


def test_a_service_that_refuses_ends_the_run(hire, service):
    teacher = hire()
    service.broken = [(403, {})]
    with pytest.raises(TeacherError, match="403"):
        teacher.collect()


# ---------------------------------------------------------------- waiting and fitting


def test_waiting_ends_with_the_last_answer(hire, service, clock, caplog):
    caplog.set_level(logging.INFO, "themis_ray")
    teacher, queries = hire(wait=True), make_queries(3)
    ask(teacher, queries)
    left = [query.id for query in queries]
    clock.on_sleep = lambda: left and service.answer(left.pop())
    teacher.wait()
    assert len(given(teacher)) == 3
    assert "Waiting for 3 answers of study tea" in caplog.text
    assert "All 3 answers" in caplog.text
    teacher.wait()


def test_waiting_has_an_end_that_can_be_resumed(hire, service, clock):
    teacher, queries = hire(wait=True, wait_timeout_s=50.0), make_queries(2)
    ask(teacher, queries)
    clock.on_sleep = lambda: clock.now > 140 and not service.answers and service.answer(queries[0].id)
    with pytest.raises(TeacherError, match=r"no answer for 50 s .*1 are missing.*resume"):
        teacher.wait()
    assert clock.now > 190, "an answer begins the time anew"
    resumed = hire(wait=True)
    service.answer(queries[1].id)
    resumed.wait()
    assert len(given(resumed)) == 2
    assert len(service.queries) == 2


def test_waiting_outlives_a_service_that_is_down_and_says_why_it_gave_up(hire, service, clock):
    teacher, queries = hire(wait=True, wait_timeout_s=100.0), make_queries(1)
    ask(teacher, queries)
    service.broken = [httpx.ConnectError("down")] * 3
    clock.on_sleep = lambda: service.broken or service.answers or service.answer(queries[0].id)
    teacher.wait()
    ask(teacher, make_queries(1, start=20), session=1)
    service.broken = [httpx.ConnectError("down for good")] * 1000
    clock.on_sleep = lambda: None
    with pytest.raises(TeacherError, match=r"gave no answer.*down for good"):
        teacher.wait()


def test_a_stopped_study_is_not_waited_for(hire, service):
    teacher = hire(wait=True)
    ask(teacher, make_queries(1))
    service.status = "stopped"
    with pytest.raises(TeacherError, match=r"was stopped while 1 answers .* resume"):
        teacher.wait()


def test_answers_are_fitted_together(hire, service, clock):
    teacher, queries = hire(budget=100, fit_after_s=60.0), make_queries(12)
    ask(teacher, queries)
    assert not teacher.is_fit_due(1)
    assert not teacher.is_fit_due(9)
    assert teacher.is_fit_due(10), "a tenth of the budget"
    assert not teacher.is_fit_due(1)
    clock.now += 59
    assert not teacher.is_fit_due(2)
    clock.now += 1
    assert teacher.is_fit_due(2), "the first of them has waited for a minute"
    assert not teacher.is_fit_due(1)
    for query in queries:
        service.answer(query.id)
    teacher.collect(at_once=True)
    assert teacher.is_fit_due(1), "nothing more is to come"


# ---------------------------------------------------------------- settings


def test_settings_that_do_not_fit_are_refused():
    good = {"kind": "human", "study": "tea", "url": URL}
    TeacherConfig(**good)
    for settings, message in (
        ({"study": None}, "needs teacher.study"),
        ({"url": None}, "needs teacher.url"),
        ({"url": "localhost:8000"}, "no address"),
        ({"url": "http://me:secret@host"}, "token_env"),
        ({"study": "Tea Time"}, "no id of a study"),
        ({"token_env": "not a name"}, "no name of an environment variable"),
        ({"codec": "vp8"}, "no codec 'vp8'"),
        ({"model": "gpt"}, "Used by: judge"),
    ):
        with pytest.raises(ThemisError, match=message):
            TeacherConfig(**{**good, **settings})
    with pytest.raises(ConfigError, match="Used by: human"):
        TeacherConfig(wait=True)
    with pytest.raises(ConfigError, match="Used by: judge, human"):
        TeacherConfig(url=URL)
    assert TeacherConfig(**good).teacher_name == "human:tea"


def test_what_people_need_is_checked_before_a_run(monkeypatch):
    monkeypatch.delenv("THEMIS_STUDY_TOKEN", raising=False)
    config = TeacherConfig(kind="human", study="tea", url=URL)
    with pytest.raises(ConfigError, match="THEMIS_STUDY_TOKEN is not set"):
        check_teacher(config, LANTERN)
    check_teacher(config.model_copy(update={"url": "http://127.0.0.1:8000"}), LANTERN)
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", TOKEN)
    check_teacher(config, LANTERN)
    assert config.token == TOKEN
    assert TOKEN not in json.dumps(config.model_dump())
    with pytest.raises(ConfigError, match="draws no frames"):
        check_teacher(config, EnvConfig(id=LANTERN.id, kwargs={"fault": "broken"}))
    with pytest.raises(ConfigError, match="make_human_teacher"):
        make_teacher(config)


def test_a_study_of_something_else_is_refused(hire, service, monkeypatch):
    reply = {"settings": {"feedback": "rating"}, "status": "running"}
    monkeypatch.setattr(service, "reply", lambda *_: httpx.Response(200, json=reply))
    with pytest.raises(ConfigError, match="asks for rating"):
        hire()


def test_a_study_that_is_paused_is_told(hire, service, caplog):
    service.status = "paused"
    assert isinstance(hire(), HumanTeacher)
    assert "Study tea is paused" in caplog.text
