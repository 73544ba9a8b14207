"""A tracker that fails ends no run: one warning, and metrics.jsonl goes on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tracked_folders import STEPS, make_config, make_row

from themis_ray.errors import ConfigError
from themis_ray.tracking import Artifacts, GuardedLogger, RunFolder, RunLogger, loggers, make_loggers


class FailingLogger:
    """Fails in one of its methods, as on a full disk."""

    def __init__(self, method: str) -> None:
        self.method, self.calls = method, [""][:0]

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            raise OSError(28, "No space left on device")

    def log(self, row: Any) -> None:
        self._do("log")

    def add(self, artifacts: Artifacts) -> None:
        self._do("add")

    def close(self, summary: Any) -> None:
        self._do("close" if summary is not None else "let go")


def run_with(logger: RunLogger) -> None:
    for step in STEPS:
        logger.log(make_row(step))
    logger.add(Artifacts())
    logger.close({})


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("log", ["log", "let go"]),
        ("add", ["log", "log", "log", "add", "close"]),
        ("close", ["log", "log", "log", "add", "close"]),
        ("none", ["log", "log", "log", "add", "close"]),
    ],
)
def test_the_first_failure_is_one_warning(
    method: str, calls: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingLogger(method)
    run_with(GuardedLogger("wandb", tmp_path / "run", lambda: failing))
    assert failing.calls == calls
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (method != "none")
    for text in warnings:
        assert "No space left" in text
        assert f"themis publish {tmp_path / 'run'} --to wandb" in text


def test_a_tracker_that_cannot_start_is_a_warning_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> RunLogger:
        raise ConnectionError("no route to https://me:secret@host/api")

    run_with(GuardedLogger("mlflow", tmp_path, make))
    assert "no route to https://host/api" in caplog.text


def test_a_mistake_in_the_settings_is_none(tmp_path: Path) -> None:
    def make() -> RunLogger:
        raise ConfigError("no such project")

    with pytest.raises(ConfigError):
        GuardedLogger("wandb", tmp_path, make)


def test_an_interruption_passes_through(tmp_path: Path) -> None:
    class Interrupted(FailingLogger):
        def log(self, row: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedLogger("wandb", tmp_path, lambda: Interrupted("none")).log(make_row(1))


def test_metrics_are_written_when_every_tracker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "make_tracker", lambda *_: FailingLogger("log"))
    config = make_config("tracking.wandb=true", "tracking.tensorboard=true", "tracking.mlflow=true")
    folder = RunFolder.create(tmp_path / "run", config)
    made = make_loggers(folder, config)
    for step in STEPS:
        for logger in made:
            logger.log(make_row(step))
    for logger in made:
        logger.close({})
    lines = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    assert [line["num_env_steps"] for line in lines] == list(STEPS)
    assert caplog.text.count("failed") == 3


def test_a_server_that_is_not_there_is_given_up_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config("tracking.mlflow=true", "tracking.mlflow_tracking_uri=http://127.0.0.1:9")
    folder = RunFolder.create(tmp_path / "run", config)
    made = make_loggers(folder, config)
    for logger in made:
        logger.log(make_row(10))
        logger.close({})
    assert len(folder.read_metrics()) == 1
    assert "tracking.mlflow failed" in caplog.text
