"""The folder of one run."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from themis_ray.config import ExperimentConfig, dump_config, load_config
from themis_ray.errors import CheckpointError, RunFolderError
from themis_ray.files import drop_leftovers, whole, write_whole
from themis_ray.locks import held
from themis_ray.tracking.metrics import Row, finite, to_json

__all__ = ["FOLDERS", "PREDICTIONS_FILE", "TRACKER_FOLDERS", "RunFolder"]

# What the reward ensemble gave, at the end of a run with a tracker, for p(left preferred) of each query.
PREDICTIONS_FILE = "predicted_left.json"
# By whom a trial of a sweep was ended before its time.
STOPPED_FILE = "stopped.json"
# Hidden, so that it is part of nothing that is mirrored or shown.
LOCK_FILE = ".lock"
CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "metrics.superseded.jsonl",
    "summary.json",
    "plot.png",
    "run.log",
    "judge_answers.jsonl",
    "annotators.json",
    STOPPED_FILE,
    PREDICTIONS_FILE,
)
FOLDERS = (
    *("queries", "preferences", "withdrawals", "ratings", "step_feedback", "demonstrations"),
    *("segments", "episodes", "clips", "checkpoints"),
)
# What trackers keep in it; a run that starts from another one's data does not take these over.
TRACKER_FOLDERS = ("tensorboard", "wandb", "mlflow")
# What was found out about it afterwards, which says nothing of another run.
EXPLANATIONS_FOLDER = "explanations"
CLEARED_FOLDERS = (*FOLDERS, *TRACKER_FOLDERS, EXPLANATIONS_FOLDER)
CHECKPOINT_FORMAT = 1


class RunFolder:
    """The folder of one run: config.yaml, metrics.jsonl, preferences/, segments/, checkpoints/, summary, plot.

    Args:
        path: The folder; made by `create`, expected by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints_path = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, config: ExperimentConfig, *, overwrite: bool = False) -> RunFolder:
        """Make the folder and write config.yaml.

        Raises:
            RunFolderError: It holds a run already and `overwrite` is false or a process trains it, or it cannot be
                written.
        """
        folder = cls(path)
        try:
            found = [name for name in (*CONTENTS, *CLEARED_FOLDERS) if (path / name).exists()]
            if found and not overwrite:
                raise RunFolderError(
                    f"{path} holds a run ({found[0]}). Continue it with --resume {path}, replace it with --overwrite, "
                    "or give another --out."
                )
            with folder.held() if found else contextlib.nullcontext():
                folder._clear()
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "config.yaml", dump_config(config))
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written ({error.strerror}). Give an --out folder that you may write to."
            ) from None
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, ExperimentConfig]:
        """Return an existing run and its configuration.

        Raises:
            RunFolderError: There is no run, or a line of its metrics is broken in the middle of the file.
        """
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} holds no run (no config.yaml). Give the folder of a run, or start one.")
        folder = cls(path)
        folder.read_metrics()
        return folder, load_config(path / "config.yaml")

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes of this machine from training here, while the block runs.

        Raises:
            RunFolderError: One does so now.
        """
        return held(
            self.path / LOCK_FILE,
            RunFolderError(f"another themis train works in {self.path}. Wait for it or end it, then --resume."),
        )

    def _clear(self) -> None:
        """Delete what a run writes and nothing else."""
        for name in CONTENTS:
            (self.path / name).unlink(missing_ok=True)
            drop_leftovers(self.path / name)
        for name in CLEARED_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    # ---------------------------------------------------------------- metrics

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the complete lines of metrics.jsonl; an unfinished last line, left by a crash, is not one.

        Raises:
            RunFolderError: A line before the last is broken, or the file cannot be read.
        """
        if not self.metrics_path.exists():
            return []
        try:
            lines = self._metrics_text().split("\n")
        except OSError as error:
            raise RunFolderError(
                f"{self.metrics_path} cannot be read ({error.strerror}). Give a run whose files you may read."
            ) from None
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            row = _parse_row(line)
            if row is None:
                raise RunFolderError(
                    f"{self.metrics_path} line {number} is no line of metrics. Repair or delete it; checkpoints and "
                    "preferences are untouched."
                )
            rows.append(row)
        return rows

    def _metrics_text(self) -> str:
        """Return metrics.jsonl; bytes that are no text, left by a crash, survive being written back."""
        return self.metrics_path.read_text(encoding="utf-8", errors="surrogateescape")

    @property
    def has_unfinished_line(self) -> bool:
        """Whether metrics.jsonl ends in the middle of a line."""
        return (
            self.metrics_path.exists()
            and not self.metrics_path.read_bytes().endswith((b"\n",))
            and bool(self.metrics_path.stat().st_size)
        )

    def rewind_metrics(self, num_env_steps: int) -> None:
        """Keep the lines up to `num_env_steps`; move later and unfinished ones to metrics.superseded.jsonl."""
        if not self.metrics_path.exists():
            return
        kept: list[str] = []
        later: list[str] = []
        for line in self._metrics_text().splitlines(keepends=True):
            is_kept = line.endswith("\n") and json.loads(line)["num_env_steps"] <= num_env_steps
            (kept if is_kept else later).append(line)
        if later:
            superseded = self.path / "metrics.superseded.jsonl"
            with superseded.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(later if later[-1].endswith("\n") else [*later, "\n"])
            write_whole(self.metrics_path, "".join(kept).encode(errors="surrogateescape"))

    # ---------------------------------------------------------------- checkpoints

    def checkpoints(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return sorted(self.checkpoints_path.glob("checkpoint_*"))

    def latest_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest checkpoint and what its themis.json says; None when there is none yet.

        Raises:
            CheckpointError: It is damaged or of another format version.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        path = checkpoints[-1]
        advice = f"Delete {path} to resume from the one before."
        try:
            about = json.loads((path / "themis.json").read_text())
            version = about["format"]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{path} is no complete checkpoint (themis.json is missing or broken). {advice}"
            ) from None
        if version != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{path} has format {version}, this program reads format {CHECKPOINT_FORMAT}. Install the version "
                "that wrote it (config.yaml and summary.json name it), or start a new run."
            )
        return path, about

    def add_checkpoint(self, algorithm: Any, about: Row, num_kept: int) -> Path:
        """Save `algorithm` as a whole, and drop all but the newest `num_kept` and what killed runs left."""
        drop_leftovers(self.checkpoints_path / "checkpoint_*")
        path = self.checkpoints_path / f"checkpoint_{about['num_env_steps']:09d}"
        # A run that went back to an earlier one comes by the same step again.
        with whole(path, replaces_folder=True) as temporary:
            algorithm.save_to_path(str(temporary.resolve()))
            (temporary / "themis.json").write_text(to_json({"format": CHECKPOINT_FORMAT, **about}))
        for old in self.checkpoints()[:-num_kept]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def write_summary(self, summary: Row) -> None:
        """Write summary.json."""
        write_whole(self.path / "summary.json", json.dumps(finite(summary), indent=2) + "\n")


def _parse_row(line: str) -> dict[str, Any] | None:
    """Return one line of metrics.jsonl, None where it is broken."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "num_env_steps" in row else None
