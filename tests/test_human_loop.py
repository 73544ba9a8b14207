"""A run, a labelling service and annotators, each a program of its own; and what is killed in the middle goes on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_service import live_service
from short_run import SHORT_RUN

from themis_ray.data import PreferenceDataset
from themis_ray.feedback.study_client import StudyClient
from themis_ray.labeling.simulate import read_simulation, simulate
from themis_ray.labeling.truths import Truths

SETTINGS = [
    *SHORT_RUN,
    "num_env_steps=1200",
    "feedback.budget=12",
    "checkpoint_interval=200",
    "teacher.kind=human",
    "teacher.study=tea",
    "teacher.poll_s=0.2",
]


class Annotators(threading.Thread):
    """People who come and stay until `leave`."""

    def __init__(self, url, token, number=3, **settings):
        super().__init__(daemon=True)
        self.url, self.token, self.number = url, token, number
        self.settings = {"think_s": 0.1, "idle_s": 600.0, "duration_s": 280.0, "gets_clips": True, **settings}
        self.result = None
        self._is_over = False

    def run(self):
        client = StudyClient(self.url, self.token)
        plan = read_simulation(client, "tea", self.number, **self.settings)
        asyncio.run(self._take_part(plan, Truths(client, "tea")))

    async def _take_part(self, plan, truths):
        task = asyncio.ensure_future(simulate(plan, truths))
        while not task.done() and not self._is_over:
            await asyncio.sleep(0.1)
        if task.done():
            self.result = task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def leave(self):
        self._is_over = True
        self.join(20)


def start(live, token, *arguments):
    command = [sys.executable, "-m", "themis_ray.cli", "train", *arguments]
    if "--resume" not in arguments:
        command.append(f"teacher.url={live.url}")
    environment = os.environ | {"THEMIS_STUDY_TOKEN": token}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process, returncode=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == returncode, output
    return output


def wait_for(condition, process):
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check(folder: Path, client, num_queries, overlap=1):
    """The run holds what the service holds: every query once, every answer once."""
    dataset = PreferenceDataset(folder)
    assert {row["id"] for row in client.queries("tea")} == set(dataset.asked)
    assert len(dataset.asked) == dataset.num_questions == num_queries
    stored = [row.answer_id for row in dataset.preferences]
    given = {row.answer_id for row in client.all_answers("tea") if not row.is_undone}
    assert len(stored) == len(set(stored)) == num_queries * overlap
    assert set(stored) == given
    return dataset


@pytest.mark.ray
def test_a_run_that_waits_learns_from_every_answer(tmp_path):
    with live_service(tmp_path / "service") as live:
        client = live.study(overlap=2, queries_per_annotator=100)
        token = live.token()
        annotators = Annotators(live.url, token)
        annotators.start()
        folder = tmp_path / "run"
        output = finish(start(live, token, *SETTINGS, "teacher.wait=true", "--out", str(folder)))
        annotators.leave()
        dataset = check(folder, client, 12, overlap=2)
        about = client.query("tea", next(iter(dataset.asked)))["about"]
    assert "Waiting for 8 answers" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["queries_asked"], summary["num_preferences"], summary["teacher"]) == (12, 24, "human:tea")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["reward_version"] == 3, "one fit a session, when all answers were there"
    assert {row.feedback_session for row in dataset.preferences} == {0, 1, 2}
    assert about["env_id"] == "Pendulum-v1"
    assert about["run"] == "run"
    assert token not in "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert len(json.loads((folder / "annotators.json").read_text())) >= 2


@pytest.mark.ray
def test_people_who_know_teach_what_the_teacher_inside_the_process_does(tmp_path):
    """With one answer per query and a learner that waits, every line of metrics is the same."""
    with live_service(tmp_path / "service") as live:
        live.study(queries_per_annotator=100)
        token = live.token()
        annotators = Annotators(live.url, token, 4, think_s=0.05)
        annotators.start()
        finish(start(live, token, *SETTINGS, "teacher.wait=true", "--out", str(tmp_path / "people")))
        annotators.leave()
    inside = [setting for setting in SETTINGS if not setting.startswith("teacher.")]
    command = [sys.executable, "-m", "themis_ray.cli", "train", *inside, "--out", str(tmp_path / "inside")]
    finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    runs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("people", "inside")
    ]
    for row in (row for rows in runs for row in rows):
        del row["wall_s"], row["env_steps_per_s"]
    assert runs[0][-1]["reward_version"] == 3
    for people, inside in zip(*runs, strict=True):
        assert people == inside


@pytest.mark.ray
def test_killed_run_asks_nothing_twice_and_loses_no_answer(tmp_path):
    """Killed once while it waits for the first answers, once later; the service is restarted in between."""
    folder = tmp_path / "run"
    with live_service(tmp_path / "service") as live:
        port = int(live.url.rpartition(":")[2])
        live.study(queries_per_annotator=100, lease_s=10)  # who leaves has the fourth query on the desk until then
        token = live.token()
        process = start(live, token, *SETTINGS, "teacher.wait=true", "--out", str(folder))
        client = StudyClient(live.url, token)
        wait_for(lambda: len(list(client.queries("tea"))) == 4, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # People go on while nobody trains.
        annotators = Annotators(live.url, token, 1, max_answers=3)
        annotators.start()
        annotators.join(60)
        assert annotators.result.num_answers == 3
    with live_service(tmp_path / "service", port) as live:
        process = start(live, token, "--resume", str(folder))
        annotators = Annotators(live.url, token, 1)
        annotators.start()
        wait_for(lambda: len(list((folder / "queries").glob("part-*"))) >= 3, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = PreferenceDataset(folder).preferences
        finish(start(live, token, "--resume", str(folder)))
        annotators.leave()
        dataset = check(folder, StudyClient(live.url, token), 12)
    assert dataset.preferences[: len(before)] == before


@pytest.mark.slow
@pytest.mark.ray
def test_training_goes_on_without_people_and_takes_what_comes(tmp_path):
    folder = tmp_path / "run"
    with live_service(tmp_path / "service") as live:
        client = live.study(queries_per_annotator=100)
        token = live.token()
        settings = [*SETTINGS, "num_env_steps=6000", "teacher.answers_per_fit=2", "checkpoint_interval=5000"]
        process = start(live, token, *settings, "--out", str(folder))
        metrics = folder / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
        annotators = Annotators(live.url, token, 1, think_s=0.02)
        annotators.start()
        wait_for(lambda: PreferenceDataset(folder).num_queries >= 4, process)
        person = next(iter(PreferenceDataset(folder).preferences)).teacher
        live.store.people.withdraw(person, "test")
        wait_for(lambda: PreferenceDataset(folder).withdrawals, process)
        finish(process)
        annotators.leave()
    dataset = PreferenceDataset(folder)
    assert person not in {row.teacher for row in dataset.preferences}
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[0]["reward_version"] == 0
    assert rows[-1]["reward_version"] >= 1
    assert client.url in (folder / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_whose_people_do_not_come_ends_and_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    with live_service(tmp_path / "service") as live:
        live.study(queries_per_annotator=100)
        token = live.token()
        waiting = ["teacher.wait=true", "teacher.wait_timeout_s=1", "--out", str(folder)]
        output = finish(start(live, token, *SETTINGS, *waiting), returncode=2)
        assert "study tea gave no answer for 1 s" in output
        assert "Traceback" not in output
        output = finish(start(live, "no-such-token", "--resume", str(folder)), returncode=2)
        assert "401" in output
        assert "THEMIS_STUDY_TOKEN" in output
    assert len(PreferenceDataset(folder).asked) == 4
