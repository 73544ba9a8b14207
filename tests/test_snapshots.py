"""The snapshot folder, `themis pretrain`, and `themis train --from`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result

from themis_ray.cli import main
from themis_ray.config import ExperimentConfig, load_config, resolve
from themis_ray.errors import CheckpointError, RunFolderError
from themis_ray.snapshots import (
    Snapshot,
    adopt_settings,
    check_snapshot,
    make_pretraining_config,
    open_snapshot,
    prepare_snapshot_folder,
    write_snapshot,
)
from themis_ray.tracking import RunFolder

PENDULUM = "env.id=Pendulum-v1"
EXPLORED = (
    PENDULUM,
    "algorithm.hidden_sizes=[32,16]",
    "exploration.num_seed_steps=50",
    "exploration.num_env_steps=150",
)


class FakeAlgorithm:
    """Saves one file."""

    env_steps = 224

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True)
        (Path(path) / "state.pkl").write_bytes(b"weights")


def themis(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line, line


def load(*overrides: str) -> ExperimentConfig:
    return load_config(None, overrides)


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    config, _ = resolve(load(*EXPLORED, "seed=5"))
    return write_snapshot(tmp_path / "snapshot", FakeAlgorithm(), config)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when the program starts Ray, an experiment or a pretraining run."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr("themis_ray.cli.train.run_experiment", start)
    monkeypatch.setattr("themis_ray.cli.train.run_pretraining", start)


# ---------------------------------------------------------------- the folder


def test_a_snapshot_is_read_back_and_says_what_it_is(snapshot: Snapshot) -> None:
    assert open_snapshot(snapshot.path) == snapshot
    assert (snapshot.checkpoint_path / "state.pkl").read_bytes() == b"weights"
    about = json.loads((snapshot.path / "snapshot.json").read_text())
    assert (about["env_id"], about["algorithm"], about["seed"]) == ("Pendulum-v1", "sac", 5)
    assert about["num_env_steps"] == 224
    assert set(about["files"]) == {"config.yaml", "checkpoint/state.pkl"}
    assert sorted(path.name for path in snapshot.path.parent.iterdir()) == ["snapshot"], "a temporary folder is left"


def test_a_snapshot_can_be_moved(snapshot: Snapshot, tmp_path: Path) -> None:
    moved = snapshot.path.rename(tmp_path / "elsewhere")
    assert open_snapshot(moved).config == snapshot.config


def _no_about(path: Path) -> str:
    (path / "snapshot.json").unlink()
    return "is no snapshot"


def _broken_about(path: Path) -> str:
    (path / "snapshot.json").write_text('{"format": 1')
    return "snapshot.json is broken"


def _foreign_about(path: Path) -> str:
    about = json.loads((path / "snapshot.json").read_text())
    (path / "snapshot.json").write_text(json.dumps({**about, "format": 99}))
    return "has format 99"


def _no_files(path: Path) -> str:
    about = json.loads((path / "snapshot.json").read_text())
    (path / "snapshot.json").write_text(json.dumps({**about, "files": {}}))
    return "it lists no files"


def _flipped_bit(path: Path) -> str:
    (path / "checkpoint" / "state.pkl").write_bytes(b"weighus")
    return "is damaged: checkpoint/state.pkl"


def _missing_file(path: Path) -> str:
    (path / "checkpoint" / "state.pkl").unlink()
    return "is damaged: checkpoint/state.pkl"


def _changed_config(path: Path) -> str:
    (path / "config.yaml").write_text("env: {id: CartPole-v1}\n")
    return "is damaged: config.yaml"


def _no_folder(path: Path) -> str:
    shutil.rmtree(path)
    return "is no snapshot"


DAMAGES = [
    _no_about,
    _broken_about,
    _foreign_about,
    _no_files,
    _flipped_bit,
    _missing_file,
    _changed_config,
    _no_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_in_one_line_before_anything_starts(
    damage: Callable[[Path], str], snapshot: Snapshot, tmp_path: Path, no_ray: None
) -> None:
    part = damage(snapshot.path)
    with pytest.raises(CheckpointError):
        open_snapshot(snapshot.path)
    result = themis("train", PENDULUM, "--from", snapshot.path, "--out", tmp_path / "run")
    assert_one_line(result, str(snapshot.path), part, "themis pretrain")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what must be the same


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["env.id=MountainCarContinuous-v0"], ["env.id", "MountainCarContinuous-v0", "Pendulum-v1"]),
        (["env.horizon=100"], ["env.horizon", "100", "200"]),
        (["env.kwargs={g: 5.0}"], ["env.kwargs", "5.0"]),
        (["env.normalize_observations=true"], ["env.normalize_observations is True here and False there"]),
        (["env.frame_stack=2"], ["env.frame_stack is 2 here and 1 there"]),
        (["env.wrappers=[gymnasium.wrappers:RecordEpisodeStatistics]"], ["env.wrappers", "RecordEpisodeStatistics"]),
        (["env.family_wrappers=false"], ["env.family_wrappers is False here and True there"]),
        (["algorithm.name=ppo", "exploration.num_seed_steps=0"], ["algorithm.name", "ppo", "sac"]),
        (["algorithm.hidden_sizes=[32,32]"], ["algorithm.hidden_sizes", "[32, 32]", "[32, 16]"]),
        (["exploration.num_env_steps=151"], ["exploration.num_env_steps", "151", "150"]),
        (["exploration.num_seed_steps=0"], ["exploration.num_seed_steps", "0", "50"]),
        (["exploration.num_neighbors=4"], ["exploration.num_neighbors", "4", "5"]),
        (["num_env_steps=224"], ["num_env_steps=224", "Give more"]),
        (["algorithm.reference=runs/x"], ["algorithm.reference=runs/x", "one policy"]),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused_in_one_line(
    settings: list[str], parts: list[str], snapshot: Snapshot, tmp_path: Path, no_ray: None
) -> None:
    given = settings if settings[0].startswith("env.id") else [PENDULUM, *settings]
    for source in (["--from", snapshot.path], [f"snapshot={snapshot.path}"]):
        result = themis("train", *given, *source, "--out", tmp_path / "run")
        assert_one_line(result, str(snapshot.path), *parts)
    assert not (tmp_path / "run").exists()


def test_early_ends_must_be_the_same(tmp_path: Path) -> None:
    config, _ = resolve(load("env.id=CartPole-v1", "exploration.num_env_steps=100"))
    snapshot = write_snapshot(tmp_path / "snapshot", FakeAlgorithm(), config)
    result = themis("train", "env.id=CartPole-v1", "env.fixed_horizon=false", "--from", snapshot.path, "--dry-run")
    assert_one_line(result, "env.fixed_horizon is False here and True there")


def test_what_is_left_open_is_taken_from_the_snapshot(snapshot: Snapshot) -> None:
    config, spec = resolve(adopt_settings(load(PENDULUM), snapshot))
    check_snapshot(config, spec, snapshot)
    assert config.algorithm.hidden_sizes == (32, 16)
    assert config.exploration == snapshot.config.exploration
    assert config.snapshot == str(snapshot.path)
    assert config.seed == 0
    assert resolve(config)[0] == config


@pytest.mark.parametrize(
    "free",
    [
        "seed=1",
        "teacher.name=mistake",
        "feedback.sampler=entropy",
        "feedback.budget=7",
        "reward.hidden_sizes=[8]",
        "learn_reward=false",
        "algorithm.learning_rate=0.01",
        "num_env_steps=225",
        "env.horizon=200",
        "env.frame_stack=1",
        "algorithm.hidden_sizes=[32,16]",
    ],
)
def test_everything_else_is_free(free: str, snapshot: Snapshot, tmp_path: Path, no_ray: None) -> None:
    result = themis("train", PENDULUM, free, "--from", snapshot.path, "--dry-run")
    assert result.exit_code == 0, result.output
    path = tmp_path / "dry.yaml"
    path.write_text(result.stdout)
    assert load_config(path).snapshot == str(snapshot.path)
    again = themis("train", path, "--dry-run")
    assert again.stdout == result.stdout, "the written configuration names the snapshot itself"


def test_resume_takes_no_snapshot(snapshot: Snapshot, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", resolve(load(PENDULUM))[0])
    assert_one_line(themis("train", "--resume", tmp_path / "run", "--from", snapshot.path), "own settings")


# ---------------------------------------------------------------- themis pretrain


@pytest.mark.parametrize(
    "settings",
    [
        (PENDULUM, "num_env_steps=1500", "exploration.num_env_steps=600"),
        ("env.id=CartPole-v1", "num_env_steps=1000", "exploration.num_env_steps=500"),
        (PENDULUM, "num_env_steps=700", "exploration.num_env_steps=600", "exploration.num_seed_steps=99"),
    ],
)
def test_a_run_long_enough_explores_as_it_does_in_training(settings: tuple[str, ...]) -> None:
    assert make_pretraining_config(load(*settings)) == load(*settings)


def test_exploration_longer_than_a_default_run_is_allowed() -> None:
    for given, num_env_steps in (("30000", 31001), ("100", 20000)):
        config = make_pretraining_config(load(PENDULUM, f"exploration.num_env_steps={given}"))
        assert config.num_env_steps == num_env_steps
        assert resolve(config)[0].exploration.num_env_steps == int(given)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["env.id=CartPole-v1"], ["nothing to pretrain", "exploration.num_env_steps=2000"]),
        ([PENDULUM, "exploration.num_env_steps=0"], ["nothing to pretrain"]),
        ([PENDULUM, "snapshot=x"], ["starts from nothing"]),
        ([PENDULUM, "algorithm.reference=x"], ["starts from nothing"]),
        ([], ["env is missing"]),
    ],
)
def test_what_cannot_be_pretrained_is_refused(settings: list[str], parts: list[str], no_ray: None) -> None:
    assert_one_line(themis("pretrain", *settings), *parts)


def test_a_folder_that_holds_something_is_refused(snapshot: Snapshot, tmp_path: Path, no_ray: None) -> None:
    assert_one_line(themis("pretrain", PENDULUM, "--out", snapshot.path), str(snapshot.path), "is not empty")
    (tmp_path / "file").write_text("x")
    assert_one_line(themis("pretrain", PENDULUM, "--out", tmp_path / "file"), "cannot be written")
    assert open_snapshot(snapshot.path) == snapshot


def test_the_folder_one_is_in_is_refused(tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(themis("pretrain", PENDULUM, "--out", "."), "the folder you are in")


class Saved:
    """Stands for an algorithm that has explored."""

    env_steps = 7

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "state").write_text("explored")


def test_a_link_to_an_empty_folder_takes_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "scratch")
    prepare_snapshot_folder(link)
    config = resolve(load("env.id=Pendulum-v1"))[0]
    write_snapshot(link, Saved(), config)
    assert link.is_symlink()
    assert open_snapshot(link).num_env_steps == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "scratch"]


def test_what_a_killed_pretraining_left_is_gone_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".snap.12345678.tmp" / "checkpoint").mkdir(parents=True)
    (tmp_path / ".other.12345678.tmp").mkdir()
    write_snapshot(tmp_path / "snap", Saved(), resolve(load("env.id=Pendulum-v1"))[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.12345678.tmp", "snap"]


def test_a_folder_that_was_filled_meanwhile_is_refused_in_one_line(tmp_path: Path) -> None:
    prepare_snapshot_folder(tmp_path / "snap")
    (tmp_path / "snap" / "precious").write_text("mine")
    with pytest.raises(RunFolderError, match=r"snap cannot be written \(.*not empty\)"):
        write_snapshot(tmp_path / "snap", Saved(), resolve(load("env.id=Pendulum-v1"))[0])
    assert (tmp_path / "snap" / "precious").read_text() == "mine"


def test_the_examples_of_the_help_parse() -> None:
    text = themis("pretrain", "--help").output
    for option in ("--out", "--debug", "[FILE.yaml] [key=value ...]"):
        assert option in text
    lines = [line.strip() for line in text.partition("Examples:\n")[2].strip().splitlines()]
    assert len(lines) == 3
    assert "--from" in themis("train", "--help").output


# ---------------------------------------------------------------- whole runs

SMALL = [
    "env.id=CartPole-v1",
    "env.horizon=40",
    "algorithm.batch_size=160",
    "algorithm.num_envs=2",
    "reward.hidden_sizes=[8]",
    "reward.num_epochs=2",
    "feedback.budget=12",
    "feedback.session_size=4",
    "feedback.segment_length=10",
    "num_evaluation_episodes=2",
    "num_env_steps=960",
]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.ray
def test_ppo_explores_once_trains_from_it_and_resumes_without_it(tmp_path: Path, ray_cluster: None) -> None:
    path, folder = tmp_path / "snapshot", tmp_path / "run"
    made = themis("pretrain", *SMALL, "algorithm.hidden_sizes=[8]", "exploration.num_env_steps=320", "--out", path)
    assert made.exit_code == 0, made.output
    last = made.stdout.strip().splitlines()[-1]
    assert last == f"Snapshot: {path} (320 env steps). Use it: themis train env.id=CartPole-v1 --from {path}"
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    trained = themis("train", *SMALL, "seed=2", "--from", path, "--out", folder)
    assert trained.exit_code == 0, trained.output
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == files
    opened, config = RunFolder.open(folder)
    assert config.snapshot == str(path)
    rows = opened.read_metrics()
    assert rows[0]["num_env_steps"] == 480
    assert {row["phase"] for row in rows} == {"preference"}
    assert rows[0]["reward_version"] >= 1
    summary = read(folder / "summary.json")
    assert summary["num_env_steps"] == rows[-1]["num_env_steps"] == 960
    assert summary["queries_asked"] == 12
    assert summary["env_steps_per_s"] == pytest.approx((960 - 320) / summary["wall_s"])

    shutil.rmtree(path)
    newest = opened.checkpoints()[-1]
    assert newest.name.endswith("960")
    shutil.rmtree(newest)
    (folder / "summary.json").unlink()
    resumed = themis("train", "--resume", folder)
    assert resumed.exit_code == 0, resumed.output
    again = read(folder / "summary.json")
    assert (again["num_env_steps"], again["queries_asked"]) == (960, 12)
    assert again["env_steps_per_s"] == pytest.approx((960 - 320) / again["wall_s"])


@pytest.mark.ray
def test_a_run_that_is_stopped_before_its_first_line_resumes_without_the_snapshot(
    tmp_path: Path, ray_cluster: None
) -> None:
    from themis_ray.experiment import run_experiment

    path = tmp_path / "snapshot"
    made = themis("pretrain", *SMALL, "algorithm.hidden_sizes=[8]", "exploration.num_env_steps=160", "--out", path)
    assert made.exit_code == 0, made.output
    snapshot = open_snapshot(path)
    config, spec = resolve(adopt_settings(load(*SMALL), snapshot))
    folder = RunFolder.create(tmp_path / "run", config)
    iterations = run_experiment(config, spec, folder)
    next(iterations)
    iterations.close()
    assert folder.checkpoints()[0].name == "checkpoint_000000160"
    for checkpoint in folder.checkpoints()[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(path)
    rows = [iteration.metrics for iteration in run_experiment(config, spec, folder, is_resumed=True)]
    assert rows[0]["num_env_steps"] == 320
    assert rows[-1]["num_env_steps"] == 960
    assert rows[-1]["queries_asked"] == 12
