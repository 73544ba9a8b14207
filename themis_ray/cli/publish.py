"""`themis publish`: finished runs, sweeps and reports to a tracker."""

from __future__ import annotations

from pathlib import Path

import click

from themis_ray.cli.progress import late_progress
from themis_ray.config import TrackingSettings
from themis_ray.errors import ConfigError
from themis_ray.reporting.dashboard import save_workspace
from themis_ray.reporting.publishing import publish as publish_folders
from themis_ray.tracking import TRACKERS

__all__ = ["publish"]

PUBLISH_EXAMPLES = """
\b
Examples:
  themis publish runs/pendulum-v1-sac-oracle-s0
  themis publish runs/smoke --project smoke
  themis publish runs/smoke --to mlflow
  themis publish runs/smoke/report
  themis publish runs/smoke --dashboard
"""

MAX_LEFT_OUT = 5


@click.command(epilog=PUBLISH_EXAMPLES)
@click.argument("folders", nargs=-1, metavar="[DIR...]", type=click.Path(path_type=Path))
@click.option("--to", default="wandb", show_default=True, help=f"Where: {', '.join(TRACKERS)}.")
@click.option("--project", help="W&B project, or MLflow experiment. Default: what each run's settings say.")
@click.option("--dashboard", is_flag=True, help="Save the project's dashboard at W&B too; needs a key and a network.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def publish(folders: tuple[Path, ...], to: str, project: str | None, dashboard: bool, debug: bool) -> None:
    """Push finished runs, with plots, clips, explanations and preferences, and reports to a tracker.

    Each DIR is a run folder, that of a report, or holds some at any depth. A run that was tracked while it ran goes
    on under the same id and gets what is new, such as explanations.
    """
    del debug
    if not folders and not dashboard:
        raise ConfigError("no folder was given. Give run folders or folders that hold some, or --dashboard alone.")
    if dashboard and to != "wandb":
        raise ConfigError(f"--dashboard is W&B's, but --to {to} was given. Leave one of them out.")
    if folders:
        with late_progress(f"publish to {to}") as report:
            published, left_out = publish_folders(folders, to, project, report)
        for one in published:
            click.echo(f"{one.name}: {one.place}")
        for run in left_out[:MAX_LEFT_OUT]:
            click.echo(f"left out: {run.path}: {run.reason}")
        if len(left_out) > MAX_LEFT_OUT:
            click.echo(f"left out: {len(left_out) - MAX_LEFT_OUT} more")
        num_waiting = sum(one.is_offline for one in published)
        if num_waiting:
            where = " ".join(map(str, folders))
            click.echo(
                f"W&B is offline: {num_waiting} wait to be sent. Send them: "
                f"find {where} -type d -name 'offline-run-*' | xargs wandb sync"
            )
    if dashboard:
        click.echo(f"Dashboard: {save_workspace(project or TrackingSettings().wandb_project)}")
