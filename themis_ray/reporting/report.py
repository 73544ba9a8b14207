"""All numbers of a report, before anything is drawn or written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from themis_ray.errors import ConfigError, RunFolderError
from themis_ray.reporting.curves import Curve, CurveAxis, cell_curve, overall_curve
from themis_ray.reporting.groups import Cell, Groups, Method, group_runs, text_of
from themis_ray.reporting.runs import LeftOutRun, Run, find_runs
from themis_ray.reporting.statistics import (
    Estimate,
    bootstrap,
    difference,
    estimate,
    has_interval,
    improvement,
    interquartile_mean,
    interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

__all__ = [
    "ALL_TASKS",
    "FEW_SEEDS",
    "MIN_SEEDS",
    "Comparison",
    "Profile",
    "Report",
    "Row",
    "Verdict",
    "make_report",
]

ALL_TASKS = "all"
MIN_SEEDS = 5
FEW_SEEDS = 3
NUM_THRESHOLDS = 121
LOWEST_THRESHOLD = -0.5
NO_VALUE = "none, it is paid the true reward"
SHORT_KEYS = {"teacher": "teacher.name", "sampler": "feedback.sampler", "budget": "feedback.budget"}


@dataclass(frozen=True)
class Row:
    """A method on one task, or on all of them.

    Attributes:
        task: `ALL_TASKS` for all.
        method: The method.
        num_tasks: Tasks that it is about.
        num_runs: Runs of all of these.
        num_seeds: Runs of the task with the fewest.
        return_mean: Mean true return of the final evaluations; None of several tasks, and so for the next.
        return_std: Standard deviation over runs.
        labels_mean: Mean number of labels that a run took.
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
    labels_mean: float
    score_mean: float | None
    iqm: Estimate | None
    gap: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """A method against its baseline, on one task or all that both have.

    Attributes:
        task: `ALL_TASKS` for all.
        method: The method.
        baseline: The method that has the value of the baseline, and all else the same where there is one.
        num_seeds: Runs of the cell with the fewest.
        improvement: How probably a run of the method beats one of the baseline.
        difference: Interquartile mean of its scores minus the baseline's; None without scores.
    """

    task: str
    method: Method
    baseline: Method
    num_seeds: int
    improvement: Estimate
    difference: Estimate | None

    @property
    def says(self) -> str:
        """What can be concluded."""
        low, high = self.improvement.low, self.improvement.high
        if low is None or high is None or self.num_seeds < MIN_SEEDS:
            return "too few seeds"
        if low > 0.5:
            return "better"
        return "worse" if high < 0.5 else "cannot be told apart"


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
        is_enough: Whether every cell has `MIN_SEEDS`.
        text: The same in words.
    """

    is_enough: bool
    text: str


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
        """The rows that say most: of all tasks, or of the only one."""
        return tuple(row for row in self.rows if row.task == ALL_TASKS) or self.rows

    @property
    def has_scores(self) -> bool:
        """Whether some runs have scores."""
        return any(row.iqm is not None for row in self.rows)

    def row(self, task: str, method: Method) -> Row | None:
        """Return a row, or None."""
        return next((row for row in self.rows if row.task == task and row.method == method), None)


def make_report(paths: Sequence[Path], baseline: str | None = None, *, seed: int = 0) -> Report:
    """Read all runs below the folders and work out what is to be said of them.

    The same runs give the same numbers: every interval is drawn from a generator of its own with the same seed.

    Args:
        paths: Run folders, or folders that hold some.
        baseline: KEY=VALUE of a setting, such as teacher.name=oracle.
        seed: Of the bootstrap samples.

    Raises:
        ConfigError: No group has the value of the baseline.
        RunFolderError: There is no finished run.
    """
    runs, left_out = find_runs(paths)
    if not runs:
        raise RunFolderError(
            f"none of the {len(left_out)} runs found is finished; {left_out[0].path}: {left_out[0].reason}. Finish one "
            "with themis train --resume."
        )
    groups = group_runs(runs)
    notes = list(groups.notes)
    compared: tuple[Comparison, ...] = ()
    if baseline is not None:
        partners, alone = _baselines(groups, *_parse_baseline(baseline, runs))
        compared = _comparisons(groups, partners, seed)
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
        rows += [_row(ALL_TASKS, method, list(groups.of(method).values()), seed) for method in groups.methods]
    for task in groups.tasks:
        rows += [
            _row(task, method, [groups.cells[task, method]], seed)
            for method in groups.methods
            if (task, method) in groups.cells
        ]
    return tuple(rows)


def _row(task: str, method: Method, cells: Sequence[Cell], seed: int) -> Row:
    scores = [cell.scores for cell in cells if cell.scores is not None]
    returns = cells[0].returns if task != ALL_TASKS else None
    # Returns of one run have no spread that could be known.
    std = float(returns.std(ddof=1)) if returns is not None and len(returns) > 1 else None
    return Row(
        task=task,
        method=method,
        num_tasks=len(cells),
        num_runs=sum(len(cell.runs) for cell in cells),
        num_seeds=min(len(cell.runs) for cell in cells),
        return_mean=None if returns is None else float(returns.mean()),
        return_std=std,
        labels_mean=float(np.mean([run.queries_asked for cell in cells for run in cell.runs])),
        score_mean=float(np.concatenate(scores).mean()) if scores else None,
        iqm=estimate(scores, interquartile_mean, np.random.default_rng(seed)) if scores else None,
        gap=estimate(scores, optimality_gap, np.random.default_rng(seed)) if scores else None,
    )


def _verdict(groups: Groups) -> Verdict:
    sizes = [len(cell.runs) for cell in groups.cells.values()]
    num_single, num_few = sum(n == 1 for n in sizes), sum(1 < n < FEW_SEEDS for n in sizes)
    num_some = sum(FEW_SEEDS <= n < MIN_SEEDS for n in sizes)
    if not num_single + num_few + num_some:
        return Verdict(
            True,
            f"Every group has at least {min(sizes)} seeds on each environment. More seeds make the intervals narrower.",
        )
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
    return Verdict(
        False,
        f"Too few seeds to conclude: {'; '.join(parts)}. Run at least {MIN_SEEDS} seeds of every group on every "
        "environment, better 10.",
    )


# ---------------------------------------------------------------- comparisons


def _parse_baseline(text: str, runs: Sequence[Run]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f"--baseline {text!r} is no setting. Write KEY=VALUE, for example teacher.name=oracle.")
    key = SHORT_KEYS.get(key, key)
    known = sorted({name for run in runs for name in run.settings})
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"--baseline {text}: the runs have no setting {key!r}.{suggestion}")
    if key.startswith("env."):
        raise ConfigError(
            f"--baseline {text}: groups are compared within an environment. Give a setting of another kind, for "
            "example teacher.name=oracle."
        )
    try:
        parsed = text_of(yaml.safe_load(value))
    except yaml.YAMLError:
        parsed = value
    return key, parsed


def _value(groups: Groups, method: Method, key: str) -> str:
    """Return what a setting of the method is; teachers and samplers of the true reward are none."""
    settings = next(iter(groups.of(method).values())).runs[0].settings
    if not method.is_learned and key.startswith(("teacher.", "feedback.", "reward.")):
        return NO_VALUE
    return text_of(settings.get(key))


def _baselines(groups: Groups, key: str, value: str) -> tuple[dict[Method, Method], list[Method]]:
    """Return the baseline of each method that has one, and the methods that have none."""
    values = {method: _value(groups, method, key) for method in groups.methods}
    those = [method for method, found in values.items() if found == value]
    if not those:
        found = ", ".join(sorted(set(values.values()) - {NO_VALUE}))
        raise ConfigError(f"--baseline {key}={value}: no group has it. The groups have: {found}.")
    partners, alone = {}, []
    for method in groups.methods:
        if method in those:
            continue
        best = _closest(method, key, those)
        if best is not None and set(groups.of(best)) & set(groups.of(method)):
            partners[method] = best
        else:
            # Nobody expects the true reward beside a teacher.
            alone += [method] if values[method] != NO_VALUE else []
    return partners, alone


def _closest(method: Method, key: str, those: Sequence[Method]) -> Method | None:
    """Return the baseline that is the same but for the setting, or the only one there is."""
    if len(those) == 1:
        return those[0]
    if key.startswith("teacher."):
        same = [one for one in those if (one.sampler, one.others) == (method.sampler, method.others)]
    elif key == "feedback.sampler":
        same = [one for one in those if (one.teacher, one.others) == (method.teacher, method.others)]
    else:
        own = (f"{key}=", f"{key.rpartition('.')[2]}=")
        mine = [part for part in method.others if not part.startswith(own)]
        same = [
            one
            for one in those
            if (one.teacher, one.sampler) == (method.teacher, method.sampler)
            and [part for part in one.others if not part.startswith(own)] == mine
        ]
    return same[0] if len(same) == 1 else None


def _comparisons(groups: Groups, partners: Mapping[Method, Method], seed: int) -> tuple[Comparison, ...]:
    rows = []
    names = [*([ALL_TASKS] if len(groups.tasks) > 1 else []), *groups.tasks]
    for name in names:
        for method, baseline in partners.items():
            left, right = groups.of(method), groups.of(baseline)
            shared = [task for task in groups.tasks if task in left and task in right and name in (ALL_TASKS, task)]
            if shared:
                rows.append(_compare(name, [left[task] for task in shared], [right[task] for task in shared], seed))
    return tuple(rows)


def _compare(name: str, left: Sequence[Cell], right: Sequence[Cell], seed: int) -> Comparison:
    pairs = list(zip(left, right, strict=True))
    scored = [(x.scores, y.scores) for x, y in pairs]
    both = [(x, y) for x, y in scored if x is not None and y is not None]
    return Comparison(
        task=name,
        method=left[0].method,
        baseline=right[0].method,
        num_seeds=min(len(cell.runs) for cell in (*left, *right)),
        improvement=improvement(
            [cell.returns for cell in left], [cell.returns for cell in right], np.random.default_rng(seed)
        ),
        difference=difference(
            [x for x, _ in both], [y for _, y in both], interquartile_mean, np.random.default_rng(seed)
        )
        if both
        else None,
    )


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
