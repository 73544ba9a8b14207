"""What Tune costs per trial, with `run_sweep` itself and trials that do nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks.scale import trial_functions
from benchmarks.scale.plan import NUM_PLANNED, plan
from benchmarks.scale.session import growth, head_memory_mib, own_session
from themis_ray.cli.progress import progress_bar
from themis_ray.sweeping import Progress, SweepFolder, SweepSettings, Trial, expand, run_sweep
from themis_ray.sweeping import run as sweeping_run

__all__ = ["measure", "print_tables"]

BASE = {
    "env": {"id": "Pendulum-v1"},
    "num_env_steps": 2000,
    "feedback": {"budget": 40, "segment_length": 25},
    # One bundle of one CPU, so that as many trials run at a time as there are cores.
    "resources": {"reward_actor_num_cpus": 0, "num_fit_threads": 1},
}
# Where Tune writes why a trial failed.
ERROR_FILE = "error.txt"
NUM_DECILES = 10
NUM_SAMPLES = 50
NUM_LAST_TRIALS = 300
NUM_AT_ENDS = 100


@dataclass(eq=False)
class Sweep:
    """One sweep as it was seen from the driver.

    Args:
        wall_s: Of `run_sweep`.
        over_s: When each trial was over, since the sweep began.
        driver_cpu_s: CPU time of Tune's thread in the driver up to then.
        memory: Number of trials that were over, and the memory of the head's processes in MiB.
        tune_folder_mib: What Tune had written when the last trial was over.
        errors: Of trials that failed.
        starts: What `start_trial` wrote of each trial.
    """

    wall_s: float = 0.0
    over_s: list[float] = field(default_factory=list)
    driver_cpu_s: list[float] = field(default_factory=list)
    memory: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tune_folder_mib: float = 0.0
    errors: list[str] = field(default_factory=list)
    starts: list[dict[str, float]] = field(default_factory=list)

    def rest_s(self) -> list[float]:
        """Returns the time between the ends of trials."""
        return [after - before for before, after in itertools.pairwise(self.over_s)]


def make_trials(num_trials: int) -> tuple[SweepSettings, list[Trial], float]:
    """Returns a sweep with as many seeds, its trials, and the seconds that resolving each took."""
    settings = SweepSettings(base=BASE, seeds=tuple(range(num_trials)))
    start = time.perf_counter()
    trials = expand(settings)
    return settings, trials, (time.perf_counter() - start) / num_trials


def run_trials(
    function: Callable[[dict[str, Any]], None], num_trials: int, num_at_once: int | None, what: str, console: Console
) -> Sweep:
    """Runs a sweep whose trials call `function` in place of an experiment; all else is `run_sweep`."""
    settings, trials, _ = make_trials(num_trials)
    settings = settings.model_copy(update={"max_concurrent": num_at_once, "max_failures": 0})
    sweep = Sweep()
    every = max(1, num_trials // NUM_SAMPLES)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-scale-")))
        bar = stack.enter_context(progress_bar(console))
        task = bar.add_task(what, total=num_trials, status="")
        folder = SweepFolder.create(root / "sweep", settings)

        def see(event: Progress) -> None:
            if event.num_over <= len(sweep.over_s):
                return
            sweep.over_s.append(time.perf_counter() - start)
            # Of this thread alone, in which Tune does one thing after the other; progress is drawn in another.
            sweep.driver_cpu_s.append(time.thread_time())
            if event.num_over % every == 0 or event.num_over in (1, num_trials):
                sweep.memory.append((event.num_over, head_memory_mib()))
            if event.num_over == num_trials:
                files = [path for path in (root / "sweep" / ".tune").rglob("*") if path.is_file()]
                sweep.tune_folder_mib = sum(path.stat().st_size for path in files) / 2**20
                sweep.errors = [path.read_text() for path in files if path.name == ERROR_FILE]
            bar.update(task, completed=event.num_over)

        stack.enter_context(mock.patch.object(sweeping_run, "train_trial", function))
        stack.enter_context(mock.patch.object(sweeping_run, "_bundles", trial_functions.bundles_of))
        start = time.perf_counter()
        run_sweep(settings, folder, trials, see)
        sweep.wall_s = time.perf_counter() - start
        paths = sorted((root / "sweep").rglob(trial_functions.START_FILE))
        sweep.starts = [json.loads(path.read_text()) for path in paths]
    if sweep.errors:
        raise RuntimeError(f"a trial failed: {sweep.errors[0]}")
    if len(sweep.over_s) != num_trials:
        raise RuntimeError(f"{len(sweep.over_s)} of {num_trials} trials ended")
    return sweep


def measure(num_trials: int, is_quick: bool, console: Console) -> dict[str, Any]:
    """Returns all that this part measures."""
    num_cpus = os.cpu_count() or 1
    num_single = 4 if is_quick else 10
    with own_session(num_cpus):
        # The first sweep of a process also imports and warms up.
        run_trials(trial_functions.noop_trial, 2, 1, "warm-up", console)
        noop = run_trials(trial_functions.noop_trial, num_single, 1, "no-op, one at a time", console)
        chatty = run_trials(trial_functions.chatty_trial, num_single, 1, "with lines of metrics", console)
        started = run_trials(trial_functions.start_trial, num_single, 1, "starts of real trials", console)
        many = run_trials(trial_functions.noop_trial, num_trials, None, f"{num_trials} no-ops", console)
    _, _, expand_s = make_trials(min(num_trials, 100))
    singles = {"noop": noop, "chatty": chatty, "real": started}
    slot_s = {name: statistics.median(sweep.rest_s()) for name, sweep in singles.items()}
    num_lines = trial_functions.NUM_LINES - 1
    driver_s_per_line = max(0.0, (_driver_cpu_s(chatty) - _driver_cpu_s(noop)) / num_lines)
    deciles = describe_deciles(many)
    result = {
        "num_trials": num_trials,
        "num_at_once": num_cpus,
        "wall_s": many.wall_s,
        "overhead_per_trial_s": many.wall_s / num_trials,
        "first_over_s": many.over_s[0],
        "deciles": deciles,
        **describe_ends(many),
        "driver_cpu_per_trial_s": _driver_cpu_s(many),
        "driver_cpu_per_line_s": driver_s_per_line,
        "expand_per_trial_s": expand_s,
        "tune_folder_mib": many.tune_folder_mib,
        "one_at_a_time_s": slot_s,
        "start_s": statistics.median(one["start_s"] for one in started.starts),
        "starts": {key: statistics.median(one[key] for one in started.starts) for key in started.starts[0]},
        **describe_memory(many),
    }
    driver_s = driver_line(deciles, driver_s_per_line)
    result["plan"] = {
        "is_a_model": True,
        "start_s": slot_s["real"],
        "driver_s_of_first": driver_s(0),
        "driver_s_of_thousandth": driver_s(999),
        "lines_per_trial": trial_functions.NUM_LINES,
        "rows": plan(slot_s["real"], driver_s),
    }
    return result


def _driver_cpu_s(sweep: Sweep) -> float:
    """Returns the driver's CPU time for each trial after the first."""
    return (sweep.driver_cpu_s[-1] - sweep.driver_cpu_s[0]) / max(1, len(sweep.over_s) - 1)


def describe_deciles(sweep: Sweep) -> list[dict[str, float]]:
    """Returns seconds per trial and CPU seconds of the driver per trial, tenth by tenth."""
    last = len(sweep.over_s) - 1
    ends = [round(last * i / NUM_DECILES) for i in range(NUM_DECILES + 1)]
    return [
        {
            "from": first + 1,
            "to": end,
            "per_trial_s": (sweep.over_s[end] - sweep.over_s[first]) / (end - first),
            "driver_cpu_per_trial_s": (sweep.driver_cpu_s[end] - sweep.driver_cpu_s[first]) / (end - first),
        }
        for first, end in itertools.pairwise(ends)
        if end > first
    ]


def describe_ends(sweep: Sweep) -> dict[str, float]:
    """Returns seconds per trial of the first and of the last hundred, and their ratio."""
    rest = sweep.rest_s()
    first, last = statistics.fmean(rest[:NUM_AT_ENDS]), statistics.fmean(rest[-NUM_AT_ENDS:])
    return {"first_100_per_trial_s": first, "last_100_per_trial_s": last, "last_over_first": last / first}


def describe_memory(sweep: Sweep) -> dict[str, Any]:
    """Returns the memory of the head's processes, how it grew over the last trials, and over those before them."""
    num_trials, last = len(sweep.over_s), sweep.memory[-1][1]
    since = max(0, num_trials - NUM_LAST_TRIALS)
    late = _growth_per_100([row for row in sweep.memory if row[0] >= since])
    early = _growth_per_100([row for row in sweep.memory if row[0] <= since])
    return {
        "memory_growth_mib_per_100_trials": late["head"],
        "memory_growth_by_process_mib_per_100_trials": late,
        "memory_growth_before_mib_per_100_trials": early,
        "memory_growth_since_trial": since,
        # If it goes on as over the last trials.
        "memory_at_1000_trials_mib": last["head"] + late["head"] * (NUM_PLANNED - num_trials) / 100,
        "memory_mib": [{"trial": number, **memory} for number, memory in sweep.memory],
    }


def _growth_per_100(rows: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Returns the growth of each process in MiB, and of all; nothing without rows."""
    numbers = [number for number, _ in rows]
    names = rows[-1][1] if rows else ()
    return {name: 100 * growth(numbers, [memory.get(name, 0.0) for _, memory in rows]) for name in names}


def driver_line(deciles: Sequence[dict[str, float]], per_line_s: float) -> Callable[[int], float]:
    """Returns the driver's time for a trial by its number: a line through the tenths, and its lines of metrics."""
    middles = [(decile["from"] + decile["to"]) / 2 for decile in deciles]
    values = [decile["driver_cpu_per_trial_s"] for decile in deciles]
    # Fewer trials say nothing of a thousand.
    slope = max(0.0, growth(middles, values)) if deciles[-1]["to"] >= NUM_AT_ENDS else 0.0
    middle, mean = statistics.fmean(middles), statistics.fmean(values)
    lines_s = per_line_s * (trial_functions.NUM_LINES - 1)
    return lambda number: max(0.0, mean + slope * (number - middle)) + lines_s


# ---------------------------------------------------------------- tables


def print_tables(part: dict[str, Any], console: Console) -> None:
    """Prints what was measured."""
    table = Table(title=f"{part['num_trials']} no-op trials, {part['num_at_once']} at a time", title_justify="left")
    for column in ("trials", "s per trial", "driver's CPU s per trial"):
        table.add_column(column, justify="right")
    for decile in part["deciles"]:
        span = f"{decile['from']:.0f}-{decile['to']:.0f}"
        table.add_row(span, f"{decile['per_trial_s']:.3f}", f"{decile['driver_cpu_per_trial_s']:.3f}")
    console.print(table)
    console.print(
        f"overhead per trial {part['overhead_per_trial_s']:.3f} s; last 100 over first 100 "
        f"{part['last_over_first']:.2f}; driver {part['driver_cpu_per_trial_s'] * 1e3:.0f} ms per trial and "
        f"{part['driver_cpu_per_line_s'] * 1e3:.1f} ms per line of metrics",
        highlight=False,
    )
    one = part["one_at_a_time_s"]
    console.print(
        f"one at a time: a no-op {one['noop']:.2f} s, a real trial up to its experiment {one['real']:.2f} s; its "
        f"process is ready {part['start_s']:.2f} s after its start, with {part['starts']['rss_mib']:.0f} MiB",
        highlight=False,
    )
    print_memory(part, console)
    print_plan(part["plan"], console)


def print_memory(part: dict[str, Any], console: Console) -> None:
    """Prints the memory of the head at about every fifth of the sweep."""
    rows = part["memory_mib"]
    names = [name for name in rows[-1] if name != "trial"]
    table = Table(title="Memory of the head, MiB", title_justify="left")
    for column in ("trials over", *names):
        table.add_column(column.replace("_", " "), justify="right")
    chosen = sorted({round((len(rows) - 1) * i / 5) for i in range(6)})
    for row in (rows[i] for i in chosen):
        table.add_row(str(row["trial"]), *(f"{row.get(name, 0.0):.1f}" for name in names))
    slopes = part["memory_growth_by_process_mib_per_100_trials"]
    table.add_section()
    table.add_row("per 100", *(f"{slopes[name]:+.2f}" for name in names))
    console.print(table)
    console.print(
        f"growth over the trials after {part['memory_growth_since_trial']}; if it goes on like this, the head has "
        f"{part['memory_at_1000_trials_mib']:.0f} MiB after 1000 trials",
        highlight=False,
    )


def print_plan(model: dict[str, Any], console: Console) -> None:
    """Prints the model of a large sweep."""
    rows = model["rows"]
    table = Table(title=f"A model of {rows[0]['num_trials']} trials, not measured", title_justify="left")
    for column in ("s per trial", "at a time", "wall, h", "start, %", "scheduler, %"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{100 * row[key]:.1f}" for key in ("start_share", "scheduler_share"))
        table.add_row(f"{row['trial_s']:.0f}", str(row["num_at_once"]), f"{row['wall_s'] / 3600:.2f}", *shares)
    console.print(table)
