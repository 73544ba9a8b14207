"""What every run logger does, whatever it writes to."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from themis_ray.config import ExperimentConfig
from themis_ray.tracking import (
    METRICS,
    Artifacts,
    GuardedLogger,
    JsonLinesLogger,
    MlflowLogger,
    RunLogger,
    Table,
    TensorBoardLogger,
    WandbLogger,
    describe_run,
)

ABOUT = describe_run(Path("run"), ExperimentConfig(env={"id": "Pendulum-v1"}))
MakeLogger = Callable[[Path], RunLogger]
LOGGERS: dict[str, MakeLogger] = {
    "json": lambda folder: JsonLinesLogger(folder / "metrics.jsonl"),
    "tensorboard": lambda folder: TensorBoardLogger(folder / "tensorboard", ABOUT),
    "wandb": lambda folder: WandbLogger(folder, ABOUT, "themis-tests"),
    "mlflow": lambda folder: MlflowLogger(folder, ABOUT, None, "themis-tests"),
    "guarded": lambda folder: GuardedLogger(
        "tensorboard", folder, lambda: TensorBoardLogger(folder / "tensorboard", ABOUT)
    ),
}


def make_row(num_env_steps: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(METRICS, 0.5)
    return {**row, "num_env_steps": num_env_steps, "iteration": num_env_steps, "phase": "preference", **values}


@pytest.fixture(params=LOGGERS)
def make_logger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeLogger:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return LOGGERS[request.param]


def written_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_finished_run_leaves_files_in_its_folder(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tmp_path)
    rows = [make_row(100), make_row(200, true_return_mean=math.nan, alpha=math.inf), make_row(300)]
    before = [dict(row) for row in rows]
    for row in rows:
        logger.log(row)
    logger.add(Artifacts(tables={"preferences": Table(("choice", "seconds"), (("left", 1.5), ("skip", None)))}))
    logger.close({"env_id": "Pendulum-v1", "true_return_mean": -150.0, "heldout_accuracy": math.nan, "versions": {}})
    assert written_files(tmp_path)
    assert repr(rows) == repr(before)  # a logger changes nothing


def test_an_unfinished_run_can_be_gone_on_with(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tmp_path)
    logger.log(make_row(100))
    logger.close(None)
    kept = [
        path
        for path in written_files(tmp_path)
        if re.search(r"metrics\.jsonl$|events\.out|\.wandb$|mlflow\.db$", path.name)
    ]
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
