"""Sweeps through Tune: every trial is the run of `themis train`, and a sweep that was stopped goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from tiny_sweep import write_sweep

from themis_ray.cli import main
from themis_ray.config import resolve
from themis_ray.experiment import run_experiment
from themis_ray.sweeping import Outcome, Progress, SweepFolder, expand, load_sweep, run_sweep
from themis_ray.tracking import RunFolder

TIMES = ("wall_s", "env_steps_per_s")


def sweep(path: Path, out: Path, *overrides: str) -> tuple[list[Outcome], list[Progress]]:
    settings = load_sweep(path, overrides)
    folder = SweepFolder(out) if out.exists() else SweepFolder.create(out, settings)
    events: list[Progress] = []
    trials = [] if settings.search == "optuna" else expand(settings)
    return run_sweep(settings, folder, trials, events.append), events


def rows(path: Path) -> list[dict[str, Any]]:
    """Return a run's lines of metrics without its times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in RunFolder(path).read_metrics()]


@pytest.mark.ray
def test_trials_are_the_runs_that_train_makes(tmp_path: Path, ray_cluster: None) -> None:
    path = write_sweep(tmp_path, space={"teacher.name": ["oracle", "mistake"]}, seeds=[3])
    out = tmp_path / "sweep"
    outcomes, events = sweep(path, out)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], outcomes
    assert [outcome.num_labels for outcome in outcomes] == [8, 8]
    assert events[-1].share == 1.0
    assert events[-1].num_over == 2
    assert not (out / ".tune").exists()

    trial = expand(load_sweep(path))[1]
    config, spec = resolve(trial.config)
    alone = RunFolder.create(tmp_path / "alone", config)
    for _ in run_experiment(config, spec, alone):
        pass
    swept = out / trial.name
    assert rows(swept) == rows(alone.path)
    assert (swept / "config.yaml").read_text() == (alone.path / "config.yaml").read_text()
    written = {item.name for item in alone.path.iterdir()}
    assert {item.name for item in swept.iterdir()} == written

    # A second start finds all trials over, and runs none.
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    again, events = sweep(path, out)
    assert again == outcomes
    assert not events
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_whose_process_dies_goes_on_from_its_checkpoint(tmp_path: Path, ray_cluster: None) -> None:
    settings = load_sweep(write_sweep(tmp_path), ["num_env_steps=1000"])
    folder = SweepFolder.create(tmp_path / "sweep", settings)
    killed: list[int] = []

    def kill_once(event: Progress) -> None:
        if event.share >= 0.5 and not killed:
            children = psutil.Process().children(recursive=True)
            trials = [child for child in children if child.name().startswith("ray::ImplicitFu")]
            assert trials, [child.name() for child in children]
            for trial in trials:
                trial.kill()
                killed.append(trial.pid)

    (outcome,) = run_sweep(settings, folder, expand(settings), kill_once)
    assert killed
    assert outcome.status == "finished"
    assert outcome.num_env_steps >= 1000
    assert outcome.num_labels <= 8
    assert "Resumed from checkpoint_" in (folder.path / outcome.name / "run.log").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_cannot_go_on_is_told_and_the_others_finish(tmp_path: Path, ray_cluster: None) -> None:
    path = write_sweep(tmp_path, max_failures=1, seeds=2)
    out = tmp_path / "sweep"
    broken = out / "pendulum" / "s1"
    settings = load_sweep(path)
    SweepFolder.create(out, settings)
    # A line that no run can read, as a broken disk would leave.
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("env: {id: Pendulum-v1}\n")
    (broken / "checkpoints" / "checkpoint_000000300").mkdir(parents=True)
    outcomes, _ = sweep(path, out)
    assert [outcome.status for outcome in outcomes] == ["finished", "failed"]
    assert "themis.json is missing" in outcomes[1].message


@pytest.mark.ray
def test_a_trial_stops_at_the_metric_named(tmp_path: Path, ray_cluster: None) -> None:
    path = write_sweep(tmp_path, stop={"num_env_steps": 300})
    (outcome,), _ = sweep(path, tmp_path / "sweep")
    assert outcome.status == "finished"
    assert 300 <= outcome.num_env_steps < 400
    assert len(RunFolder(tmp_path / "sweep" / outcome.name).checkpoints()) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_trials_share_one_exploration(tmp_path: Path, ray_cluster: None) -> None:
    space = {"teacher.name": ["oracle", "mistake"], "algorithm.gamma": [0.9, 0.99]}
    out = tmp_path / "sweep"
    outcomes, events = sweep(write_sweep(tmp_path, space=space, share_pretrain=True), out)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4, outcomes
    assert "exploring" in {event.what for event in events}
    snapshots = sorted(path.name for path in (out / ".snapshots").iterdir())
    assert snapshots == ["pendulum-sac-s0", "pendulum-sac-s0+2"]
    for outcome in outcomes:
        _, config = RunFolder.open(out / outcome.name)
        assert Path(str(config.snapshot)).parent == out / ".snapshots"
        first = RunFolder(out / outcome.name).read_metrics()[0]
        assert first["num_env_steps"] > 200


@pytest.mark.ray
@pytest.mark.slow
def test_asha_ends_trials_that_fall_behind_for_good(tmp_path: Path, ray_cluster: None) -> None:
    scheduler = {"kind": "asha", "grace_num_env_steps": 200, "reduction_factor": 2}
    path = write_sweep(tmp_path, seeds=4, scheduler=scheduler, max_concurrent=2)
    out = tmp_path / "sweep"
    outcomes, _ = sweep(path, out)
    states = [outcome.status for outcome in outcomes]
    assert set(states) == {"finished", "stopped"}, states
    again, events = sweep(path, out)
    assert again == outcomes
    assert not events


@pytest.mark.ray
@pytest.mark.slow
def test_pbt_lets_trials_go_on_from_better_ones(tmp_path: Path, ray_cluster: None) -> None:
    scheduler = {
        "kind": "pbt",
        "interval_num_env_steps": 200,
        "quantile": 0.5,
        "mutations": {"reward.learning_rate": {"loguniform": [1e-4, 1e-2]}},
    }
    path = write_sweep(tmp_path, seeds=2, scheduler=scheduler)
    out = tmp_path / "sweep"
    outcomes, _ = sweep(path, out, "num_env_steps=1000")
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], outcomes
    takeovers = list(out.rglob("takeovers.jsonl"))
    assert takeovers
    row = json.loads(takeovers[0].read_text().splitlines()[-1])
    _, config = RunFolder.open(takeovers[0].parent)
    assert config.reward.learning_rate == row["reward"]["learning_rate"]
    steps = [row["num_env_steps"] for row in RunFolder(takeovers[0].parent).read_metrics()]
    assert steps == sorted(set(steps))


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_chooses_trials_and_goes_on(tmp_path: Path, ray_cluster: None) -> None:
    pytest.importorskip("optuna")
    space = {"reward.learning_rate": {"loguniform": [1e-4, 1e-2]}, "feedback.sampler": ["uniform", "entropy"]}
    path = write_sweep(tmp_path, search="optuna", num_samples=2, space=space, max_concurrent=1)
    out = tmp_path / "sweep"
    outcomes, _ = sweep(path, out)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], outcomes
    assert all(outcome.name.startswith("pendulum/learning_rate-") for outcome in outcomes)
    more, _ = sweep(path, out, "num_samples=3")
    assert more[:2] == outcomes
    assert [outcome.status for outcome in more] == ["finished"] * 3


# ---------------------------------------------------------------- a sweep that is killed


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "themis_ray.cli", "sweep", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, seeds=2, max_concurrent=1)
    out = tmp_path / "sweep"
    first, second = out / "pendulum" / "s0", out / "pendulum" / "s1"
    process = start(str(path), "num_env_steps=1000", "--out", str(out))
    wait_for(lambda: any((second / "checkpoints").glob("checkpoint_*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (first / "summary.json").is_file()
    assert not (second / "summary.json").exists()
    before = (first / "summary.json").stat().st_mtime_ns
    before_log = (first / "run.log").read_text()

    process = start("--resume", str(out))
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert (first / "summary.json").stat().st_mtime_ns == before
    assert (first / "run.log").read_text() == before_log
    assert "Resumed from checkpoint_" in (second / "run.log").read_text()
    summary = json.loads((second / "summary.json").read_text())
    assert summary["num_env_steps"] >= 1000
    assert summary["queries_asked"] <= 8
    steps = [row["num_env_steps"] for row in RunFolder(second).read_metrics()]
    assert steps == sorted(set(steps))
    for name in ("pendulum/s0", "pendulum/s1"):
        assert name in output


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_in_storage_goes_on_from_anywhere(tmp_path: Path, ray_cluster: None) -> None:
    space = {"teacher.name": ["oracle", "mistake"]}
    storage = f"file://{tmp_path / 'storage'}"
    path = write_sweep(tmp_path, space=space, share_pretrain=True, storage_path=storage)
    settings = load_sweep(path)
    first = SweepFolder.create(tmp_path / "here" / "tiny", settings)
    trials = expand(settings)
    outcomes = run_sweep(settings, first, trials)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], outcomes

    plain = tmp_path / "plain"
    sweep(write_sweep(tmp_path, space=space, share_pretrain=True), plain)
    for trial in trials:
        kept = tmp_path / "storage" / "tiny" / trial.name
        assert rows(kept) == rows(plain / trial.name)
        assert {item.name for item in kept.iterdir()} - {"mirror.id"} == {
            item.name for item in (plain / trial.name).iterdir()
        }
        # Here is what tables are made of; on the machine that ran it, nothing is left.
        shown = {item.name for item in (first.path / trial.name).iterdir()}
        assert shown == {"config.yaml", "metrics.jsonl", "summary.json", "plot.png"}
        assert not (first.work_path / trial.name).exists()
    assert not [name for name in first.storage.files() if name.startswith(".tune")]  # type: ignore[union-attr]

    # As if the machine of the second trial was lost after its last session: no summary, and nothing of it elsewhere.
    lost = tmp_path / "storage" / "tiny" / trials[1].name
    answers = sorted(file.name for file in (lost / "preferences").iterdir())
    (lost / "summary.json").unlink()
    second, found = SweepFolder.open(f"{storage}/tiny", tmp_path / "there" / "tiny")
    assert found == settings
    events: list[Progress] = []
    again = run_sweep(found, second, expand(found), events.append)
    assert [(o.name, o.status, o.true_return) for o in again] == [(o.name, o.status, o.true_return) for o in outcomes]
    assert {event.name for event in events} == {trials[1].name}
    assert sorted(file.name for file in (lost / "preferences").iterdir()) == answers
    # A report of what is in storage, from a place that holds nothing of it.
    report = tmp_path / "report"
    done = CliRunner().invoke(main, ["report", f"{storage}/tiny", "--out", str(report)])
    assert done.exit_code == 0, done.output
    assert "2 runs" in done.output
    assert (report / "report.html").is_file()
    done = CliRunner().invoke(main, ["report", f"{storage}/nothing", "--out", str(report)])
    assert done.exit_code == 2
    assert "holds no run" in done.output
