import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from records import read_events, read_wandb

from themis_ray.cli import main
from themis_ray.clips import read_clip
from themis_ray.config import ExperimentConfig, dump_config, load_config, resolve
from themis_ray.errors import CheckpointError, ConfigError, RunFolderError, ThemisError
from themis_ray.tracking import METRICS, GuardedLogger, JsonLinesLogger, RunFolder, make_loggers

ROOT = Path(__file__).parents[2]
CONFIG = ExperimentConfig(env={"id": "Pendulum-v1"})
OTHER = ExperimentConfig(env={"id": "CartPole-v1"})


class FakeAlgorithm:
    """Saves one file, or fails in the middle of it."""

    def __init__(self, content: str = "weights", *, fails: bool = False) -> None:
        self.content, self.fails = content, fails

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True)
        (Path(path) / "state.txt").write_text(self.content)
        if self.fails:
            raise OSError("disk full")


def add(folder: RunFolder, num_env_steps: int, num_kept: int = 2, **options: Any) -> Path:
    return folder.add_checkpoint(FakeAlgorithm(**options), {"num_env_steps": num_env_steps}, num_kept)


def write_metrics(folder: RunFolder, *steps: int, tail: str = "") -> None:
    folder.metrics_path.write_text("".join(json.dumps({"num_env_steps": n}) + "\n" for n in steps) + tail)


def read_steps(path: Path) -> list[int]:
    return [json.loads(line)["num_env_steps"] for line in path.read_text().splitlines()]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refusal(kind: type[ThemisError], call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


# ---------------------------------------------------------------- folder


def test_one_process_at_a_time_trains_in_a_folder(folder: RunFolder) -> None:
    write_metrics(folder, 100)
    with folder.held():
        result = CliRunner().invoke(main, ["train", "--resume", str(folder.path)])
        assert result.exit_code == 2, result.output
        assert result.output.startswith(f"error: another themis train works in {folder.path}. ")
        assert result.output.count("\n") == 1
        refusal(RunFolderError, RunFolder.create, folder.path, CONFIG, overwrite=True)
        assert read_steps(folder.metrics_path) == [100]
    RunFolder.create(folder.path, CONFIG, overwrite=True)
    with folder.held():
        assert not folder.metrics_path.exists()


def test_a_disk_that_knows_no_locks_refuses_nobody(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", fail)
    with folder.held(), folder.held():
        pass


def test_create_makes_a_run_that_open_reads(tmp_path: Path) -> None:
    created = RunFolder.create(tmp_path / "deep" / "run", CONFIG)
    opened, config = RunFolder.open(created.path)
    assert config == CONFIG
    assert opened.path == created.path
    assert opened.read_metrics() == []
    assert opened.latest_checkpoint() is None
    assert not opened.has_unfinished_line


def test_create_refuses_a_folder_that_holds_a_run_and_changes_nothing(folder: RunFolder) -> None:
    write_metrics(folder, 1, 2)
    before = contents(folder.path)
    message = refusal(RunFolderError, RunFolder.create, folder.path, OTHER)
    assert "--resume" in message
    assert "--overwrite" in message
    assert contents(folder.path) == before


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(folder: RunFolder) -> None:
    write_metrics(folder, 100, 200)
    folder.rewind_metrics(100)
    add(folder, 100)
    folder.write_summary({"seed": 0})
    for name in (
        "plot.png",
        "run.log",
        "preferences/part-00000.parquet",
        "segments/x",
        "tensorboard/x",
        "wandb/x",
        "mlflow/x",
        "explanations/reward-saliency/index.html",
        "stopped.json",
    ):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("old")
    (folder.path / ".summary.json.12345678.tmp").write_text("left by a killed run")
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "videos").mkdir()
    (folder.path / "videos" / "a.mp4").write_text("mine")
    RunFolder.create(folder.path, OTHER, overwrite=True)
    assert set(contents(folder.path)) == {".lock", "config.yaml", "notes.txt", "videos/a.mp4"}
    assert RunFolder.open(folder.path)[1] == OTHER


def test_overwrite_of_a_folder_without_a_run_is_a_plain_start(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path, CONFIG, overwrite=True)
    assert set(contents(tmp_path)) == {"config.yaml", "notes.txt"}


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/themis-run")):
        message = refusal(RunFolderError, RunFolder.create, path, CONFIG)
        assert f"{path} cannot be written" in message
        assert "--out" in message
    assert (tmp_path / "file").read_text() == "not a folder"


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert f"{path} holds no run" in refusal(RunFolderError, RunFolder.open, path)


def test_open_refuses_a_configuration_with_foreign_keys(folder: RunFolder) -> None:
    (folder.path / "config.yaml").write_text(dump_config(CONFIG) + "from_the_future: 1\n")
    assert "from_the_future" in refusal(ConfigError, RunFolder.open, folder.path)


def test_summary_is_strict_json(folder: RunFolder) -> None:
    folder.write_summary({"seed": 1, "nan": float("nan"), "versions": {"inf": float("inf"), "ray": "2"}})
    text = (folder.path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)
    assert summary == {"seed": 1, "nan": None, "versions": {"inf": None, "ray": "2"}}


# ---------------------------------------------------------------- metrics


def test_an_unfinished_last_line_is_no_line(folder: RunFolder) -> None:
    write_metrics(folder, 100, 200, tail='{"num_env_steps": 30')
    opened, _ = RunFolder.open(folder.path)
    assert opened.has_unfinished_line
    assert [row["num_env_steps"] for row in opened.read_metrics()] == [100, 200]


@pytest.mark.parametrize("broken", [b'{"num_env', b"\xff\xfe\x80", b"\x00\x00\x00", b"", b"7", b"[1, 2]"])
def test_a_broken_line_in_the_middle_is_refused_with_its_number(folder: RunFolder, broken: bytes) -> None:
    folder.metrics_path.write_bytes(b'{"num_env_steps": 1}\n' + broken + b'\n{"num_env_steps": 3}\n')
    before = contents(folder.path)
    message = refusal(RunFolderError, RunFolder.open, folder.path)
    assert f"{folder.metrics_path} line 2" in message
    assert contents(folder.path) == before


@pytest.mark.parametrize("tail", [b"\xff\xfe\x80", b"\x00\x00", b'{"num_env_steps": 3}'])
def test_any_unfinished_tail_can_be_read_past_and_rewound(folder: RunFolder, tail: bytes) -> None:
    folder.metrics_path.write_bytes(b'{"num_env_steps": 1}\n{"num_env_steps": 2}\n' + tail)
    opened, _ = RunFolder.open(folder.path)
    assert opened.has_unfinished_line
    opened.rewind_metrics(5)
    assert read_steps(folder.metrics_path) == [1, 2]
    assert not opened.has_unfinished_line


def test_rewind_keeps_superseded_lines(folder: RunFolder) -> None:
    write_metrics(folder, 100, 200, 300, tail='{"num_env')
    superseded = folder.path / "metrics.superseded.jsonl"
    folder.rewind_metrics(200)
    assert read_steps(folder.metrics_path) == [100, 200]
    assert superseded.read_text() == '{"num_env_steps": 300}\n{"num_env\n'
    with folder.metrics_path.open("a") as file:
        file.write('{"num_env_steps": 299}\n')
    folder.rewind_metrics(100)
    assert read_steps(folder.metrics_path) == [100]
    assert superseded.read_text().splitlines()[2:] == ['{"num_env_steps": 200}', '{"num_env_steps": 299}']


def test_rewind_to_before_the_first_line_and_to_after_the_last(folder: RunFolder) -> None:
    folder.rewind_metrics(0)  # no file yet
    write_metrics(folder, 100, 200)
    folder.rewind_metrics(200)
    assert not (folder.path / "metrics.superseded.jsonl").exists()
    folder.rewind_metrics(-1)
    assert folder.read_metrics() == []
    assert read_steps(folder.path / "metrics.superseded.jsonl") == [100, 200]


def test_lines_after_a_rewind_start_on_a_line_of_their_own(folder: RunFolder) -> None:
    write_metrics(folder, 100, tail='{"num_env')
    folder.rewind_metrics(100)
    logger = JsonLinesLogger(folder.metrics_path)
    logger.log({"num_env_steps": 200})
    logger.close(None)
    assert read_steps(folder.metrics_path) == [100, 200]


# ---------------------------------------------------------------- checkpoints


def test_only_the_newest_checkpoints_stay(folder: RunFolder) -> None:
    for num_env_steps in (50, 1_000, 200_000):
        add(folder, num_env_steps)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint_000001000", "checkpoint_000200000"]
    path, about = folder.latest_checkpoint() or pytest.fail("none")
    assert path.name == "checkpoint_000200000"
    assert about["num_env_steps"] == 200_000
    assert (path / "state.txt").read_text() == "weights"


def test_a_checkpoint_that_fails_half_way_is_none(folder: RunFolder) -> None:
    kept = add(folder, 100)
    with pytest.raises(OSError, match="disk full"):
        add(folder, 200, fails=True)
    assert folder.checkpoints() == [kept]
    add(folder, 300)
    assert sorted(path.name for path in folder.checkpoints_path.iterdir()) == [
        "checkpoint_000000100",
        "checkpoint_000000300",
    ]


def test_a_checkpoint_at_the_same_step_takes_the_place_of_the_old_one(folder: RunFolder) -> None:
    add(folder, 100, content="old")
    path = add(folder, 100, content="new")
    assert folder.checkpoints() == [path]
    assert (path / "state.txt").read_text() == "new"


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_of_its_step(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add(folder, 100, content="old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            add(folder, 100, content="new")
    assert (path / "state.txt").read_text() == "old"
    assert [found.name for found in folder.checkpoints_path.iterdir()] == [path.name]


def test_a_foreign_checkpoint_is_refused(folder: RunFolder) -> None:
    path = add(folder, 100)
    (path / "themis.json").write_text('{"format": 99, "num_env_steps": 100}')
    message = refusal(CheckpointError, folder.latest_checkpoint)
    assert "format 99" in message
    assert "format 1" in message


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"num_env_steps": 3}'])
def test_a_damaged_checkpoint_is_refused_and_stays(folder: RunFolder, text: str | None) -> None:
    add(folder, 100)
    path = add(folder, 200)
    if text is None:
        (path / "themis.json").unlink()
    else:
        (path / "themis.json").write_text(text)
    before = contents(folder.path)
    message = refusal(CheckpointError, folder.latest_checkpoint)
    assert str(path) in message
    assert f"Delete {path}" in message
    assert contents(folder.path) == before


# ---------------------------------------------------------------- loggers and the names of metrics


def test_metrics_jsonl_is_always_written_and_the_others_by_option(tmp_path: Path) -> None:
    def trackers(**tracking: bool) -> list[str]:
        config = ExperimentConfig(env={"id": "Pendulum-v1"}, tracking=tracking)
        folder = RunFolder.create(tmp_path / "-".join(["run", *tracking]), config)
        first, *others = make_loggers(folder, config)
        assert isinstance(first, JsonLinesLogger)
        for logger in (first, *others):
            logger.close(None)
        assert all(isinstance(logger, GuardedLogger) for logger in others)
        return [logger.name for logger in others if isinstance(logger, GuardedLogger)]

    assert trackers() == []
    assert trackers(tensorboard=True) == ["tensorboard"]
    assert trackers(wandb=True, mlflow=True) == ["wandb", "mlflow"]


def test_every_metric_is_documented_and_nothing_else() -> None:
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    table: list[str] = []
    for line in lines:  # the first table whose rows begin with a name
        match = re.match(r"\|\s*`(\w+)`\s*\|", line)
        if match:
            table.append(match[1])
        elif table and not line.startswith("|") and set(table) >= set(METRICS):
            break
    missing, unknown = set(METRICS) - set(table), set(table) - set(METRICS)
    assert not missing, f"docs/metrics.md has no row for {sorted(missing)}"
    assert not unknown, f"docs/metrics.md explains {sorted(unknown)}, which no run writes"
    assert len(table) == len(set(table))


def test_every_metric_has_one_sentence() -> None:
    for name, text in METRICS.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert text.endswith(".")


@pytest.fixture(scope="module")
def finished_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The smallest whole run, with every kind of tracking."""
    from themis_ray.experiment import run_experiment

    overrides = [
        "env.id=Pendulum-v1",
        "env.horizon=20",
        "num_env_steps=240",
        "feedback.budget=4",
        "feedback.session_size=2",
        "feedback.segment_length=5",
        "reward.hidden_sizes=[8]",
        "reward.num_epochs=2",
        "algorithm.hidden_sizes=[8]",
        "algorithm.batch_size=8",
        "exploration.num_seed_steps=40",
        "exploration.num_env_steps=40",
        "num_evaluation_episodes=2",
        "tracking.tensorboard=true",
        "tracking.wandb=true",
        "tracking.mlflow=true",
    ]
    config, spec = resolve(load_config(None, overrides))
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    assert ray.is_initialized()
    for _ in run_experiment(config, spec, folder):
        pass
    return folder


@pytest.mark.ray
def test_a_run_writes_exactly_the_documented_metrics(finished_run: RunFolder) -> None:
    rows = finished_run.read_metrics()
    assert rows
    for number, row in enumerate(rows, start=1):
        assert set(row) == set(METRICS)
        assert row["iteration"] == number
    assert [row["num_env_steps"] for row in rows] == sorted({row["num_env_steps"] for row in rows})
    assert {row["phase"] for row in rows} == {"seed", "exploration", "preference"}
    assert rows[-1]["queries_asked"] == 4
    assert rows[-1]["reward_version"] >= 1
    for name in ("fit_loss", "heldout_accuracy", "critic_loss", "policy_loss", "alpha", "predicted_return_mean"):
        assert rows[-1][name] is not None, name


@pytest.mark.ray
def test_a_run_folder_is_complete(finished_run: RunFolder) -> None:
    path = finished_run.path
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "plot.png", "run.log"):
        assert (path / name).is_file(), name
    assert (path / "plot.png").read_bytes().startswith(b"\x89PNG")
    for pattern in ("preferences/*.parquet", "segments/*.parquet", "checkpoints/checkpoint_*/themis.json"):
        assert list(path.glob(pattern)), pattern
    assert list(path.glob("tensorboard/events.out.tfevents.*"))
    assert list(path.glob("wandb/offline-run-*/run-*.wandb"))
    summary = json.loads((path / "summary.json").read_text())
    assert set(summary) >= {
        "env_id",
        "algorithm",
        "seed",
        "learn_reward",
        "num_env_steps",
        "true_return_mean",
        "true_return_std",
        "random_return_mean",
        "queries_asked",
        "num_preferences",
        "heldout_accuracy",
        "reward_correlation",
        "env_steps_per_s",
        "wall_s",
        "versions",
    }


@pytest.mark.ray
def test_preferences_are_read_by_any_program(finished_run: RunFolder) -> None:
    import pyarrow.dataset

    preferences = pyarrow.dataset.dataset(finished_run.path / "preferences").to_table().to_pylist()
    segments = pyarrow.dataset.dataset(finished_run.path / "segments").to_table(columns=["segment_id"])
    assert len(preferences) == 4
    assert {row["choice"] for row in preferences} <= {"left", "right", "equal", "skip"}
    ids = set(segments.column("segment_id").to_pylist())
    assert all(row["left_id"] in ids and row["right_id"] in ids for row in preferences)


@pytest.mark.ray
def test_trackers_get_what_a_run_leaves_behind(finished_run: RunFolder) -> None:
    path, rows = finished_run.path, finished_run.read_metrics()
    assert len(read_clip(path / "clips" / "trained-policy.webm")) == 20  # the episode's horizon
    predicted = json.loads((path / "predicted_left.json").read_text())
    assert all(0.0 < p < 1.0 for p in predicted.values())
    (record,) = [read_wandb(file) for file in path.glob("wandb/offline-run-*/run-*.wandb")]
    steps = [row["num_env_steps"] for row in rows]
    assert [row["num_env_steps"] for row in record.history] == steps
    assert {"plot", "clips/trained_policy", "tables/preferences"} <= set(record.history[-1])
    (table,) = path.glob("wandb/offline-run-*/files/media/table/**/*.table.json")
    content = json.loads(table.read_text())
    answers = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert {row["query_id"]: row["predicted_left"] for row in answers} == predicted
    assert {"clips/trained_policy", "plot"} <= set(read_events(path / "tensorboard").images)
    client = MlflowClient(f"sqlite:///{path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("themis").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "num_env_steps")] == steps
    assert "failed" not in (path / "run.log").read_text()
