"""The `themis` command."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from themis_ray.cli.annotate import annotate
from themis_ray.cli.clips import clip
from themis_ray.cli.environments import envs
from themis_ray.cli.explain import explain
from themis_ray.cli.paths import free_path
from themis_ray.cli.progress import late_progress, progress_bar
from themis_ray.cli.publish import publish
from themis_ray.cli.report import report
from themis_ray.cli.serve import serve
from themis_ray.cli.studies import simulate_annotators, study
from themis_ray.cli.sweep import sweep
from themis_ray.config import PRESET_DESCRIPTIONS, ExperimentConfig, dump_config, load_config, resolve
from themis_ray.data import PreferenceDataset
from themis_ray.data.exchange import ArraySpec, DatasetCounts, EnvLayout, export_dataset, import_dataset
from themis_ray.envs import EnvConfig, first_choices, get_env_spec, make_env
from themis_ray.errors import ConfigError, ThemisError, lookup
from themis_ray.experiment import resolve_new, run_experiment, run_pretraining
from themis_ray.explain import METHODS
from themis_ray.explaining import INFLUENCE, INFLUENCE_SUMMARY
from themis_ray.feedback import SAMPLERS, SCHEDULE_DESCRIPTIONS, TEACHER_DESCRIPTIONS
from themis_ray.reward import REWARD_MODELS, REWARD_OPTIONS, RewardConfig
from themis_ray.rllib import ALGORITHM_DESCRIPTIONS, open_preferences
from themis_ray.snapshots import make_pretraining_config, prepare_snapshot_folder
from themis_ray.tracking import RunFolder

__all__ = ["main", "train_run"]

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


DATA_EXAMPLES = """
\b
Examples:
  themis data export runs/pendulum-v1-sac-oracle-s0 --out pendulum-hub --format huggingface
  themis data import pendulum-hub --out datasets/pendulum
  themis data import preferences.pkl --out datasets/pendulum --env Pendulum-v1
"""


class OneLineErrors(click.Group):
    """Prints user errors as one line with exit code 2; the traceback only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except ThemisError as error:
            if "--debug" in sys.argv:
                traceback.print_exc()
            click.echo(f"error: {error}", err=True)
            context.exit(2)


@click.group(cls=OneLineErrors)
@click.version_option(package_name="themis-ray")
def main() -> None:
    """Train, sweep, label and explain: reinforcement learning from human feedback on Ray."""


@main.command(epilog=TRAIN_EXAMPLES)
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


@main.command(epilog=PRETRAIN_EXAMPLES)
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


# ---------------------------------------------------------------- list

# What `themis list` can list: names with one line each, from beside the registries.
LISTS: Mapping[str, Mapping[str, str]] = {
    "teachers": TEACHER_DESCRIPTIONS,
    "samplers": {name: spec.description for name, spec in SAMPLERS.items()},
    "algorithms": ALGORITHM_DESCRIPTIONS,
    "reward-models": REWARD_MODELS
    | {f"reward.{name}": f"option: {RewardConfig.model_fields[name].description}" for name in REWARD_OPTIONS},
    "explanations": {name: method.summary for name, method in METHODS.items()} | {INFLUENCE: INFLUENCE_SUMMARY},
    "presets": PRESET_DESCRIPTIONS,
    "schedules": SCHEDULE_DESCRIPTIONS,
}


@main.command("list")
@click.argument("kind", metavar=f"[{'|'.join(LISTS)}]")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def list_command(kind: str, debug: bool) -> None:
    """Print what there is to choose from, with one line each."""
    del debug
    descriptions = lookup("list of", kind, LISTS)
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        # click takes the bold type out where the output is no terminal.
        click.echo(f"{click.style(name, bold=True)}{' ' * (width - len(name))}  {description}")


# ---------------------------------------------------------------- data


@main.group(epilog=DATA_EXAMPLES)
def data() -> None:
    """Bring preferences in and out: Parquet, JSON lines, Hugging Face, imitation, B-Pref."""


@data.command("import", epilog=DATA_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the dataset.")
@click.option(
    "--format",
    "format_name",
    default="auto",
    show_default=True,
    help="auto, parquet, jsonl, huggingface, imitation or bpref.",
)
@click.option("--env", "env_id", help="Environment the data comes from. imitation and bpref need it.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def import_command(source: Path, out: Path, format_name: str, env_id: str | None, debug: bool) -> None:
    """Copy preferences of another program into a dataset that runs can use.

    Pickles are read without running anything that they name.
    """
    del debug
    layout = None if env_id is None else make_env_layout(env_id)
    with late_progress(f"import {source}") as report:
        counts = import_dataset(source, out, format_name, layout, report)
    _print_counts("Imported", counts, out)


@data.command("export", epilog=DATA_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN_OR_DATASET")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option("--format", "format_name", required=True, help="parquet, jsonl or huggingface.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def export_command(source: Path, out: Path, format_name: str, debug: bool) -> None:
    """Copy the preferences and segments of a run or dataset for other programs."""
    del debug
    with late_progress(f"export {source}") as report:
        counts = export_dataset(source, out, format_name, report)
    _print_counts("Exported", counts, out)


def make_env_layout(env_id: str) -> EnvLayout:
    """Return what imported steps of an environment must look like, and how runs store them.

    Raises:
        UnknownNameError: No environment has this id.
        ConfigError: The environment cannot be made.
    """
    stored = get_env_spec(EnvConfig(id=env_id))
    env = make_env(EnvConfig(id=env_id, fixed_horizon=False))
    observations, actions, first = env.observation_space, env.action_space, first_choices(env)
    env.close()  # type: ignore[no-untyped-call]
    bounds = num_choices = None
    if isinstance(actions, spaces.Box) and bool(actions.bounded_below.all() and actions.bounded_above.all()):
        bounds = (actions.low, actions.high)
    if isinstance(actions, spaces.Discrete | spaces.MultiDiscrete):
        num_choices = (int(actions.n),) if isinstance(actions, spaces.Discrete) else tuple(actions.nvec.tolist())
    return EnvLayout(
        env_id=env_id,
        observations=ArraySpec(tuple(observations.shape or ()), np.dtype(observations.dtype)),
        # RLlib hands the actions of a policy over in 32 bits, whatever the space says.
        actions=ArraySpec(
            tuple(actions.shape or ()), np.dtype(np.float32 if isinstance(actions, spaces.Box) else np.int32)
        ),
        has_mark=stored.observation_space.shape != observations.shape,
        action_bounds=bounds,
        num_choices=num_choices,
        first_choices=first,
    )


def _print_counts(verb: str, counts: DatasetCounts, out: Path) -> None:
    choices = ", ".join(f"{num} {choice}" for choice, num in counts.choices.items())
    env_ids = ", ".join(sorted(counts.env_ids))
    click.echo(
        f"{verb} {counts.num_queries} preferences ({choices}) about {counts.num_segments} segments of {env_ids}."
    )
    if counts.num_left_out:
        click.echo(f"Left out: {counts.num_left_out} pairs of a segment with itself.")
    click.echo(f"Folder: {out}")


main.add_command(annotate)
main.add_command(clip)
main.add_command(envs)
main.add_command(explain)
main.add_command(publish)
main.add_command(report)
main.add_command(serve)
main.add_command(simulate_annotators)
main.add_command(study)
main.add_command(sweep)
