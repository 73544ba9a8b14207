"""Trials per hour of a real sweep, one and two at a time."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale.session import own_session
from themis_ray.cli.progress import progress_bar
from themis_ray.sweeping import Progress, SweepFolder, SweepSettings, expand, load_sweep, run_sweep

__all__ = ["measure", "print_tables"]

SWEEP = Path("tune_configs") / "smoke.yaml"
NUM_AT_ONCE = (1, 2)
# Half of its length, so that both ways can be run twice.
SHORTER = ("num_env_steps=1000", "feedback.budget=20")
QUICK = ("num_env_steps=400", "space.feedback.sampler=[uniform]", "feedback.budget=10", "num_evaluation_episodes=1")


def measure(is_quick: bool, console: Console) -> dict[str, Any]:
    """Returns all that this part measures; the two ways take turns."""
    settings = load_sweep(Path(__file__).parents[2] / SWEEP, QUICK if is_quick else SHORTER)
    # Each way first once.
    orders = [NUM_AT_ONCE] if is_quick else [NUM_AT_ONCE, tuple(reversed(NUM_AT_ONCE))]
    runs: dict[int, list[dict[str, float]]] = {number: [] for number in NUM_AT_ONCE}
    with own_session(max(NUM_AT_ONCE[-1], os.cpu_count() or 1)), progress_bar(console) as bar:
        task = bar.add_task("trials", total=float(len(orders) * len(NUM_AT_ONCE)), status="")
        for number in (number for order in orders for number in order):
            num_done = sum(map(len, runs.values()))

            def see(event: Progress, number: int = number, num_done: int = num_done) -> None:
                bar.update(task, completed=num_done + event.share, status=f"{number} at a time  {event.name}")

            runs[number].append(_run(settings.model_copy(update={"max_concurrent": number}), see))
    per_hour = {str(number): statistics.median(run["trials_per_hour"] for run in runs[number]) for number in runs}
    return {
        "sweep": SWEEP.as_posix(),
        "overrides": QUICK if is_quick else SHORTER,
        "num_rounds": len(orders),
        "trials_per_hour": per_hour,
        "two_over_one": per_hour["2"] / per_hour["1"],
        "runs": {str(number): found for number, found in runs.items()},
    }


def _run(settings: SweepSettings, see: Any) -> dict[str, float]:
    """Runs the sweep and returns its speed; all trials must finish."""
    trials = expand(settings)
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder = SweepFolder.create(Path(name) / "sweep", settings)
        start = time.perf_counter()
        outcomes = run_sweep(settings, folder, trials, see)
        wall_s = time.perf_counter() - start
    unfinished = [f"{outcome.name}: {outcome.message}" for outcome in outcomes if outcome.status != "finished"]
    if unfinished:
        raise RuntimeError(f"a trial did not finish: {unfinished[0]}")
    return {
        "num_trials": len(outcomes),
        "wall_s": wall_s,
        "trials_per_hour": 3600 * len(outcomes) / wall_s,
        "env_steps_per_s": sum(outcome.num_env_steps for outcome in outcomes) / wall_s,
        "training_s_per_trial": statistics.fmean(outcome.wall_s for outcome in outcomes),
    }


def print_tables(part: dict[str, Any], console: Console) -> None:
    """Prints what was measured."""
    table = Table(title=f"{part['sweep']}, {os.cpu_count()} cores", title_justify="left")
    for column in ("at a time", "trials per hour", "env steps per s", "training, s per trial", "wall, s"):
        table.add_column(column, justify="right")
    for number, runs in part["runs"].items():
        keys = ("trials_per_hour", "env_steps_per_s", "training_s_per_trial", "wall_s")
        table.add_row(number, *(f"{statistics.median(run[key] for run in runs):.1f}" for key in keys))
    console.print(table)
