"""Where metrics go: metrics.jsonl always, and the trackers that the configuration asks for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from themis_ray.config import ExperimentConfig, TrackingSettings
from themis_ray.errors import ConfigError, ThemisError
from themis_ray.tracking.artifacts import Artifacts
from themis_ray.tracking.description import RunDescription, describe_run, without_password
from themis_ray.tracking.folder import RunFolder
from themis_ray.tracking.metrics import Row, to_json
from themis_ray.tracking.mlflow_logger import MlflowLogger
from themis_ray.tracking.tensorboard_logger import TensorBoardLogger
from themis_ray.tracking.wandb_logger import WandbLogger

__all__ = [
    "TRACKERS",
    "GuardedLogger",
    "JsonLinesLogger",
    "RunLogger",
    "Tracker",
    "check_tracking",
    "make_loggers",
    "make_tracker",
]

logger = logging.getLogger("themis_ray")

MAX_REASON_LENGTH = 300
# What `themis publish --to` takes; also the names of the settings and of the folders below a run's.
TRACKERS = {
    "wandb": "Weights & Biases, online with a key, else into the folder for `wandb sync`",
    "mlflow": "MLflow, at MLFLOW_TRACKING_URI or tracking.mlflow_tracking_uri, else into the folder",
    "tensorboard": "event files in the folder",
}


class RunLogger(Protocol):
    """Something that is told every line of metrics, what a run leaves behind, and the summary."""

    def log(self, row: Row) -> None:
        """Take one line of metrics; its keys are in `METRICS`."""
        ...

    def add(self, artifacts: Artifacts) -> None:
        """Take what a run leaves behind beside numbers."""
        ...

    def close(self, summary: Row | None) -> None:
        """Take the summary, or None when the run did not finish, and let go of everything."""
        ...


class Tracker(RunLogger, Protocol):
    """A logger whose record outlives the process.

    Attributes:
        num_env_steps: Of the newest line that the record holds; -1 while it holds none.
        place: Where the record is, for people.
    """

    num_env_steps: int
    place: str


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

    def add(self, artifacts: Artifacts) -> None:
        """Take nothing: all of it is in the run folder already."""

    def close(self, summary: Row | None) -> None:
        """Close the file."""
        del summary
        self._file.close()


class GuardedLogger:
    """A tracker whose failures end no run: the first one is a warning, and no line is sent after it.

    Args:
        name: Key of `TRACKERS`.
        folder: Of the run, for the warning.
        make: Returns the tracker.

    Raises:
        ThemisError: From `make`: a mistake in the settings is no failure.
    """

    def __init__(self, name: str, folder: Path, make: Callable[[], RunLogger]) -> None:
        self.name = name
        self._folder = folder
        self._tracker: RunLogger | None = None
        try:
            self._tracker = make()
        except ThemisError:
            raise
        except Exception as error:  # Whatever a client throws: its network, its disk, its service.
            self._warn(error)

    def log(self, row: Row) -> None:
        """Pass a line on."""
        if self._tracker is None:
            return
        try:
            self._tracker.log(row)
        except Exception as error:
            self._warn(error)
            failed, self._tracker = self._tracker, None
            _let_go(failed)

    def add(self, artifacts: Artifacts) -> None:
        """Pass on what a run leaves behind."""
        if self._tracker is None:
            return
        try:
            self._tracker.add(artifacts)
        except Exception as error:
            # The summary may still get through.
            self._warn(error)

    def close(self, summary: Row | None) -> None:
        """Pass the end on."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return
        try:
            tracker.close(summary)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "tracking.%s failed (%s: %s); the run goes on, and its folder has everything. Later: themis publish %s "
            "--to %s",
            self.name,
            type(error).__name__,
            without_password(" ".join(str(error).split()))[:MAX_REASON_LENGTH],
            self._folder,
            self.name,
        )


def _let_go(tracker: RunLogger) -> None:
    """Close a tracker that has failed, as far as it still can be."""
    try:
        tracker.close(None)
    except Exception as error:
        logger.debug("closing a tracker that had failed: %s", error)


def check_tracking(tracking: TrackingSettings) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ConfigError: It is not installed.
    """
    if tracking.mlflow and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "tracking.mlflow=true needs MLflow, which is not installed. Run: pip install 'themis-ray[mlflow]'"
        )


def make_tracker(name: str, folder: Path, about: RunDescription, tracking: TrackingSettings) -> Tracker:
    """Return one tracker.

    Args:
        name: Key of `TRACKERS`.
        folder: Whose record it is; the tracker keeps its own files below it.
        about: How it is called.
        tracking: Project, experiment and address.
    """
    if name == "wandb":
        return WandbLogger(folder, about, tracking.wandb_project)
    if name == "mlflow":
        return MlflowLogger(folder, about, tracking.mlflow_tracking_uri, tracking.mlflow_experiment)
    assert name == "tensorboard", name
    return TensorBoardLogger(folder / "tensorboard", about)


def make_loggers(folder: RunFolder, config: ExperimentConfig) -> Sequence[RunLogger]:
    """Return metrics.jsonl's logger and those that the configuration asks for.

    Raises:
        ConfigError: One is asked for whose package is missing.
    """
    check_tracking(config.tracking)
    loggers: list[RunLogger] = [JsonLinesLogger(folder.metrics_path)]
    about = describe_run(folder.path, config)
    for name in config.tracking.trackers:

        def make(name: str = name) -> RunLogger:
            return make_tracker(name, folder.path, about, config.tracking)

        loggers.append(GuardedLogger(name, folder.path, make))
    return loggers
