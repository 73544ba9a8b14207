"""MLflow, by its client: a batch for each line of metrics, so that a distant server is asked once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from themis_ray.config import flatten
from themis_ray.tracking.artifacts import Artifacts
from themis_ray.tracking.description import RunDescription, without_password
from themis_ray.tracking.metrics import Row

__all__ = ["MlflowLogger"]

SQLITE = "sqlite:///"
# By default MLflow asks a server that is gone for minutes before it gives up, and the run would wait.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true"}
MAX_PARAMS_PER_BATCH, MAX_PARAM_LENGTH = 100, 6000


class MlflowLogger:
    """Logs to MLflow.

    Args:
        folder: Its run keeps its id below, in mlflow/, and with no address at all everything.
        about: What the run is called.
        tracking_uri: Where MLflow keeps runs. None: MLFLOW_TRACKING_URI, or a SQLite file below the folder.
        experiment: MLflow's; it is made if it is missing.

    Attributes:
        num_env_steps: Of the newest line that MLflow has.
        place: The address, without a password.
    """

    def __init__(self, folder: Path, about: RunDescription, tracking_uri: str | None, experiment: str) -> None:
        for name, value in (PATIENCE | QUIET).items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._own = folder.resolve() / "mlflow"
        self._own.mkdir(parents=True, exist_ok=True)
        own_uri = f"{SQLITE}{self._own / 'mlflow.db'}"
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own_uri
        self.place = without_password(self._uri)
        # An address may hold a password, which is not for the run folder.
        self._key = hashlib.sha256(f"{self._uri} {experiment}".encode()).hexdigest()[:16]
        with _alone(self._uri):
            self._client = MlflowClient(self._uri)
            self._experiment_id = self._find_experiment(experiment)
        self._run_id = self._start(about)
        self.num_env_steps = self._newest_step()

    def _find_experiment(self, name: str) -> str:
        """Return an experiment's id; a new one in SQLite keeps its files beside the database."""
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        files = None
        if self._uri.startswith(SQLITE):
            files = (Path(self._uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=files))

    def _start(self, about: RunDescription) -> str:
        """Return the id of the run; one that was begun here before goes on."""
        from mlflow.entities import LifecycleStage, Param, RunStatus
        from mlflow.exceptions import MlflowException

        path = self._own / "run_ids.json"
        run_ids: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        known: Mapping[str, str] = {}
        run_id = run_ids.get(self._key, "")
        if run_id:
            # One that was deleted there is gone, or still found and takes nothing more.
            try:
                found = self._client.get_run(run_id)
                is_there = found.info.lifecycle_stage == LifecycleStage.ACTIVE
            except MlflowException:
                is_there = False
            known = found.data.params if is_there else {}
            run_id = run_id if is_there else ""
        if run_id:
            self._client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            tags = {"group": about.group or "", "job_type": about.job_type, "tags": ", ".join(about.tags)}
            run = self._client.create_run(self._experiment_id, run_name=about.name, tags=tags)
            run_id = str(run.info.run_id)
            path.write_text(json.dumps(run_ids | {self._key: run_id}) + "\n")
        # MLflow takes a parameter once.
        params = [
            Param(key, _text(value)[:MAX_PARAM_LENGTH])
            for key, value in flatten(about.settings).items()
            if key not in known and value is not None
        ]
        for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS_PER_BATCH])
        return run_id

    def _newest_step(self) -> int:
        history = self._client.get_metric_history(self._run_id, "num_env_steps")
        return max((int(metric.step) for metric in history), default=-1)

    def log(self, row: Row) -> None:
        """Send the numbers of one line in one batch; a line that MLflow has already is left out."""
        step = int(row["num_env_steps"])
        if step > self.num_env_steps:
            self._send(row, step)
            self.num_env_steps = step

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now_ms, step) for key, value in values.items() if _is_number(value)]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def add(self, artifacts: Artifacts) -> None:
        """Send every file below a folder of its name, tables as CSV."""
        for key, files in {**artifacts.pictures, **artifacts.clips}.items():
            for file in files:
                self._client.log_artifact(self._run_id, str(file), key)
        for key, table in artifacts.tables.items():
            self._client.log_text(self._run_id, table.as_csv(), f"tables/{key}.csv")
        for key, page in artifacts.pages.items():
            self._client.log_artifact(self._run_id, str(page), key)
        for kind, files_of in artifacts.bundles.items():
            for name, file in files_of.items():
                inner = Path(name).parent.as_posix()
                self._client.log_artifact(self._run_id, str(file), kind if inner == "." else f"{kind}/{inner}")

    def close(self, summary: Row | None) -> None:
        """Send the final figures, and that the run is over."""
        if summary is not None:
            self._send({f"final/{key}": value for key, value in summary.items()}, max(0, self.num_env_steps))
        self._client.set_terminated(self._run_id, "FINISHED" if summary is not None else "FAILED")


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time make the tables of a new database or an experiment in it."""
    if not uri.startswith(SQLITE):
        yield
        return
    from filelock import FileLock

    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
