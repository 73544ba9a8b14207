"""The folder of a sweep: its settings, and a run folder for each trial."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from themis_ray.errors import RunFolderError
from themis_ray.sweeping.settings import SweepSettings, dump_sweep, load_sweep
from themis_ray.tracking import RunFolder

__all__ = ["Outcome", "SweepFolder"]

Status = Literal["finished", "stopped", "failed", "unfinished"]
SETTINGS_FILE, SUGGESTIONS_FILE = "sweep.yaml", "suggestions.jsonl"
STOPPED_FILE, ERROR_FILE = "stopped.json", "error.txt"


@dataclass(frozen=True)
class Outcome:
    """What is known of one trial from its run folder.

    Args:
        name: Of the trial.
        status: finished: it has a summary; stopped: a scheduler ended it; failed: its last start ended in an error.
        true_return: Of the final evaluation; of the last line of metrics where there was none; NaN without one.
        true_return_std: Over the episodes of the final evaluation; NaN without one.
        num_labels: Queries asked.
        num_env_steps: Env steps done.
        wall_s: Seconds of training.
        message: Last line of the error of a trial that failed.
    """

    name: str
    status: Status
    true_return: float = math.nan
    true_return_std: float = math.nan
    num_labels: int = 0
    num_env_steps: int = 0
    wall_s: float = 0.0
    message: str = ""


class SweepFolder:
    """Where a sweep is written: sweep.yaml, `NAME/` for each trial, .snapshots/, and .tune/ while it runs.

    Args:
        path: The folder; made by `create`, expected by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tune_path = path / ".tune"
        self.snapshots_path = path / ".snapshots"
        self.suggestions_path = path / SUGGESTIONS_FILE

    @classmethod
    def create(cls, path: Path, settings: SweepSettings) -> SweepFolder:
        """Make the folder and write sweep.yaml.

        Raises:
            RunFolderError: It holds something, or it cannot be written.
        """
        try:
            if path.exists() and any(path.iterdir()):
                raise RunFolderError(
                    f"{path} is not empty. Continue a sweep with --resume {path}, or give another --out."
                )
            path.mkdir(parents=True, exist_ok=True)
            (path / SETTINGS_FILE).write_text(dump_sweep(settings))
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written ({error.strerror}). Give an --out folder that you may write to."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[SweepFolder, SweepSettings]:
        """Return an existing sweep and its settings.

        Raises:
            RunFolderError: There is no sweep.
        """
        if not (path / SETTINGS_FILE).is_file():
            raise RunFolderError(f"{path} holds no sweep (no {SETTINGS_FILE}). Give the folder of a sweep.")
        return cls(path), load_sweep(path / SETTINGS_FILE)

    def is_over(self, name: str) -> bool:
        """Tell whether a trial needs no more: it finished, or a scheduler ended it."""
        return (self.path / name / "summary.json").is_file() or (self.path / name / STOPPED_FILE).is_file()

    def mark_stopped(self, name: str, by: str) -> None:
        """Note that a scheduler ended a trial, so that it is not run on when the sweep is resumed."""
        (self.path / name / STOPPED_FILE).write_text(json.dumps({"by": by}) + "\n")

    def outcome(self, name: str) -> Outcome:
        """Return what a trial reached."""
        path = self.path / name
        rows = RunFolder(path).read_metrics()
        last: dict[str, Any] = rows[-1] if rows else {}
        common: dict[str, Any] = {
            "num_labels": int(last.get("queries_asked") or 0),
            "num_env_steps": int(last.get("num_env_steps") or 0),
            "wall_s": float(last.get("wall_s") or 0.0),
        }
        if (path / "summary.json").is_file():
            summary = json.loads((path / "summary.json").read_text())
            mean, std = _number(summary["true_return_mean"]), _number(summary["true_return_std"])
            return Outcome(name, "finished", mean, std, **common)
        true_return = _number(last.get("true_return_mean"))
        if (path / STOPPED_FILE).is_file():
            return Outcome(name, "stopped", true_return, **common)
        error = path / ERROR_FILE
        if error.is_file():
            message = error.read_text().strip().splitlines()[-1]
            return Outcome(name, "failed", true_return, message=message, **common)
        return Outcome(name, "unfinished", true_return, **common)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
