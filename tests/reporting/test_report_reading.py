"""Which folders are runs, what is read of them, and what is said of those that cannot be read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import RANDOM, TRUE, make_run

from themis_ray.errors import RunFolderError
from themis_ray.reporting import find_runs

# ---------------------------------------------------------------- reading


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["teacher.name=mistake", "feedback.sampler=entropy", "seed=3"])
    (run,), left_out = find_runs([path])
    assert not left_out
    assert (run.teacher, run.sampler, run.seed, run.env_id) == ("mistake", "entropy", 3, "Pendulum-v1")
    assert run.learns_reward
    assert run.true_return == pytest.approx((RANDOM["Pendulum-v1"] + TRUE["Pendulum-v1"]) / 2)
    assert run.random_return == RANDOM["Pendulum-v1"]
    # The first line knows no return.
    assert len(run.env_steps) == len(run.returns) == len(run.queries) == 19
    assert (np.diff(run.env_steps) > 0).all()


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "deep" / "er" / "a", 0.5, ["seed=0"])
    make_run(tmp_path / "sweep" / "b", 0.5, ["seed=1"])
    # A checkpoint may hold whatever it likes.
    shutil.copytree(tmp_path / "sweep" / "b", tmp_path / "sweep" / "b" / "checkpoints" / "old")
    runs, _ = find_runs([tmp_path, tmp_path / "sweep", tmp_path / "sweep" / "b"])
    assert sorted(run.seed for run in runs) == [0, 1]


def test_another_programs_config_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: sweep\n")
    make_run(tmp_path / "a", 0.5, ["seed=0"])
    runs, left_out = find_runs([tmp_path])
    assert len(runs) == 1
    assert not left_out


def test_broken_and_unfinished_runs_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "good", 0.5, ["seed=0"])
    make_run(tmp_path / "unfinished", 0.5, ["seed=1", "num_env_steps=8000"], is_finished=False)
    (make_run(tmp_path / "no-summary", 0.5, ["seed=2"]) / "summary.json").write_text("{")
    (make_run(tmp_path / "no-return", 0.5, ["seed=3"]) / "summary.json").write_text('{"true_return_mean": null}')
    (make_run(tmp_path / "no-config", 0.5, ["seed=4"]) / "config.yaml").write_text("env: [")
    (make_run(tmp_path / "no-metrics", 0.5, ["seed=5"]) / "metrics.jsonl").write_text("what\n{}\n")
    (make_run(tmp_path / "no-env", 0.5, ["seed=6"]) / "config.yaml").write_text("seed: 6\nlearn_reward: true\n")
    runs, left_out = find_runs([tmp_path])
    assert [run.path.name for run in runs] == ["good"]
    assert {run.path.name: run.reason for run in left_out} == {
        "unfinished": "not finished: 1200 of 8000 env steps",
        "no-summary": "summary.json is broken",
        "no-return": "summary.json has no number as true_return_mean",
        "no-config": "config.yaml cannot be read",
        "no-metrics": "metrics.jsonl is broken",
        "no-env": "config.yaml lacks env.id",
    }


def test_a_run_that_was_stopped_early_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["seed=0", "num_env_steps=8000"])
    summary = json.loads((path / "summary.json").read_text()) | {"num_env_steps": 2000}
    (path / "summary.json").write_text(json.dumps(summary))
    runs, left_out = find_runs([path])
    assert not runs
    assert [run.reason for run in left_out] == ["stopped early: 2000 of 8000 env steps"]


def test_a_trial_that_a_scheduler_stopped_says_so(tmp_path: Path) -> None:
    settings = ["num_env_steps=8000"]
    for name, text in (("asha", '{"by": "asha"}'), ("torn", '{"by'), ("odd", "[]")):
        path = make_run(tmp_path / name, 0.5, [*settings, f"seed={len(name)}"], is_finished=False)
        (path / "stopped.json").write_text(text)
    over = make_run(tmp_path / "over", 0.5, [*settings, "seed=9"])
    (over / "stopped.json").write_text('{"by": "asha"}')
    runs, left_out = find_runs([tmp_path])
    assert [run.path.name for run in runs] == ["over"]
    assert {run.path.name: run.reason for run in left_out} == {
        "asha": "stopped by asha: 1200 of 8000 env steps",
        "torn": "stopped by a scheduler: 1200 of 8000 env steps",
        "odd": "stopped by a scheduler: 1200 of 8000 env steps",
    }
    assert all(run.stopped is not None and run.stopped.seed for run in left_out)


def test_a_broken_file_leaves_one_run_out(tmp_path: Path) -> None:
    make_run(tmp_path / "good", 0.5, ["seed=0"])
    folder = make_run(tmp_path / "folder", 0.5, ["seed=1"])
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    for name, old, new in (
        ("word", "seed: 2", "seed: abc"),
        ("part", "seed: 2", "seed: 2.5"),
        ("yes", "learn_reward: true", "learn_reward: maybe"),
    ):
        config = make_run(tmp_path / name, 0.5, ["seed=2"]) / "config.yaml"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    odd = make_run(tmp_path / "odd", 0.5, ["seed=3"])
    summary = json.loads((odd / "summary.json").read_text()) | {"queries_asked": "many", "wall_s": None}
    (odd / "summary.json").write_text(json.dumps(summary))
    runs, left_out = find_runs([tmp_path])
    assert {run.path.name: (run.queries_asked, run.wall_s) for run in runs} == {"good": (100, 12.5), "odd": (0, 0.0)}
    assert {run.path.name: run.reason for run in left_out} == {
        "folder": "metrics.jsonl is broken",
        "word": "config.yaml has seed=abc, which is no whole number",
        "part": "config.yaml has seed=2.5, which is no whole number",
        "yes": "config.yaml has learn_reward=maybe, which is no true or false",
    }


def test_a_run_may_lie_in_a_folder_of_any_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("preferences", "clips", "segments", "checkpoints", "tensorboard")):
        make_run(tmp_path / name / "a", 0.5, [f"seed={seed}"])
    assert sorted(run.seed for run in find_runs([tmp_path])[0]) == [0, 1, 2, 3, 4]


def test_what_trackers_keep_of_a_run_is_no_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["seed=0"])
    for folder in ("wandb", "mlflow", "mlartifacts", "mlruns", ".hidden"):
        shutil.copytree(path, tmp_path / folder / "1" / "artifacts" / "run")
    runs, left_out = find_runs([tmp_path])
    assert [run.path for run in runs] == [path]
    assert not left_out


def test_a_run_that_was_read_from_elsewhere_is_called_so(tmp_path: Path) -> None:
    make_run(tmp_path / "0" / "sweep" / "a", 0.5, ["seed=0"])
    make_run(tmp_path / "0" / "sweep" / "b", 0.5, ["seed=1"], is_finished=False)
    top = tmp_path / "0" / "sweep"
    runs, left_out = find_runs([top, tmp_path / "0"], {top: "s3://bucket/sweep"})
    assert [run.place for run in runs] == ["s3://bucket/sweep/a"]
    assert [run.place for run in left_out] == ["s3://bucket/sweep/b"]
    assert find_runs([top / "a"], {top / "a": "s3://bucket/sweep/a"})[0][0].place == "s3://bucket/sweep/a"
    (tmp_path / "none").mkdir()
    with pytest.raises(RunFolderError, match="s3://bucket/none holds no run"):
        find_runs([tmp_path / "none"], {tmp_path / "none": "s3://bucket/none"})


def test_an_unfinished_last_line_of_metrics_does_no_harm(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["seed=0"])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"num_env')
    assert len(find_runs([path])[0]) == 1


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(RunFolderError, match="holds no run"):
        find_runs([tmp_path])
