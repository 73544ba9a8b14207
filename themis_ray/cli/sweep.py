"""`themis sweep`: many experiments from one file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from themis_ray.cli.paths import free_path
from themis_ray.cli.progress import progress_bar
from themis_ray.errors import ConfigError
from themis_ray.experiment import quieten
from themis_ray.storage import is_uri
from themis_ray.sweeping import (
    Outcome,
    Progress,
    SweepFolder,
    SweepSettings,
    Trial,
    estimate,
    examples,
    expand,
    load_sweep,
    run_sweep,
    share_exploration,
)

__all__ = ["sweep"]

SWEEP_EXAMPLES = """
\b
Examples:
  themis sweep tune_configs/smoke.yaml
  themis sweep tune_configs/teachers_x_samplers.yaml --dry-run
  themis sweep tune_configs/label_budget.yaml env.id=Reacher-v5 seeds=[0,1,2] --max-concurrent 4
  themis sweep --resume runs/smoke
  themis sweep tune_configs/smoke.yaml --storage s3://my-bucket/sweeps
"""


@click.command(epilog=SWEEP_EXAMPLES)
@click.argument("settings", nargs=-1, metavar="[FILE.yaml] [key=value ...]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the sweep. Default: runs/FILE.")
@click.option("--resume", metavar="DIR|URI", help="Go on with the sweep in this folder, or in this storage.")
@click.option("--storage", metavar="URI", help="Keep run folders in s3://, gs:// or file://, for many machines.")
@click.option("--max-concurrent", type=click.IntRange(min=1), help="Most trials at a time. Default: as there is room.")
@click.option("--dry-run", is_flag=True, help="Print the trials, what they reserve and an estimate of time, and stop.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def sweep(
    settings: tuple[str, ...],
    out: Path | None,
    resume: str | None,
    storage: str | None,
    max_concurrent: int | None,
    dry_run: bool,
    debug: bool,
) -> None:
    """Run every experiment of a sweep side by side; each is what themis train runs.

    Settings are a sweep's YAML file and key=value pairs: of the sweep, such as seeds=[0,1], or of its base experiment.
    """
    del debug
    if resume is not None:
        if settings or storage is not None or (out is not None and not is_uri(resume)):
            raise ConfigError(
                f"--resume {resume} goes on with the sweep's own settings. Give nothing beside it, or start another."
            )
        folder, sweep_settings = SweepFolder.open(resume, out)
        path = folder.path
    else:
        sweep_settings, default = _load(settings)
        path = out or free_path(default)
        if storage is not None:
            sweep_settings = SweepSettings.model_validate({**sweep_settings.model_dump(), "storage_path": storage})
    if max_concurrent is not None:
        sweep_settings = sweep_settings.model_copy(update={"max_concurrent": max_concurrent})
    quieten()
    trials = examples(sweep_settings) if sweep_settings.search == "optuna" else expand(sweep_settings)
    if dry_run:
        waiting = [trial for trial in trials if resume is None or not folder.is_over(trial.name)]
        print_plan(waiting, sweep_settings, path, num_over=len(trials) - len(waiting))
        return
    if resume is None:
        folder = SweepFolder.create(path, sweep_settings)
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        task = progress.add_task(escape(path.name), total=1.0, status="starting Ray")

        def report(event: Progress) -> None:
            progress.update(task, completed=event.share, status=_status(event))

        try:
            outcomes = run_sweep(sweep_settings, folder, trials, report)
        except ConfigError:
            if resume is None:
                folder.discard()
            raise
    print_outcomes(outcomes, path)
    unfinished = [outcome for outcome in outcomes if outcome.status in ("failed", "unfinished")]
    if unfinished:
        click.echo(
            f"{len(unfinished)} of {len(outcomes)} trials did not finish. Go on: themis sweep --resume {path}",
            err=True,
        )
        click.get_current_context().exit(1)


def _load(settings: tuple[str, ...]) -> tuple[SweepSettings, Path]:
    files = [setting for setting in settings if "=" not in setting]
    if len(files) != 1:
        given = f"{len(files)} files were given" if files else "no file was given"
        raise ConfigError(f"{given}. Give one sweep, for example tune_configs/smoke.yaml, then key=value pairs.")
    path = Path(files[0])
    return load_sweep(path, [setting for setting in settings if "=" in setting]), Path("runs") / path.stem


def _status(event: Progress) -> str:
    parts = [f"{event.num_over}/{event.num_trials} done", f"{event.num_running} {event.what}", event.name]
    return "  ".join(parts + ([] if math.isnan(event.metric) else [f"{event.metric:.1f}"]))


def print_plan(trials: Sequence[Trial], settings: SweepSettings, path: Path, num_over: int = 0) -> None:
    """Print every trial with what it takes, and how long all of it is likely to; `num_over` more need nothing."""
    if not trials:
        click.echo(f"All {num_over} trials in {path} are over. Nothing was started.")
        return
    num_cpus = float(os.cpu_count() or 1)
    plan = estimate(trials, num_cpus, settings.max_concurrent, Path("runs") if Path("runs").is_dir() else None)
    if settings.search == "optuna":
        click.echo("Optuna chooses as results come in; these are examples of what it may choose.")
    width = max(len("trial"), *(len(trial.name) for trial in trials))
    click.echo(f"{'trial':{width}}  {'env steps':>10}  {'labels':>6}  {'CPUs':>5}  {'GPUs':>5}  {'time':>8}")
    for trial, seconds in zip(trials, plan.trial_s, strict=True):
        budget = trial.config.feedback.budget if trial.config.learn_reward else 0
        click.echo(
            f"{trial.name:{width}}  {trial.config.num_env_steps:>10}  {budget:>6}  {trial.num_cpus:>5g}  "
            f"{trial.num_gpus:>5g}  {duration(seconds):>8}"
        )
    shared = share_exploration(trials, path) if settings.share_pretrain else []
    if shared:
        num_sharing = sum(len(one.names) for one in shared)
        click.echo(f"Unsupervised exploration is done {len(shared)} times, for {num_sharing} trials.")
    room = {"CPU": num_cpus, "GPU": float(torch.cuda.device_count())}
    too_wide = [trial for trial in trials if any(n > room.get(kind, 0.0) for kind, n in trial.reserved.items())]
    if too_wide and not os.environ.get("RAY_ADDRESS"):
        needed = ", ".join(f"{num:g} {kind}" for kind, num in too_wide[0].reserved.items())
        click.echo(
            f"{len(too_wide)} of these trials do not fit this machine ({num_cpus:g} CPU, {room['GPU']:g} GPU): "
            f"{too_wide[0].name} reserves {needed}. They need a cluster, which RAY_ADDRESS names."
        )
    over = f" ({num_over} more are over)" if num_over else ""
    click.echo(
        f"{len(trials)} trials{over} into {path}, {plan.num_at_once} at a time on {num_cpus:g} CPUs: about "
        f"{duration(plan.total_s)}. Nothing was started."
    )


def print_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Print what every trial reached as a table."""
    finite = [outcome.true_return for outcome in outcomes if math.isfinite(outcome.true_return)]
    best = max(finite, default=math.nan)
    table = Table(title=f"{escape(path.name)} · {len(outcomes)} trials", title_justify="left")
    table.add_column("trial", overflow="fold")
    for heading in ("true return", "labels", "env steps", "time"):
        table.add_column(heading, justify="right")
    notes = [_note(outcome) for outcome in outcomes]
    if any(notes):
        table.add_column("", overflow="fold")
    for outcome, note in zip(outcomes, notes, strict=True):
        spread = "" if math.isnan(outcome.true_return_std) else f" ± {outcome.true_return_std:.1f}"
        shown = "-" if math.isnan(outcome.true_return) else f"{outcome.true_return:.1f}{spread}"
        is_best = outcome.true_return == best
        cells = [
            outcome.name,
            f"[bold]{shown}[/bold]" if is_best else shown,
            str(outcome.num_labels),
            str(outcome.num_env_steps),
            duration(outcome.wall_s),
        ]
        table.add_row(*cells, *([escape(note)] if any(notes) else []))
    Console().print(table)
    click.echo(f"Sweep: {path}")


def _note(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"failed: {outcome.message}"
    return "" if outcome.status == "finished" else outcome.status


def duration(seconds: float) -> str:
    """Return seconds as people read them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
