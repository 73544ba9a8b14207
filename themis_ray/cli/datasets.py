"""`themis data`: preferences of other programs in, and ours out."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from gymnasium import spaces

from themis_ray.cli.progress import late_progress
from themis_ray.data.exchange import ArraySpec, DatasetCounts, EnvLayout, export_dataset, import_dataset
from themis_ray.envs import EnvConfig, first_choices, get_env_spec, make_env, num_choices

__all__ = ["data", "make_env_layout"]

DATA_EXAMPLES = """
\b
Examples:
  themis data export runs/pendulum-v1-sac-oracle-s0 --out pendulum-hub --format huggingface
  themis data import pendulum-hub --out datasets/pendulum
  themis data import preferences.pkl --out datasets/pendulum --env Pendulum-v1
"""


@click.group(epilog=DATA_EXAMPLES)
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
    bounds = None
    if isinstance(actions, spaces.Box) and bool(actions.bounded_below.all() and actions.bounded_above.all()):
        bounds = (actions.low, actions.high)
    return EnvLayout(
        env_id=env_id,
        observations=ArraySpec(tuple(observations.shape or ()), np.dtype(observations.dtype)),
        actions=ArraySpec(tuple(actions.shape or ()), stored.action_dtype),
        has_mark=stored.observation_space.shape != observations.shape,
        action_bounds=bounds,
        num_choices=None if isinstance(actions, spaces.Box) else tuple(num_choices(actions)),
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
