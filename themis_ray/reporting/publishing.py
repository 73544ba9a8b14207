"""Finished run folders and reports pushed to a tracker, as if they had been tracked while they were made."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from themis_ray.config import TrackingSettings
from themis_ray.errors import ConfigError, RunFolderError, ThemisError, lookup
from themis_ray.reporting.folder import PAGE, report_files
from themis_ray.reporting.runs import LeftOutRun, find_runs, read_object
from themis_ray.tracking import (
    STOPPED_FILE,
    TRACKERS,
    Artifacts,
    RunDescription,
    RunFolder,
    Table,
    WandbLogger,
    check_tracking,
    describe_run,
    find_sweep,
    gather_artifacts,
    make_tracker,
)
from themis_ray.tracking.description import without_password

__all__ = ["Published", "find_published", "publish", "report_artifacts"]

MAX_REASON_LENGTH = 300


@dataclass(frozen=True)
class Published:
    """What was pushed.

    Attributes:
        path: A run folder, or the folder of a report.
        name: How the tracker calls it.
        place: Where it can be seen, or where it waits to be sent.
        num_lines: Lines of metrics that the tracker did not have yet.
        is_offline: Whether it waits to be sent.
    """

    path: Path
    name: str
    place: str
    num_lines: int
    is_offline: bool


@dataclass(frozen=True)
class _Parcel:
    """What is pushed of a folder."""

    about: RunDescription
    tracking: TrackingSettings
    rows: Sequence[dict[str, Any]]
    artifacts: Artifacts
    summary: dict[str, Any]


def find_published(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[LeftOutRun]]:
    """Return the run folders and the folders of reports at or below the paths, and the runs that are not over.

    Raises:
        RunFolderError: A path is no folder, or there is neither below any of them.
    """
    reports = [folder for path in paths for folder in (path, path / "report") if (folder / PAGE).is_file()]
    try:
        runs, left_out = find_runs(paths)
    except RunFolderError:
        if not reports or not all(path.is_dir() for path in paths):
            raise
        runs, left_out = [], []
    # One whose summary a report cannot use, or that a sweep stopped early, was a run nevertheless.
    over = [run.path for run in left_out if any((run.path / name).is_file() for name in ("summary.json", STOPPED_FILE))]
    folders = sorted([*(run.path for run in runs), *over])
    return folders, reports, [run for run in left_out if run.path not in over]


def publish(
    paths: Sequence[Path],
    to: str,
    project: str | None = None,
    report: Callable[[float], None] = lambda _: None,
) -> tuple[list[Published], list[LeftOutRun]]:
    """Push finished runs and reports, each under the id that its folder has in the tracker already, if any.

    Args:
        paths: Folders that hold some at any depth; a report is looked for in the folder itself and in report/.
        to: Key of `TRACKERS`.
        project: Of W&B, or the experiment of MLflow. None: what each run's settings say.
        report: Called with the share that is done.

    Returns:
        What was pushed, and the runs that were left out.

    Raises:
        UnknownNameError: There is no such tracker.
        RunFolderError: There is nothing to push.
        ConfigError: The tracker is not installed, or refuses.
    """
    lookup("tracker", to, TRACKERS)
    check_tracking(TrackingSettings(mlflow=to == "mlflow"))
    folders, reports, left_out = find_published(paths)
    published = []
    work = [(path, _pack_run) for path in folders] + [(path, _pack_report) for path in reports]
    for number, (path, pack) in enumerate(work):
        try:
            published.append(_push(path, to, _read(pack, path, to, project)))
        except ThemisError as error:
            left_out.append(LeftOutRun(path, str(error)))
        except Exception as error:
            raise ConfigError(
                f"{path} could not be pushed to {to} ({_reason(error)}). {len(published)} of {len(work)} were. Try "
                "again: what is there already is not sent twice."
            ) from error
        report((number + 1) / len(work))
    return published, left_out


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {without_password(' '.join(str(error).split()))[:MAX_REASON_LENGTH]}"


def _read(pack: Callable[[Path, str, str | None], _Parcel], path: Path, to: str, project: str | None) -> _Parcel:
    """Return what is pushed of a folder.

    Raises:
        RunFolderError: A file of it is broken, which is no reason to keep other folders back.
    """
    try:
        return pack(path, to, project)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(f"one of its files cannot be read ({_reason(error)})") from None


def _settings(tracking: TrackingSettings, to: str, project: str | None) -> TrackingSettings:
    update: dict[str, Any] = {}
    if project is not None:
        update |= {"wandb_project": project, "mlflow_experiment": project}
    if to == "mlflow" and tracking.mlflow_tracking_uri is None and "MLFLOW_TRACKING_URI" not in os.environ:
        # One place for all of them, where `mlflow ui` looks.
        update["mlflow_tracking_uri"] = f"sqlite:///{Path('mlflow.db').resolve()}"
    return tracking.model_copy(update=update)


def _pack_run(path: Path, to: str, project: str | None) -> _Parcel:
    folder, config = RunFolder.open(path)
    about = describe_run(path, config)
    if (path / STOPPED_FILE).is_file():
        about = replace(about, tags=(*about.tags, "stopped"))
    summary = read_object(path / "summary.json") if (path / "summary.json").is_file() else {}
    tracking = _settings(config.tracking, to, project)
    return _Parcel(about, tracking, folder.read_metrics(), gather_artifacts(path), summary)


def _pack_report(path: Path, to: str, project: str | None) -> _Parcel:
    top = path.resolve()
    top = top.parent if top.name == "report" else top
    sweep = top if find_sweep(top / "any") == top else None
    about = RunDescription(
        name=f"report {top.name}",
        group=None,
        job_type="report",
        tags=("report", *([sweep.name] if sweep else [])),
        settings={"report": top.name},
    )
    return _Parcel(about, _settings(TrackingSettings(), to, project), [], report_artifacts(path), {})


def _push(path: Path, to: str, parcel: _Parcel) -> Published:
    tracker = make_tracker(to, path, parcel.about, parcel.tracking)
    new = [row for row in parcel.rows if row["num_env_steps"] > tracker.num_env_steps]
    try:
        for row in new:
            tracker.log(row)
        tracker.add(parcel.artifacts)
    except BaseException:
        tracker.close(None)
        raise
    tracker.close(parcel.summary)
    is_offline = isinstance(tracker, WandbLogger) and tracker.is_offline
    return Published(path, parcel.about.name, tracker.place, len(new), is_offline)


# ---------------------------------------------------------------- reports


def report_artifacts(path: Path) -> Artifacts:
    """Return the page, pictures and tables that `themis report` wrote into a folder, and none of an earlier time."""
    files = report_files(path)
    pictures = [file for file in files if file.suffix == ".png"]
    tables = [file for file in files if file.suffix == ".csv"]
    return Artifacts(
        pictures={f"charts/{picture.stem}": [picture] for picture in pictures},
        tables={table.stem: _read_table(table) for table in tables},
        pages={"report": path / PAGE},
        bundles={"report": {file.name: file for file in files}},
    )


def _read_table(path: Path) -> Table:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = list(zip(*rows, strict=True)) if rows else []
    typed = [_typed(column) for column in columns]
    return Table(tuple(header), tuple(zip(*typed, strict=True)))


def _typed(column: Sequence[str]) -> list[Any]:
    """Return numbers where every cell that is not empty is one; empty cells are None."""
    try:
        return [float(cell) if cell else None for cell in column]
    except ValueError:
        return [cell or None for cell in column]
