"""Run folders as rows: what was set, what came out, and how the return grew."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from themis_ray.config import flatten
from themis_ray.errors import RunFolderError
from themis_ray.tracking import RunFolder

__all__ = ["LeftOutRun", "Run", "find_runs"]

# What a run folder holds below itself is large and holds no other run.
SKIPPED_FOLDERS = frozenset({"checkpoints", "segments", "episodes", "preferences", "clips", "tensorboard", "wandb"})


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        path: Its folder.
        settings: Every setting by its dotted key, as in config.yaml.
        teacher: Who answered; empty where the learner was paid the true reward.
        true_return: Mean true return of the final evaluation.
        random_return: The same of random actions.
        queries_asked: Labels that it took.
        wall_s: Seconds of training.
        env_steps: Env steps of each line of metrics that knows a return, rising.
        returns: Mean true return of the newest training episodes at these lines.
        queries: Queries asked so far at these lines.
    """

    path: Path
    settings: Mapping[str, Any]
    teacher: str
    true_return: float
    random_return: float
    queries_asked: int
    wall_s: float
    env_steps: NDArray[np.float64]
    returns: NDArray[np.float64]
    queries: NDArray[np.float64]

    @property
    def learns_reward(self) -> bool:
        """Whether the learner was paid a predicted reward, or learned from answers alone."""
        return bool(self.settings["learn_reward"])

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.settings["seed"])

    @property
    def env_id(self) -> str:
        """The environment."""
        return str(self.settings["env.id"])

    @property
    def sampler(self) -> str:
        """Who chose the queries; empty where none were asked."""
        asks = self.learns_reward and self.settings.get("feedback.dataset") is None
        return str(self.settings.get("feedback.sampler", "")) if asks else ""


@dataclass(frozen=True)
class LeftOutRun:
    """A run folder that counts for nothing, and why."""

    path: Path
    reason: str


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOutRun]]:
    """Return the finished runs at or below the folders, in the order of their paths, and those that cannot be used.

    Raises:
        RunFolderError: A folder does not exist, or there is no run below any of them.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"{path} is no folder. Give run folders, or folders that hold some.")
        for folder in _run_folders(path):
            found.setdefault(folder.resolve(), folder)
    if not found:
        names = ", ".join(map(str, paths))
        raise RunFolderError(f"{names} holds no run (no config.yaml at any depth). Give what themis train wrote to.")
    runs, left_out = [], []
    for folder in sorted(found.values()):
        try:
            runs.append(read_run(folder))
        except RunFolderError as error:
            left_out.append(LeftOutRun(folder, str(error)))
    return runs, left_out


def _run_folders(top: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(top):
        folders[:] = sorted(folder for folder in folders if folder not in SKIPPED_FOLDERS and folder[0] != ".")
        if "config.yaml" in files and _looks_like_run(Path(name), files):
            folders.clear()
            yield Path(name)


def _looks_like_run(folder: Path, files: Sequence[str]) -> bool:
    """Return whether it is a run's config.yaml and not that of another program."""
    if "metrics.jsonl" in files or "summary.json" in files:
        return True
    try:
        return "\nlearn_reward:" in (folder / "config.yaml").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def read_run(path: Path) -> Run:
    """Return one run.

    Raises:
        RunFolderError: It is not finished, or one of its files is broken; the message is the reason alone.
    """
    settings = _read_settings(path / "config.yaml")
    summary = _read_summary(path, settings)
    _refuse_stopped(settings, summary)
    rows = _read_rows(path)
    known = [row for row in rows if _is_number(row.get("true_return_mean"))]
    return Run(
        path=path,
        settings=settings,
        teacher=_teacher(settings, summary),
        true_return=_number(summary, "true_return_mean"),
        random_return=_number(summary, "random_return_mean"),
        queries_asked=int(summary.get("queries_asked") or 0),
        wall_s=float(summary.get("wall_s") or 0.0),
        env_steps=_column(known, "num_env_steps"),
        returns=_column(known, "true_return_mean"),
        queries=_column(known, "queries_asked"),
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise RunFolderError("config.yaml cannot be read") from None
    settings = flatten(values) if isinstance(values, dict) else {}
    missing = [key for key in ("env.id", "seed", "learn_reward") if settings.get(key) is None]
    if missing:
        raise RunFolderError(f"config.yaml lacks {', '.join(missing)}")
    return settings


def _read_summary(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    file = path / "summary.json"
    if not file.exists():
        rows = _read_rows(path)
        done = rows[-1]["num_env_steps"] if rows else 0
        raise RunFolderError(f"not finished: {done} of {settings.get('num_env_steps', '?')} env steps")
    try:
        summary = json.loads(file.read_text())
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict):
        raise RunFolderError("summary.json is broken")
    return summary


def _refuse_stopped(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Refuse a run that a sweep has stopped early: it says less than those that were let go on."""
    done, wanted = summary.get("num_env_steps"), settings.get("num_env_steps")
    if _is_number(done) and _is_number(wanted) and done < wanted:  # type: ignore[operator]
        raise RunFolderError(f"stopped early: {done} of {wanted} env steps")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return RunFolder(path).read_metrics()
    except RunFolderError:
        raise RunFolderError("metrics.jsonl is broken") from None


def _teacher(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if not settings["learn_reward"]:
        return ""
    dataset = settings.get("feedback.dataset")
    if dataset is not None:
        return f"answers of {Path(str(dataset)).name}"
    return str(summary.get("teacher") or settings.get("teacher.name") or "unknown")


def _number(summary: Mapping[str, Any], key: str) -> float:
    value = summary.get(key)
    if not _is_number(value):
        raise RunFolderError(f"summary.json has no number as {key}")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([row.get(key) or 0.0 for row in rows], np.float64)
