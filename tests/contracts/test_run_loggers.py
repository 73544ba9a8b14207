"""What every run logger does, whatever it writes to."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from themis_ray.config import ExperimentConfig
from themis_ray.tracking import METRICS, JsonLinesLogger, RunLogger, TensorBoardLogger, WandbLogger

CONFIG = ExperimentConfig(env={"id": "Pendulum-v1"}, tracking={"wandb_project": "themis-tests"})
MakeLogger = Callable[[Path], RunLogger]
LOGGERS: dict[str, MakeLogger] = {
    "json": lambda folder: JsonLinesLogger(folder / "metrics.jsonl"),
    "tensorboard": lambda folder: TensorBoardLogger(folder / "tensorboard"),
    "wandb": lambda folder: WandbLogger(folder, CONFIG),
}


def make_row(num_env_steps: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(METRICS, 0.5)
    return {**row, "num_env_steps": num_env_steps, "iteration": num_env_steps, "phase": "preference", **values}


@pytest.fixture(params=LOGGERS)
def make_logger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeLogger:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return LOGGERS[request.param]


def written_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_finished_run_leaves_files_in_its_folder(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tmp_path)
    rows = [make_row(100), make_row(200, true_return_mean=math.nan, alpha=math.inf), make_row(300)]
    before = [dict(row) for row in rows]
    for row in rows:
        logger.log(row)
    logger.close({"env_id": "Pendulum-v1", "true_return_mean": -150.0, "heldout_accuracy": math.nan, "versions": {}})
    assert written_files(tmp_path)
    assert repr(rows) == repr(before)  # a logger changes nothing


def test_an_unfinished_run_can_be_gone_on_with(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tmp_path)
    logger.log(make_row(100))
    logger.close(None)
    kept = [path for path in written_files(tmp_path) if re.search(r"metrics\.jsonl$|events\.out|\.wandb$", path.name)]
    assert kept
    sizes = {path: path.stat().st_size for path in kept}
    again = make_logger(tmp_path)
    again.log(make_row(200))
    again.close({"env_id": "Pendulum-v1"})
    for path, size in sizes.items():
        assert path.stat().st_size >= size, f"{path} lost what it held"


def test_json_lines_are_whole_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
    for number in range(3):
        logger.log(make_row(number, alpha=math.nan, q_mean=-math.inf))
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.endswith("\n")
        rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        assert len(rows) == number + 1
        assert rows[-1] == make_row(number, alpha=None, q_mean=None)
    logger.close(None)


def test_tensorboard_holds_every_finite_number_against_env_steps(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    logger = TensorBoardLogger(tmp_path)
    logger.log(make_row(70, alpha=math.nan, true_return_mean=-3.0))
    logger.close(None)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, values = path.read_bytes(), {}
    while data:  # 8 bytes of length, 4 of checksum, the event, 4 of checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values.update({value.tag: (event.step, value.simple_value) for value in event.summary.value})
        data = data[16 + length :]
    assert values["true_return_mean"] == (70, -3.0)
    assert set(values) == set(METRICS) - {"phase", "alpha"}


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    logger = WandbLogger(tmp_path, CONFIG)
    logger.log(make_row(10))
    logger.close({"env_id": "Pendulum-v1"})
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))


def test_wandb_knows_a_resumed_run_as_the_same_run(tmp_path: Path) -> None:
    for num_env_steps in (100, 200):
        logger = WandbLogger(tmp_path, CONFIG)
        logger.log(make_row(num_env_steps))
        logger.close(None)
    assert len({path.stem for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}) == 1
