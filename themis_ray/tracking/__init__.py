"""The run folder, the names of metrics, and where they go."""

from themis_ray.tracking.artifacts import Artifacts, Table, gather_artifacts, write_predictions
from themis_ray.tracking.description import RunDescription, describe_run, find_sweep
from themis_ray.tracking.folder import FOLDERS, STOPPED_FILE, RunFolder
from themis_ray.tracking.loggers import (
    TRACKERS,
    GuardedLogger,
    JsonLinesLogger,
    RunLogger,
    Tracker,
    check_tracking,
    make_loggers,
    make_tracker,
)
from themis_ray.tracking.metrics import METRICS
from themis_ray.tracking.mlflow_logger import MlflowLogger
from themis_ray.tracking.recording import record_policy
from themis_ray.tracking.tensorboard_logger import TensorBoardLogger
from themis_ray.tracking.wandb_logger import WandbLogger

__all__ = [
    "FOLDERS",
    "METRICS",
    "STOPPED_FILE",
    "TRACKERS",
    "Artifacts",
    "GuardedLogger",
    "JsonLinesLogger",
    "MlflowLogger",
    "RunDescription",
    "RunFolder",
    "RunLogger",
    "Table",
    "TensorBoardLogger",
    "Tracker",
    "WandbLogger",
    "check_tracking",
    "describe_run",
    "find_sweep",
    "gather_artifacts",
    "make_loggers",
    "make_tracker",
    "record_policy",
    "write_predictions",
]
