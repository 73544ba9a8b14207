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
from themis_ray.tracking import STOPPED_FILE, RunFolder

__all__ = ["LeftOutRun", "Run", "find_runs", "read_object"]

# Of trackers, which keep copies of a run's files in them; what a run keeps below itself is not looked at anyway.
SKIPPED_FOLDERS = frozenset({"wandb", "mlflow", "mlartifacts", "mlruns"})


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is over.

    Attributes:
        path: Its folder.
        place: The same for people: the URI, where it was read from a storage.
        settings: Every setting by its dotted key, as in config.yaml.
        teacher: Who answered; empty where nobody was asked.
        true_return: Mean true return of the final evaluation; NaN where it was ended before that.
        random_return: The same of random actions.
        queries_asked: Labels that it took.
        wall_s: Seconds of training.
        env_steps: Env steps of each line of metrics that knows a return, rising.
        returns: Mean true return of the newest training episodes at these lines.
        queries: Queries asked so far at these lines.
    """

    path: Path
    place: str
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
    def asks(self) -> bool:
        """Whether queries were put to a teacher: the true reward needs none, stored answers are there already."""
        return self.learns_reward and self.settings.get("feedback.dataset") is None

    @property
    def sampler(self) -> str:
        """Who chose the queries; empty where none were asked."""
        return str(self.settings.get("feedback.sampler", "")) if self.asks else ""


@dataclass(frozen=True)
class LeftOutRun:
    """A run folder that counts for nothing.

    Attributes:
        path: The folder.
        reason: Why.
        place: As that of a run.
        stopped: The run, where it was ended before its time by what it had reached: those like it are a selection.
    """

    path: Path
    reason: str
    place: str = ""
    stopped: Run | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", self.place or str(self.path))


class _StoppedError(RunFolderError):
    """A run that was ended before its time."""

    def __init__(self, run: Run, reason: str) -> None:
        super().__init__(reason)
        self.run = run


def find_runs(paths: Sequence[Path], places: Mapping[Path, str] | None = None) -> tuple[list[Run], list[LeftOutRun]]:
    """Return the finished runs at or below the folders, in the order of their paths, and those that cannot be used.

    Args:
        paths: Folders.
        places: Where a folder was read from, if that is not where it lies.

    Raises:
        RunFolderError: A folder does not exist, or there is no run below any of them.
    """
    names = {path: (places or {}).get(path, str(path)) for path in paths}
    found: dict[Path, tuple[Path, str]] = {}
    for path, name in names.items():
        if not path.is_dir():
            raise RunFolderError(f"{name} is no folder. Give run folders, or folders that hold some.")
        for folder in _run_folders(path):
            place = str(folder) if name == str(path) else f"{name}/{folder.relative_to(path).as_posix()}"
            found.setdefault(folder.resolve(), (folder, place.removesuffix("/.")))
    if not found:
        raise RunFolderError(
            f"{', '.join(names.values())} holds no run (no config.yaml at any depth). Give what themis train wrote to."
        )
    runs, left_out = [], []
    for folder, place in sorted(found.values()):
        try:
            runs.append(read_run(folder, place))
        except RunFolderError as error:
            stopped = error.run if isinstance(error, _StoppedError) else None
            left_out.append(LeftOutRun(folder, str(error), place, stopped))
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


def read_run(path: Path, place: str = "") -> Run:
    """Return one run.

    Raises:
        RunFolderError: It is not finished, or one of its files is broken; the message is the reason alone.
    """
    settings = _read_settings(path / "config.yaml")
    rows = _read_rows(path)
    is_over = (path / "summary.json").exists()
    summary = read_object(path / "summary.json") if is_over else {}
    known = [row for row in rows if _is_number(row.get("true_return_mean"))]
    run = Run(
        path=path,
        place=place or str(path),
        settings=settings,
        teacher=_teacher(settings, summary),
        true_return=_number(summary, "true_return_mean") if is_over else math.nan,
        random_return=_number(summary, "random_return_mean") if is_over else math.nan,
        queries_asked=int(_or_zero(summary.get("queries_asked"))),
        wall_s=float(_or_zero(summary.get("wall_s"))),
        env_steps=_column(known, "num_env_steps"),
        returns=_column(known, "true_return_mean"),
        queries=_column(known, "queries_asked"),
    )
    _refuse_unfinished(run, rows, summary, is_over=is_over)
    return run


def _refuse_unfinished(
    run: Run, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], *, is_over: bool
) -> None:
    """Refuse a run that still goes on, and one that was ended early: it says less than those that were let go on."""
    done = summary.get("num_env_steps") if is_over else rows[-1]["num_env_steps"] if rows else 0
    wanted = run.settings.get("num_env_steps")
    if is_over and (not _is_number(done) or not _is_number(wanted) or done >= wanted):  # type: ignore[operator]
        return
    steps = f"{done} of {wanted if wanted is not None else '?'} env steps"
    if is_over:
        raise _StoppedError(run, f"stopped early: {steps}")
    if (run.path / STOPPED_FILE).is_file():
        raise _StoppedError(run, f"stopped by {_stopped_by(run.path / STOPPED_FILE)}: {steps}")
    raise RunFolderError(f"not finished: {steps}")


def _stopped_by(file: Path) -> str:
    try:
        return str(read_object(file).get("by") or "a scheduler")
    except RunFolderError:
        return "a scheduler"


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        raise RunFolderError("config.yaml cannot be read") from None
    settings = flatten(values) if isinstance(values, dict) else {}
    missing = [key for key in ("env.id", "seed", "learn_reward") if settings.get(key) is None]
    if missing:
        raise RunFolderError(f"config.yaml lacks {', '.join(missing)}")
    for key, kind, what in (("seed", int, "whole number"), ("learn_reward", bool, "true or false")):
        if type(settings[key]) is not kind:
            raise RunFolderError(f"config.yaml has {key}={settings[key]}, which is no {what}")
    return settings


def read_object(file: Path) -> dict[str, Any]:
    """Return what a JSON file of a run holds.

    Raises:
        RunFolderError: It cannot be read, or is no object; the message is the reason alone.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise RunFolderError(f"{file.name} is broken")
    return content


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return RunFolder(path).read_metrics()
    except RunFolderError:
        raise RunFolderError("metrics.jsonl is broken") from None


def _teacher(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the name of the teacher as `TeacherConfig.teacher_name` gives it; a summary has it already."""
    if not settings["learn_reward"] or settings.get("feedback.dataset") is not None:
        return ""
    if summary.get("teacher"):
        return str(summary["teacher"])
    kind = settings.get("teacher.kind", "synthetic")
    if kind in ("human", "judge"):
        return f"{kind}:{settings.get('teacher.study' if kind == 'human' else 'teacher.model')}"
    return str(settings.get("teacher.function" if kind == "scripted" else "teacher.name") or "unknown")


def _number(summary: Mapping[str, Any], key: str) -> float:
    value = summary.get(key)
    if not _is_number(value):
        raise RunFolderError(f"summary.json has no number as {key}")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _or_zero(value: Any) -> float:
    return float(value) if _is_number(value) else 0.0


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([_or_zero(row.get(key)) for row in rows], np.float64)
