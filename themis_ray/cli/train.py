"""`themis train` and `themis pretrain`: one run, and what many runs start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from themis_ray.cli.paths import free_path
from themis_ray.cli.progress import progress_bar
from themis_ray.config import ExperimentConfig, dump_config, load_config, resolve
from themis_ray.data import PreferenceDataset
from themis_ray.errors import ConfigError
from themis_ray.experiment import resolve_new, run_experiment, run_pretraining
from themis_ray.rllib import open_preferences
from themis_ray.snapshots import make_pretraining_config, prepare_snapshot_folder
from themis_ray.tracking import RunFolder

__all__ = ["pretrain", "train", "train_run"]

TRAIN_EXAMPLES = """
\b
Examples:
  themis train env.id=Pendulum-v1
  themis train env.id=CartPole-v1 feedback.budget=50 seed=3
  themis train env.id=HalfCheetah-v5 teacher.eps_mistake=0.1 num_env_steps=100000
  themis train env.id=LunarLander-v3 algorithm.name=dqn
  themis train env.id=Pendulum-v1 learn_reward=false --out runs/true-reward
  themis train tune_configs/pendulum.yaml feedback.sampler=entropy
  themis train --resume runs/pendulum-v1-sac-oracle-s0
"""

PRETRAIN_EXAMPLES = """
\b
Examples:
  themis pretrain env.id=Pendulum-v1 exploration.num_env_steps=2000 --out snapshots/pendulum
  themis train env.id=Pendulum-v1 --from snapshots/pendulum
  themis train env.id=Pendulum-v1 --from snapshots/pendulum seed=1 feedback.sampler=entropy
"""


@click.command(epilog=TRAIN_EXAMPLES)
@click.argument("settings", nargs=-1, metavar="[FILE.yaml] [key=value ...]")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/ENV-LEARNER-TEACHER-sSEED.")
@click.option("--resume", type=click.Path(path_type=Path), help="Continue the run in this folder.")
@click.option(
    "--from", "snapshot", type=click.Path(path_type=Path), help="Start from this snapshot of themis pretrain."
)
@click.option("--overwrite", is_flag=True, help="Replace the run that --out holds.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def train(
    settings: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    snapshot: Path | None,
    overwrite: bool,
    dry_run: bool,
    debug: bool,
) -> None:
    """Train an agent from preferences.

    Settings are a YAML file, key=value pairs with dotted keys, or both; only env.id is required.
    """
    del debug
    if resume is not None:
        if settings or out is not None or overwrite or snapshot is not None:
            raise ConfigError(
                f"--resume {resume} goes on with the run's own settings. Give nothing beside it, or start a new run."
            )
        folder, config = RunFolder.open(resume)
        config, spec = resolve(config)
        # Refuse damaged files at once; starting Ray takes seconds.
        folder.latest_checkpoint()
        PreferenceDataset(folder.path)
        if config.feedback.dataset is not None:
            open_preferences(config, spec)
        if dry_run:
            click.echo(dump_config(config), nl=False)
            return
    else:
        config = _load(settings)
        if snapshot is not None:
            config = config.model_copy(update={"snapshot": str(snapshot)})
        config, spec = resolve_new(config)
        if dry_run:
            click.echo(dump_config(config), nl=False)
            return
        folder = RunFolder.create(out or _free_folder(config), config, overwrite=overwrite)
    summary = train_run(config, spec, folder, is_resumed=resume is not None)
    print_summary(summary, folder)


@click.command(epilog=PRETRAIN_EXAMPLES)
@click.argument("settings", nargs=-1, metavar="[FILE.yaml] [key=value ...]")
@click.option("--out", type=click.Path(path_type=Path), help="Snapshot folder. Default: snapshots/ENV-LEARNER-sSEED.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def pretrain(settings: tuple[str, ...], out: Path | None, debug: bool) -> None:
    """Explore without a teacher, and save a snapshot that many runs can start from.

    Takes the settings of themis train; exploration decides how many env steps are taken.
    """
    del debug
    config = _load(settings)
    if config.snapshot is not None or config.algorithm.reference is not None:
        raise ConfigError("a snapshot starts from nothing. Leave out snapshot and algorithm.reference.")
    config, _ = resolve(make_pretraining_config(config))
    if not config.exploration.num_env_steps:
        raise ConfigError(
            f"exploration.num_env_steps is {config.exploration.num_env_steps}, so that there is nothing to pretrain. "
            "Give the env steps to explore, for example exploration.num_env_steps=2000."
        )
    base = Path("snapshots") / f"{_file_name(config.env.id)}-{config.algorithm.name}-s{config.seed}"
    path = out or free_path(base)
    prepare_snapshot_folder(path)
    num_env_steps = (config.exploration.num_seed_steps or 0) + config.exploration.num_env_steps
    done = 0
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task(config.env.id, total=num_env_steps, status="starting Ray")
        for done in run_pretraining(config, path):
            progress.update(task, completed=done, status="exploring")
    click.echo(f"Snapshot: {path} ({done} env steps). Use it: themis train env.id={config.env.id} --from {path}")


def _load(settings: tuple[str, ...]) -> ExperimentConfig:
    files = [setting for setting in settings if "=" not in setting]
    if len(files) > 1:
        raise ConfigError(f"two files were given, {files[0]} and {files[1]}. Give one file, then key=value pairs.")
    overrides = [setting for setting in settings if "=" in setting]
    return load_config(Path(files[0]) if files else None, overrides)


def _free_folder(config: ExperimentConfig) -> Path:
    """Return runs/NAME, or runs/NAME-2 and so on where that holds a run."""
    who = _file_name(config.teacher.teacher_name) if config.learn_reward else "true-reward"
    if config.feedback.dataset is not None:
        who = "stored"
    return free_path(Path("runs") / f"{_file_name(config.env.id)}-{config.algorithm.name}-{who}-s{config.seed}")


def _file_name(env_id: str) -> str:
    return env_id.replace("/", "-").replace(":", "-").lower()


def train_run(config: ExperimentConfig, spec: Any, folder: RunFolder, *, is_resumed: bool = False) -> Mapping[str, Any]:
    """Run the experiment under a progress bar and return its summary."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    console = Console(stderr=True)
    if folder.has_unfinished_line:
        console.print(f"{folder.metrics_path} ends in an unfinished line; it moves to metrics.superseded.jsonl.")
    summary: Mapping[str, Any] = {}
    with folder.held(), progress_bar(console) as progress:
        task = progress.add_task(config.env.id, total=config.num_env_steps, status="starting Ray")
        for iteration in run_experiment(config, spec, folder, is_resumed=is_resumed):
            row = iteration.metrics
            if row:
                is_over = row["num_env_steps"] >= config.num_env_steps
                status = "final evaluation" if is_over and iteration.summary is None else _status(row, config)
                progress.update(task, completed=row["num_env_steps"], status=status)
            if iteration.summary is not None:
                summary = iteration.summary
    return summary


def _status(row: Mapping[str, Any], config: ExperimentConfig) -> str:
    parts = [f"return {row['true_return_mean']:.1f}"]
    if config.has_reward_model:
        parts += [f"labels {row['queries_asked']}/{config.feedback.budget}", f"accuracy {row['heldout_accuracy']:.2f}"]
    return "  ".join(parts)


def print_summary(summary: Mapping[str, Any], folder: RunFolder) -> None:
    """Print what a run reached as a table, and where its files are."""
    table = Table(title=f"{summary['env_id']} · {summary['algorithm']} · seed {summary['seed']}", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    paid = "learned from preferences" if summary["learn_reward"] else "true reward"
    add: Callable[[str, str], None] = table.add_row
    add(
        f"true return, {paid}",
        f"{summary['true_return_mean']:.1f} ± {summary['true_return_std']:.1f}",
    )
    add("true return, random actions", f"{summary['random_return_mean']:.1f}")
    if summary["reference_return"] is not None:
        add(f"true return, reference ({summary['reference_source']})", f"{summary['reference_return']:.1f}")
    if summary["dataset"] is not None:
        add("labels used", f"{summary['num_preferences']} of {summary['dataset']}")
    elif summary["learn_reward"]:
        add("labels used", f"{summary['queries_asked']} of {summary['budget']}")
        add("reward accuracy on held-out pairs", f"{summary['heldout_accuracy']:.3f}")
        add("correlation of predicted with true reward", f"{summary['reward_correlation']:.3f}")
    add("env steps", f"{summary['num_env_steps']}")
    add("env steps per second", f"{summary['env_steps_per_s']:.0f}")
    Console().print(table)
    click.echo(f"Run folder: {folder.path}  (plot: {folder.path / 'plot.png'})")
