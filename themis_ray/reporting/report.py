"""All numbers of a report, before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from themis_ray.errors import ConfigError, RunFolderError
from themis_ray.reporting.comparisons import Comparison, compare_with_baseline
from themis_ray.reporting.curves import Curve, CurveAxis, cell_curve, overall_curve
from themis_ray.reporting.groups import ALL_TASKS, Cell, Groups, Method, group_runs
from themis_ray.reporting.runs import LeftOutRun, find_runs
from themis_ray.reporting.statistics import (
    FEW_SEEDS,
    MIN_SEEDS,
    Estimate,
    bootstrap,
    estimate,
    has_interval,
    interquartile_mean,
    interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

__all__ = ["Profile", "Report", "Row", "Verdict", "make_report"]

NUM_THRESHOLDS = 121
LOWEST_THRESHOLD = -0.5


@dataclass(frozen=True)
class Row:
    """A method on one task, or on all of them.

    Attributes:
        task: `ALL_TASKS` for all.
        method: The method.
        num_tasks: Tasks that it is about; of all of them those with a scale, where others have one.
        num_runs: Runs of all of these.
        num_seeds: Runs of the task with the fewest; 0 where it is about none.
        return_mean: Mean true return of the final evaluations; None of several tasks, and so for the next.
        return_std: Standard deviation over runs.
        labels_mean: Mean number of labels that a run took; None where it is about no run.
        score_mean: Mean score; None without a scale, and so for the next two.
        iqm: Interquartile mean of the scores.
        gap: Optimality gap.
    """

    task: str
    method: Method
    num_tasks: int
    num_runs: int
    num_seeds: int
    return_mean: float | None
    return_std: float | None
    labels_mean: float | None
    score_mean: float | None
    iqm: Estimate | None
    gap: Estimate | None


@dataclass(frozen=True, eq=False)
class Profile:
    """Share of runs above each score; the interval is None where there are too few runs for one."""

    thresholds: NDArray[np.float64]
    shares: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


@dataclass(frozen=True)
class Verdict:
    """Whether there are enough seeds.

    Attributes:
        is_enough: Whether every cell has `MIN_SEEDS` and lost none to an early end.
        text: The same in words.
        short: What is missing in a sentence; empty where there is enough.
    """

    is_enough: bool
    text: str
    short: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is shown.

    Attributes:
        groups: The runs.
        rows: A row per method and task, and where there are several tasks one per method for all of them, first.
        comparisons: With the baseline; empty without one.
        baseline: KEY=VALUE; empty without one.
        pairs: Probability that the row's method beats the column's, over the tasks that both have; NaN where none.
        profiles: By method; of those with scores.
        curves: By axis, task (`ALL_TASKS` in scores, others in returns) and method.
        verdict: Whether there are enough seeds.
        left_out: Runs that do not count.
        notes: What a reader has to know.
    """

    groups: Groups
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    baseline: str
    pairs: NDArray[np.float64]
    profiles: Mapping[Method, Profile]
    curves: Mapping[tuple[CurveAxis, str], Mapping[Method, Curve]]
    verdict: Verdict
    left_out: tuple[LeftOutRun, ...]
    notes: tuple[str, ...]

    @property
    def summary_rows(self) -> tuple[Row, ...]:
        """The rows that say most: scores of all tasks, or what there is of each."""
        overall = tuple(row for row in self.rows if row.task == ALL_TASKS)
        if overall and self.has_scores:
            return overall
        return tuple(row for row in self.rows if row.task != ALL_TASKS)

    @property
    def has_scores(self) -> bool:
        """Whether some runs have scores."""
        return any(row.iqm is not None for row in self.rows)

    def row(self, task: str, method: Method) -> Row | None:
        """Return a row, or None."""
        return next((row for row in self.rows if row.task == task and row.method == method), None)


def make_report(
    paths: Sequence[Path],
    baseline: str | None = None,
    *,
    seed: int = 0,
    places: Mapping[Path, str] | None = None,
) -> Report:
    """Read all runs below the folders and work out what is to be said of them.

    The same runs give the same numbers: every interval is drawn from a generator of its own with the same seed.

    Args:
        paths: Run folders, or folders that hold some.
        baseline: KEY=VALUE of a setting, such as teacher.name=oracle.
        seed: Of the bootstrap samples.
        places: Where a folder was read from, if that is not where it lies.

    Raises:
        ConfigError: There is nothing to compare with the baseline, or the seed is below 0.
        RunFolderError: There is no finished run.
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed} is not allowed. Give a whole number of at least 0.")
    runs, left_out = find_runs(paths, places)
    if not runs:
        raise RunFolderError(
            f"none of the {len(left_out)} runs found is finished; {left_out[0].place}: {left_out[0].reason}. Finish "
            "one with themis train --resume."
        )
    groups = group_runs(runs, [run.stopped for run in left_out if run.stopped is not None])
    notes = list(groups.notes)
    compared: tuple[Comparison, ...] = ()
    if baseline is not None:
        compared, alone = compare_with_baseline(groups, baseline, seed)
        if alone:
            names = "; ".join(method.name for method in alone)
            notes.append(f"No group of the baseline goes with these, or shares a task with them: {names}.")
    return Report(
        groups=groups,
        rows=_rows(groups, seed),
        comparisons=compared,
        baseline=baseline or "",
        pairs=_pairs(groups),
        profiles=_profiles(groups, seed),
        curves=_curves(groups, seed),
        verdict=_verdict(groups),
        left_out=(*left_out, *groups.left_out),
        notes=tuple(notes),
    )


# ---------------------------------------------------------------- rows


def _rows(groups: Groups, seed: int) -> tuple[Row, ...]:
    rows = []
    if len(groups.tasks) > 1:
        has_scores = any(cell.scale is not None for cell in groups.cells.values())
        rows += [_overall_row(groups, method, seed, has_scores=has_scores) for method in groups.methods]
    for task in groups.tasks:
        rows += [
            _row(task, method, [groups.cells[task, method]], seed)
            for method in groups.methods
            if (task, method) in groups.cells
        ]
    return tuple(rows)


def _overall_row(groups: Groups, method: Method, seed: int, *, has_scores: bool) -> Row:
    """Return the row of all tasks, in which those count that its numbers are about."""
    return _row(ALL_TASKS, method, list(groups.of(method, scored=has_scores).values()), seed)


def _row(task: str, method: Method, cells: Sequence[Cell], seed: int) -> Row:
    scores = [cell.scores for cell in cells if cell.scores is not None]
    returns = cells[0].returns if task != ALL_TASKS else None
    # Returns of one run have no spread that could be known.
    std = float(returns.std(ddof=1)) if returns is not None and len(returns) > 1 else None
    labels = [run.queries_asked for cell in cells for run in cell.runs]
    return Row(
        task=task,
        method=method,
        num_tasks=len(cells),
        num_runs=len(labels),
        num_seeds=min((len(cell.runs) for cell in cells), default=0),
        return_mean=None if returns is None else float(returns.mean()),
        return_std=std,
        labels_mean=float(np.mean(labels)) if labels else None,
        score_mean=float(np.concatenate(scores).mean()) if scores else None,
        iqm=estimate(scores, interquartile_mean, np.random.default_rng(seed)) if scores else None,
        gap=estimate(scores, optimality_gap, np.random.default_rng(seed)) if scores else None,
    )


def _verdict(groups: Groups) -> Verdict:
    sizes = [len(cell.runs) for cell in groups.cells.values()]
    num_lost = sum(cell.num_stopped > 0 for cell in groups.cells.values())
    few = _few_seeds(sizes)
    texts, shorts = [], []
    if few:
        texts.append(
            f"Too few seeds to conclude: {'; '.join(few)}. Run at least {MIN_SEEDS} seeds of every group on every "
            "environment, better 10."
        )
        shorts.append("Too few seeds to conclude.")
    if num_lost:
        texts.append(
            f"Seeds are missing: {num_lost} of {len(sizes)} cells have runs that were stopped early, and what these "
            "had reached may have decided it. Let every seed run to its end."
        )
        shorts.append("Seeds that were stopped early are missing.")
    if texts:
        return Verdict(False, " ".join(texts), " ".join(shorts))
    return Verdict(
        True,
        f"Every group has at least {min(sizes)} seeds on each environment. More seeds make the intervals narrower.",
    )


def _few_seeds(sizes: Sequence[int]) -> list[str]:
    num_single, num_few = sum(n == 1 for n in sizes), sum(1 < n < FEW_SEEDS for n in sizes)
    num_some = sum(FEW_SEEDS <= n < MIN_SEEDS for n in sizes)
    parts = []
    if num_single:
        parts.append(f"{num_single} of {len(sizes)} cells have a single seed and no interval")
    if num_few:
        parts.append(f"{num_few} of {len(sizes)} cells have two seeds, whose intervals mean nothing")
    if num_some:
        parts.append(
            f"{num_some} of {len(sizes)} cells have {FEW_SEEDS} or {MIN_SEEDS - 1} seeds, whose intervals are too "
            "narrow and not to be trusted"
        )
    return parts


# ---------------------------------------------------------------- pairs


def _pairs(groups: Groups) -> NDArray[np.float64]:
    num = len(groups.methods)
    shares = np.full((num, num), np.nan)
    for i, left in enumerate(groups.methods):
        for j, right in enumerate(groups.methods):
            xs, ys = groups.of(left), groups.of(right)
            shared = [task for task in groups.tasks if task in xs and task in ys]
            if shared and i != j:
                returns = [[side[task].returns for task in shared] for side in (xs, ys)]
                shares[i, j] = float(probability_of_improvement(*returns))
    return shares


# ---------------------------------------------------------------- profiles and curves


def _profiles(groups: Groups, seed: int) -> dict[Method, Profile]:
    strata = {
        method: [cell.scores for cell in groups.of(method, scored=True).values() if cell.scores is not None]
        for method in groups.methods
    }
    strata = {method: scores for method, scores in strata.items() if scores}
    if not strata:
        return {}
    every = np.concatenate([runs for scores in strata.values() for runs in scores])
    low, high = max(LOWEST_THRESHOLD, min(0.0, float(every.min()))), max(1.1, float(every.max()))
    thresholds = np.linspace(low, high, NUM_THRESHOLDS)
    return {method: _profile(scores, thresholds, seed) for method, scores in strata.items()}


def _profile(strata: Sequence[NDArray[np.float64]], thresholds: NDArray[np.float64], seed: int) -> Profile:
    shares = performance_profile(np.concatenate(strata), thresholds)
    if not has_interval(strata):
        return Profile(thresholds, shares, None, None)
    samples = np.concatenate(bootstrap(strata, np.random.default_rng(seed)), axis=-1)
    return Profile(thresholds, shares, *interval(performance_profile(samples, thresholds)))


def _curves(groups: Groups, seed: int) -> dict[tuple[CurveAxis, str], dict[Method, Curve]]:
    curves: dict[tuple[CurveAxis, str], dict[Method, Curve]] = {}
    axes: tuple[CurveAxis, ...] = ("env_steps", "labels")
    for axis in axes:
        for task in (*([ALL_TASKS] if len(groups.tasks) > 1 else []), *groups.tasks):
            made = {method: _curve(groups, method, axis, task, seed) for method in groups.methods}
            found = {method: curve for method, curve in made.items() if curve is not None}
            if found:
                curves[axis, task] = found
    return curves


def _curve(groups: Groups, method: Method, axis: CurveAxis, task: str, seed: int) -> Curve | None:
    if task != ALL_TASKS:
        cell = groups.cells.get((task, method))
        return None if cell is None else cell_curve(cell, axis, np.random.default_rng(seed), is_scored=False)
    cells = list(groups.of(method, scored=True).values())
    return overall_curve(cells, axis, np.random.default_rng(seed)) if cells else None
