"""Processes die in the middle of a run: the driver, and the reward actor's process."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.dataset
import pytest
from click.testing import CliRunner
from short_run import SHORT_RUN

from themis_ray.cli import main
from themis_ray.tracking import RunFolder

SETTINGS = [
    "env.id=Pendulum-v1",
    "num_env_steps=2000",
    "feedback.budget=40",
    "feedback.segment_length=20",
    "algorithm.hidden_sizes=[32,32]",
    "algorithm.batch_size=32",
    "reward.hidden_sizes=[32,32]",
    "reward.num_epochs=5",
    "num_evaluation_episodes=2",
]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "themis_ray.cli", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def num_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored_answers(folder: Path) -> list[dict[str, object]]:
    return pyarrow.dataset.dataset(folder / "preferences").to_table().to_pylist()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.mark.ray
def test_killed_run_resumes_within_budget_and_keeps_every_answer(tmp_path):
    folder = tmp_path / "run"
    process = start(*SETTINGS, "--out", str(folder))
    checkpoints = folder / "checkpoints"
    wait_for(
        lambda: any(checkpoints.glob("checkpoint_*")) and len(list((folder / "preferences").glob("p*"))) > 4, process
    )
    num_killed = num_lines(folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = stored_answers(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"num_env_steps": 12')

    output = finish(start("--resume", str(folder)))
    assert "unfinished line" in output
    assert stored_answers(folder)[: len(before)] == before
    summary = json.loads((folder / "summary.json").read_text())
    assert len(before) < summary["queries_asked"] <= 40
    assert summary["num_env_steps"] >= 2000
    steps = [json.loads(line)["num_env_steps"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert len(steps) > num_killed
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
def test_run_survives_the_death_of_its_reward_actor_and_says_so(tmp_path):
    folder = tmp_path / "run"
    process = start(*SETTINGS, "--out", str(folder))
    wait_for(lambda: num_lines(folder) > 15, process)
    actors = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name().startswith("ray::RewardMode")
    ]
    assert len(actors) == 1
    os.kill(actors[0].pid, signal.SIGKILL)
    output = finish(process)
    assert "reward actor died" in output
    assert "reward actor died" in (folder / "run.log").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_reward_actor_restarts"] == 1
    assert summary["queries_asked"] == 40
    versions = [json.loads(line)["reward_version"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert versions == sorted(versions), "weights were lost"


@pytest.mark.ray
def test_a_full_disk_ends_a_run_in_one_line_that_says_how_to_go_on(tmp_path, ray_cluster, monkeypatch):
    folder = tmp_path / "run"

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file of a tracker")

    monkeypatch.setattr(RunFolder, "add_checkpoint", fail)
    done = CliRunner().invoke(main, ["train", *SHORT_RUN, "num_env_steps=400", "--out", str(folder)])
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "a file of a tracker cannot be written (No space left on device)" in line
    assert f"--resume {folder}" in line
    assert num_lines(folder) > 0
