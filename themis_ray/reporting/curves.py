"""How the return grew, over env steps and over labels, on a grid that all runs of a group share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from themis_ray.reporting.groups import Cell
from themis_ray.reporting.runs import Run
from themis_ray.reporting.statistics import bootstrap, has_interval, interquartile_mean, interval

__all__ = ["NUM_POINTS", "Curve", "CurveAxis", "cell_curve", "overall_curve"]

Array = NDArray[np.float64]
CurveAxis = Literal["env_steps", "labels"]

NUM_POINTS = 61


@dataclass(frozen=True, eq=False)
class Curve:
    """The interquartile mean of some runs along an axis.

    Attributes:
        x: Env steps or labels; of several tasks the share of them, from 0 to 1.
        y: Interquartile mean at each.
        low: Lower ends of the 95 % intervals; None where there are too few runs for one.
        high: Upper ends.
        num_runs: Runs behind each point.
    """

    x: Array
    y: Array
    low: Array | None
    high: Array | None
    num_runs: int


def cell_curve(cell: Cell, axis: CurveAxis, rng: np.random.Generator, *, is_scored: bool) -> Curve | None:
    """Return the curve of a cell in returns or scores; None where its runs share no stretch of the axis.

    It begins where the last of the runs has finished its first episode and ends where the first run ends.
    """
    lines = _lines(cell, axis, is_scored=is_scored)
    if not lines:
        return None
    grid = _grid(lines)
    if grid is None:
        return None
    return _curve(grid, [np.stack([np.interp(grid, x, y) for x, y in lines])], rng)


def overall_curve(cells: Sequence[Cell], axis: CurveAxis, rng: np.random.Generator) -> Curve | None:
    """Return the curve of the scores of several tasks over the share of each task's env steps or labels."""
    lines_of = [_lines(cell, axis, is_scored=True) for cell in cells]
    shares = []
    for lines in lines_of:
        end = min((x[-1] for x, _ in lines), default=0.0)
        if end <= 0:
            return None
        shares.append([(x / end, y) for x, y in lines])
    grid = _grid([line for lines in shares for line in lines])
    if grid is None:
        return None
    return _curve(grid, [np.stack([np.interp(grid, x, y) for x, y in lines]) for lines in shares], rng)


def _lines(cell: Cell, axis: CurveAxis, *, is_scored: bool) -> list[tuple[Array, Array]]:
    """Return (x, y) of the runs that have a curve."""
    lines = []
    for run in cell.runs:
        x, y = (run.env_steps, run.returns) if axis == "env_steps" else _by_labels(run)
        if len(x) and is_scored:
            if cell.scale is None:
                return []
            y = cell.scale.score(y)
        if len(x):
            lines.append((x, y))
    return lines


def _by_labels(run: Run) -> tuple[Array, Array]:
    """Return the return that was reached with so many labels, just before more were asked for."""
    if not run.queries_asked or not len(run.queries):
        return np.empty(0), np.empty(0)
    is_last = np.append(run.queries[1:] > run.queries[:-1], True)
    return run.queries[is_last], run.returns[is_last]


def _grid(lines: Sequence[tuple[Array, Array]]) -> Array | None:
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    return np.linspace(start, end, NUM_POINTS) if end > start else None


def _curve(grid: Array, strata: Sequence[Array], rng: np.random.Generator) -> Curve:
    """Return the curve of values (runs, points), a stratum each; every point sees the same draws of runs."""
    values = np.concatenate(strata)
    centre = interquartile_mean(values.T)
    if not has_interval(strata):
        return Curve(grid, centre, None, None, len(values))
    # Draws of rows; their points are looked up one by one, which keeps memory small.
    draws = bootstrap([np.arange(len(rows), dtype=np.float64) for rows in strata], rng)
    drawn = [draw.astype(np.int64) for draw in draws]
    ends = [
        interval(interquartile_mean(np.concatenate([rows[:, i][d] for rows, d in zip(strata, drawn, strict=True)], -1)))
        for i in range(len(grid))
    ]
    low, high = (np.array([float(pair[side]) for pair in ends]) for side in (0, 1))
    return Curve(grid, centre, low, high, len(values))
