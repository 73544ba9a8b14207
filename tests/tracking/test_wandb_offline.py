"""What W&B has of a run, read from the file that `wandb sync` sends."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from records import WandbRecord, read_wandb
from tracked_folders import STEPS, make_config, make_row, make_run

from themis_ray.tracking import WandbLogger, describe_run, gather_artifacts
from themis_ray.tracking.loggers import GuardedLogger
from themis_ray.tracking.wandb_logger import has_wandb_key

SUMMARY = {"true_return_mean": -150.0, "heldout_accuracy": math.nan, "versions": {"ray": "2"}}


def record_of(folder: Path, number: int = -1) -> WandbRecord:
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return read_wandb(files[number])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that was tracked from its first line to its end."""
    sweep = tmp_path_factory.mktemp("runs") / "smoke"
    path = make_run(sweep / "pendulum" / "mistake" / "s3", "seed=3")
    (sweep / "sweep.yaml").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_DATA_DIR", raising=False)
        logger = WandbLogger(path, describe_run(path, make_config("seed=3")), "themis-tests")
        for step in STEPS:
            logger.log(make_row(step, true_return_mean=-float(step), alpha=math.nan))
        logger.add(gather_artifacts(path))
        logger.close(SUMMARY)
    assert Path(logger.place).name.startswith("offline-run-")
    return path


def test_a_run_is_found_by_project_group_kind_and_tags(tracked: Path) -> None:
    run = record_of(tracked).run
    assert (run.project, run.run_group, run.job_type) == ("themis-tests", "pendulum/mistake", "train")
    assert run.display_name == "pendulum/mistake/s3"
    assert list(run.tags) == ["Pendulum-v1", "auto", "mistake", "disagreement", "smoke"]


def test_settings_are_nested(tracked: Path) -> None:
    config = record_of(tracked).config
    assert config["env"]["id"] == "Pendulum-v1"
    assert config["seed"] == 3
    assert config["method"] == {"teacher": "mistake", "sampler": "disagreement"}


def test_lines_are_against_env_steps(tracked: Path) -> None:
    record = record_of(tracked)
    assert [row["num_env_steps"] for row in record.history] == list(STEPS)
    assert [row["true_return_mean"] for row in record.history] == [-100.0, -200.0, -300.0]
    assert all("alpha" not in row for row in record.history)  # no value, no point
    assert record.metrics["*"].step_metric == "num_env_steps"
    assert record.metrics["true_return_mean"].summary.max


def test_the_summary_has_the_best_line_and_the_final_policy(tracked: Path) -> None:
    record = record_of(tracked)
    assert record.summary["true_return_mean"] == {"max": -100.0, "last": -300.0}
    assert record.summary["final/true_return_mean"] == -150.0
    assert record.summary["final/heldout_accuracy"] is None
    assert record.exit_code == 0


def test_pictures_clips_tables_and_files_are_there(tracked: Path) -> None:
    record = record_of(tracked)
    shown = record.history[-1]
    assert shown["plot"]["count"] == 1
    assert {"clips/trained_policy", "explanations/reward-saliency", "explanations/reward-saliency-page"} <= set(shown)
    (files,) = tracked.glob("wandb/offline-run-*/files")
    assert {path.suffix for path in (files / "media").rglob("*") if path.is_file()} >= {".png", ".webm", ".json"}
    for name in record.files:
        assert (files / name).is_file(), name
    (table,) = (files / "media" / "table").rglob("*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][4] == "choice"
    assert [row[4] for row in content["data"]] == ["left", "right", "equal", "skip"]
    assert set(record.artifacts) == {"run", "preferences", "explanations", "run_table"}
    assert set(record.artifacts["preferences"]) == {"preferences/part-00000.parquet"}


def test_what_waits_to_be_sent_lies_in_the_run_folder(tracked: Path) -> None:
    for files in record_of(tracked).artifacts.values():
        for path in files.values():
            assert path.is_relative_to(tracked)
            assert path.is_file()


def test_wandb_sync_finds_it(tracked: Path) -> None:
    (folder,) = tracked.glob("wandb/offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert folder.name in done.stdout + done.stderr


def test_a_resumed_run_is_the_same_run_and_sends_no_line_twice(tmp_path: Path) -> None:
    about = describe_run(tmp_path, make_config())
    for steps in ((100, 200), (200, 300)):
        logger = WandbLogger(tmp_path, about, "p")
        for step in steps:
            logger.log(make_row(step))
        logger.close(None)
    first, second = record_of(tmp_path, 0), record_of(tmp_path, 1)
    assert first.run.run_id == second.run.run_id
    assert [row["num_env_steps"] for row in first.history] == [100, 200]
    assert [row["num_env_steps"] for row in second.history] == [300]
    assert first.exit_code == 1


def test_a_key_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    settings = SimpleNamespace(api_key=None, identity_token_file=None, base_url="https://api.example.com")
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine other.example.com login user password secret\n")
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.example.com login user password secret\n")
    assert has_wandb_key()
    (tmp_path / "netrc").unlink()
    settings.api_key = "secret"
    assert has_wandb_key()


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    logger = WandbLogger(tmp_path, describe_run(tmp_path, make_config()), "p")
    logger.log(make_row(10))
    logger.close({"env_id": "Pendulum-v1"})
    assert logger.is_offline
    assert [row["num_env_steps"] for row in record_of(tmp_path).history] == [10]


def test_a_service_that_dies_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    about = describe_run(tmp_path, make_config())
    inner: list[WandbLogger] = []

    def make() -> WandbLogger:
        inner.append(WandbLogger(tmp_path, about, "p"))
        return inner[0]

    logger = GuardedLogger("wandb", tmp_path, make)
    inner[0]._run.finish()  # from now on W&B refuses every line
    for step in STEPS:
        logger.log(make_row(step))
    logger.close({})
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "tracking.wandb failed" in message
    assert "themis publish" in message
