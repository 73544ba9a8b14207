"""The run folder, and where metrics go.

`METRICS` names every column of metrics.jsonl; docs/metrics.md explains each, and a test compares the two.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from themis_ray.config import ExperimentConfig, dump_config, load_config
from themis_ray.errors import CheckpointError, RunFolderError

__all__ = ["METRICS", "RunFolder", "RunLogger", "TensorBoardLogger", "WandbLogger", "make_loggers"]

Row = Mapping[str, Any]

METRICS: Mapping[str, str] = {
    "iteration": "Number of this line, from 1.",
    "num_env_steps": "Env steps done so far.",
    "phase": "What the learner was paid for: seed, exploration or preference.",
    "true_return_mean": "Mean true return of the newest training episodes.",
    "episode_length_mean": "Mean env steps of the same episodes.",
    "num_episodes": "Training episodes finished so far.",
    "predicted_return_mean": "Mean predicted return of the newest finished training episodes.",
    "queries_asked": "Questions asked so far; these count against the budget.",
    "num_preferences": "Queries answered left, right or equal so far.",
    "reward_version": "How often the reward ensemble was fitted.",
    "fit_loss": "Cross-entropy of the last pass of the newest fit.",
    "fit_accuracy": "Training accuracy, mean over members, of the last pass of the newest fit.",
    "fit_num_epochs": "Passes of the newest fit.",
    "fit_trusted_share": "Share of answers that the filter let the last pass learn as they are.",
    "fit_flipped_share": "Share of answers that the filter turned round in the last pass.",
    "fit_num_pseudo_labels": "Unanswered queries that the last pass learnt.",
    "fit_heldout_loss": "Cross-entropy of the preferences kept out of the newest fit.",
    "fit_heldout_pair_accuracy": "Accuracy on the preferences kept out, mean over members.",
    "heldout_accuracy": "Share of fresh pairs that the ensemble orders like the true reward.",
    "reward_correlation": "Pearson correlation of predicted and true reward on fresh segments.",
    "fresh_accuracy": "The same for pairs of the newest episodes, measured twenty times a run.",
    "policy_disagreement": "Mean disagreement of the members about these pairs.",
    "growth_ratio": "Growth of the predicted return over growth of the true one, each over its own spread.",
    "policy_loss": "The learner's newest policy loss.",
    "critic_loss": "The learner's newest value or critic loss.",
    "entropy": "The policy's newest entropy in nats.",
    "alpha": "sac: entropy temperature.",
    "q_mean": "sac, dqn: mean Q-value of the newest minibatch.",
    "kl_to_reference": "ppo, sac: mean KL divergence of the newest policy from the reference policy.",
    "cpl_loss": "cpl: contrastive loss of the newest minibatch, in the warm-up too.",
    "cpl_accuracy": "cpl: share of its pairs whose preferred segment is the likelier one.",
    "env_steps_per_s": "Env steps per second of wall-clock time since the last line.",
    "wall_s": "Seconds of training so far, over all starts of this run.",
}

CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "metrics.superseded.jsonl",
    "summary.json",
    "plot.png",
    "run.log",
    "judge_answers.jsonl",
    "annotators.json",
)
FOLDERS = (
    *("queries", "preferences", "withdrawals", "ratings", "step_feedback", "demonstrations"),
    *("segments", "episodes", "clips", "checkpoints", "tensorboard", "wandb"),
)
CHECKPOINT_FORMAT = 1


def to_json(value: Any) -> str:
    """Return one line of JSON in which numbers that are not finite are null."""
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
            RunFolderError: It holds a run already and `overwrite` is false, or it cannot be written.
        """
        folder = cls(path)
        try:
            found = [name for name in (*CONTENTS, *FOLDERS) if (path / name).exists()]
            if found and not overwrite:
                raise RunFolderError(
                    f"{path} holds a run ({found[0]}). Continue it with --resume {path}, replace it with --overwrite, "
                    "or give another --out."
                )
            folder._clear()
            path.mkdir(parents=True, exist_ok=True)
            _write_atomically(path / "config.yaml", dump_config(config))
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

    def _clear(self) -> None:
        """Delete what a run writes and nothing else."""
        for name in CONTENTS:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    # ---------------------------------------------------------------- metrics

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the complete lines of metrics.jsonl; an unfinished last line, left by a crash, is not one.

        Raises:
            RunFolderError: A line before the last is broken.
        """
        if not self.metrics_path.exists():
            return []
        lines = self._metrics_text().split("\n")
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
            _write_atomically(self.metrics_path, "".join(kept))

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
        """Save `algorithm` under a temporary name, move it into place, and drop all but the newest `num_kept`."""
        self.checkpoints_path.mkdir(exist_ok=True)
        for leftover in self.checkpoints_path.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        name = f"checkpoint_{about['num_env_steps']:09d}"
        temporary = self.checkpoints_path / f".tmp-{name}"
        algorithm.save_to_path(str(temporary.resolve()))
        (temporary / "themis.json").write_text(to_json({"format": CHECKPOINT_FORMAT, **about}))
        path = self.checkpoints_path / name
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        for old in self.checkpoints()[:-num_kept]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def write_summary(self, summary: Row) -> None:
        """Write summary.json."""
        _write_atomically(self.path / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")


def _parse_row(line: str) -> dict[str, Any] | None:
    """Return one line of metrics.jsonl, None where it is broken."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "num_env_steps" in row else None


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class RunLogger(Protocol):
    """Something that is told every line of metrics and the summary."""

    def log(self, row: Row) -> None:
        """Take one line of metrics; its keys are in `METRICS`."""
        ...

    def close(self, summary: Row | None) -> None:
        """Take the summary, or None when the run did not finish, and let go of everything."""
        ...


class JsonLinesLogger:
    """Appends each line to metrics.jsonl at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def log(self, row: Row) -> None:
        """Write one line and hand it to the operating system."""
        self._file.write(to_json(row) + "\n")
        self._file.flush()

    def close(self, summary: Row | None) -> None:
        """Close the file."""
        del summary
        self._file.close()


class TensorBoardLogger:
    """Writes event files into `folder`, against env steps."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, row: Row) -> None:
        """Write the numbers of one line."""
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, row["num_env_steps"])

    def close(self, summary: Row | None) -> None:
        """Close the files."""
        del summary
        self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases; offline, to be synced later, when there is no key.

    Args:
        folder: Where W&B keeps its files.
        config: The run's configuration, shown beside its metrics.
    """

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        import wandb

        has_key = bool(os.environ.get("WANDB_MODE") or wandb.api.api_key)
        self._run = wandb.init(
            dir=str(folder),
            project=config.tracking.wandb_project,
            group=config.tracking.wandb_group,
            name=folder.name,
            config=config.model_dump(mode="json"),
            mode=None if has_key else "offline",  # None: WANDB_MODE, or online.
            id=_wandb_id(folder),
            resume="allow",
            settings=wandb.Settings(silent=True),
        )

    def log(self, row: Row) -> None:
        """Log one line against env steps."""
        self._run.log(dict(row), step=row["num_env_steps"])

    def close(self, summary: Row | None) -> None:
        """Put the summary beside the run and finish it."""
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)


def _wandb_id(folder: Path) -> str:
    """Return the id under which W&B knows the run in `folder`, drawn at its first start: a resumed run is the same."""
    path = folder / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text()


def make_loggers(folder: RunFolder, config: ExperimentConfig) -> Sequence[RunLogger]:
    """Return metrics.jsonl's logger and those that the configuration asks for."""
    loggers: list[RunLogger] = [JsonLinesLogger(folder.metrics_path)]
    if config.tracking.tensorboard:
        loggers.append(TensorBoardLogger(folder.path / "tensorboard"))
    if config.tracking.wandb:
        loggers.append(WandbLogger(folder.path, config))
    return loggers
