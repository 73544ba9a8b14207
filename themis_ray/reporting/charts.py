"""Pictures of a report, for light and for dark paper.

Colour is what is compared (teacher, or what else differs), a panel is a sampler; dashes repeat what colour says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from themis_ray.reporting.canvas import (
    DASHES,
    MAX_COLUMNS,
    Theme,
    add_legend,
    cell_lines,
    file_name,
    free_name,
    ink_on,
    label_axes,
    looks_of,
    new_figure,
    panel_figure,
    panels_of,
    render,
    style_axes,
)
from themis_ray.reporting.curves import Curve, CurveAxis
from themis_ray.reporting.groups import ALL_TASKS, Method
from themis_ray.reporting.report import Report, Row
from themis_ray.reporting.statistics import Estimate

__all__ = ["Picture", "draw_report"]

# A matrix of more would be a picture of nothing.
MAX_COMPARED = 24
MAX_HEATMAPS = 12
# What curves are compared with, and how it is dashed.
REFERENCES = {"random actions": ":", "true reward, final": "--"}


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        key: Names its file.
        title: What is shown.
        text: How to read it, in a sentence or two.
        light: PNG for light paper.
        dark: PNG for dark paper.
        width: How wide it is shown, in CSS pixels, so that letters are of one size in all pictures.
    """

    key: str
    title: str
    text: str
    light: bytes
    dark: bytes
    width: int


def draw_report(report: Report) -> list[Picture]:
    """Draw all pictures for which there is something to show, in the order of the page."""
    pictures: dict[str, Picture] = {}
    for name, title, text, draw in _plans(report):
        # Environments whose names differ in signs alone are two files nevertheless.
        key = free_name(name, pictures)
        pictures[key] = Picture(key, title, text, *render(partial(draw, report)))
    return list(pictures.values())


def _plans(report: Report) -> Iterator[tuple[str, str, str, Any]]:
    if report.has_scores:
        yield (
            "scores",
            "Scores",
            "Dots are the interquartile mean of the scores and the optimality gap, bars their 95 % intervals.",
            _draw_scores,
        )
    maps = _heatmap_panels(report)
    if maps:
        shown = "Interquartile mean of the scores" if report.has_scores else "Mean return of the final evaluations"
        cut = f" The first {MAX_HEATMAPS} of {len(maps)} maps." if len(maps) > MAX_HEATMAPS else ""
        yield ("heatmap", "Teacher and sampler", f"{shown}; below it the number of runs.{cut}", _draw_heatmaps)
    if report.has_scores:
        yield (
            "profiles",
            "Performance profiles",
            "Share of runs that score more than what is on the x axis; a curve that lies higher is better everywhere.",
            _draw_profiles,
        )
    if 1 < len(report.groups.methods) <= MAX_COMPARED:
        yield (
            "improvement",
            "Probability of improvement",
            "How probably a run of the row beats one of the column on the same environment; one half is no difference.",
            _draw_pairs,
        )
    if report.has_scores and any(len(points) > 1 for points in _budget_lines(report).values()):
        yield (
            "labels-budgets",
            "Score by number of labels",
            "Interquartile mean of the scores of whole runs with more and fewer labels, with 95 % intervals.",
            _draw_budgets,
        )
    for axis, what, text in (
        ("env_steps", "Sample efficiency", "return of training episodes over env steps"),
        ("labels", "Label efficiency", "return of training episodes over the labels asked so far"),
    ):
        for (kind, task), curves in report.curves.items():
            if kind == axis:
                yield (
                    f"{axis}-{file_name(task)}",
                    f"{what}: {'all environments' if task == ALL_TASKS else task}",
                    f"Interquartile mean with 95 % interval of the {text}"
                    + (", as scores, and as a share of each environment's." if task == ALL_TASKS else "."),
                    _CurveDrawing(kind, task, curves),
                )


# ---------------------------------------------------------------- dots


def _draw_scores(report: Report, theme: Theme) -> Figure:
    rows = [row for row in report.summary_rows if row.iqm is not None]
    several = len({row.task for row in rows}) > 1
    looks = looks_of(report.groups.methods, theme)
    figure = new_figure(10.5, 1.1 + 0.3 * len(rows), theme)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title in ((left, "Interquartile mean of the scores"), (right, "Optimality gap")):
        style_axes(axes, theme, title)
        axes.grid(visible=False, axis="y")
    for place, row in enumerate(rows):
        color = looks[row.method]["color"]
        _dot(left, place, row.iqm, color)
        _dot(right, place, row.gap, color)
    for reference in (0.0, 1.0):
        left.axvline(reference, color=theme.muted, linewidth=0.9, linestyle=":")
    names = [f"{row.method.name} on {row.task}" if several else row.method.name for row in rows]
    left.set_yticks(range(len(rows)), names, color=theme.ink)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel("higher is better; 0: random actions, 1: true reward")
    right.set_xlabel("lower is better")
    right.set_xlim(left=min(-0.02, right.get_xlim()[0]))
    return figure


def _dot(axes: Axes, place: int, estimate: Estimate | None, color: str) -> None:
    if estimate is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot(
            [estimate.low, estimate.high], [place, place], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt"
        )
    axes.plot([estimate.value], [place], "o", color=color, markersize=6)


# ---------------------------------------------------------------- heat maps


def _draw_heatmaps(report: Report, theme: Theme) -> Figure:
    panels = dict(list(_heatmap_panels(report).items())[:MAX_HEATMAPS])
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    teachers = list(dict.fromkeys(m.teacher for m in report.groups.methods if m.is_learned))
    samplers = list(dict.fromkeys(m.sampler for m in report.groups.methods if m.is_learned))
    room = 0.09 * max(map(len, teachers)) + 0.2
    panel = max(0.95 * len(samplers), 0.085 * max(map(len, panels)), 1.6)
    figure = new_figure(min(11.2, max(5.0, room + num_columns * panel)), (0.5 * len(teachers) + 0.85) * num_rows, theme)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False, sharey=True, sharex=True).flat)
    width = (figure.get_figwidth() - room) / (num_columns * len(samplers))
    is_tight = width < max(0.85, 0.075 * max(map(len, samplers)))
    colours = LinearSegmentedColormap.from_list("scores", theme.scale)
    for number, (one, (title, rows)) in enumerate(zip(axes, panels.items(), strict=False)):
        _draw_heatmap(one, title, rows, teachers, samplers, colours, theme, has_scores=report.has_scores)
        one.tick_params(labelbottom=number + num_columns >= len(panels))
        for label in one.get_xticklabels() if is_tight else ():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    return figure


def _heatmap_panels(report: Report) -> dict[str, list[Row]]:
    """Return the rows of each map; none where there is one teacher with one sampler, or nothing to show.

    With one combination of other settings there is a map of all environments and one of each. With several there is
    one for each of them: in scores for all environments together, in returns, which have no mean over environments,
    for each.
    """
    learned = [method for method in report.groups.methods if method.is_learned]
    if len({(method.teacher, method.sampler) for method in learned}) < 2:
        return {}
    others = list(dict.fromkeys(method.others for method in learned))
    tasks = list(dict.fromkeys(row.task for row in report.rows))
    if len(others) > 1 and report.has_scores and ALL_TASKS in tasks:
        tasks = [ALL_TASKS]
    panels = {}
    for task in tasks:
        for other in others:
            rows = [r for r in report.rows if r.task == task and r.method.is_learned and r.method.others == other]
            if any(_shown(row, report.has_scores) is not None for row in rows):
                names = [] if len(tasks) == 1 and other else ["all environments" if task == ALL_TASKS else task]
                panels[", ".join((*names, *other))] = rows
    return panels


def _shown(row: Row, has_scores: bool) -> float | None:
    """Return what a cell of a heat map shows: the score, or the return where there are no scores at all."""
    return (None if row.iqm is None else row.iqm.value) if has_scores else row.return_mean


def _draw_heatmap(
    axes: Axes,
    title: str,
    rows: Sequence[Row],
    teachers: Sequence[str],
    samplers: Sequence[str],
    colours: LinearSegmentedColormap,
    theme: Theme,
    has_scores: bool,
) -> None:
    values = np.full((len(teachers), len(samplers)), np.nan)
    texts = {}
    for row in rows:
        value = _shown(row, has_scores)
        if value is not None:
            place = (teachers.index(row.method.teacher), samplers.index(row.method.sampler))
            values[place] = value
            number = f"{value:.2f}" if has_scores else f"{value:.4g}"
            texts[place] = (number, f"{row.num_runs} run{'' if row.num_runs == 1 else 's'}")
    # Scores have ends of their own; returns are darker the better they are among those shown.
    low, high = (0.0, 1.0) if has_scores else (float(np.nanmin(values)), float(np.nanmax(values)))
    style_axes(axes, theme, title)
    axes.grid(visible=False)
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for (i, j), (number, runs) in texts.items():
        ink = ink_on(colours(float(np.clip((values[i, j] - low) / max(high - low, 1e-9), 0, 1))))
        axes.text(j, i - 0.08, number, ha="center", va="center", fontsize=10, fontweight="bold", color=ink)
        axes.text(j, i + 0.28, runs, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set_xticks(range(len(samplers)), [name or "no sampler" for name in samplers], color=theme.ink)
    axes.set_yticks(range(len(teachers)), teachers, color=theme.ink)
    cell_lines(axes, len(teachers), len(samplers), theme)


def _draw_pairs(report: Report, theme: Theme) -> Figure:
    methods = report.groups.methods
    names = [method.name for method in methods]
    size = 0.52 * len(methods)
    longest = max(map(len, names)) * 0.075
    figure = new_figure(max(6.0, size * 1.15 + longest + 0.8), max(2.6, size * 0.75 + longest * 0.72 + 0.5), theme)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("pairs", theme.diverging)
    style_axes(axes, theme, "P(row beats column)")
    axes.grid(visible=False)
    axes.imshow(np.ma.masked_invalid(report.pairs), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), share in np.ndenumerate(report.pairs):
        if np.isfinite(share):
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=7.5, color=ink_on(colours(float(share))))
    axes.set_xticks(range(len(names)), names, color=theme.ink, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    cell_lines(axes, len(names), len(names), theme)
    return figure


# ---------------------------------------------------------------- lines


def _draw_profiles(report: Report, theme: Theme) -> Figure:
    lines = []
    methods = list(report.profiles)
    panels, looks = panels_of(methods), looks_of(report.groups.methods, theme)
    figure, axes = panel_figure(panels, theme)
    for one, (sampler, members) in zip(axes, panels.items(), strict=True):
        style_axes(one, theme, sampler)
        for method in members:
            profile = report.profiles[method]
            (line,) = one.plot(profile.thresholds, profile.shares, linewidth=1.8, **looks[method])
            lines.append((method.line, line))
            if method.is_learned and profile.low is not None and profile.high is not None:
                one.fill_between(
                    profile.thresholds, profile.low, profile.high, color=looks[method]["color"], alpha=0.15, linewidth=0
                )
        one.set_ylim(-0.02, 1.02)
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
    label_axes(axes, "score (0: random actions, 1: true reward)", "runs that score more")
    add_legend(figure, lines, theme)
    return figure


@dataclass(frozen=True)
class _CurveDrawing:
    """Draws the curves of one axis and task."""

    axis: CurveAxis
    task: str
    curves: Mapping[Method, Curve]

    def __call__(self, report: Report, theme: Theme) -> Figure:
        panels, looks = panels_of(list(self.curves)), looks_of(report.groups.methods, theme)
        figure, axes = panel_figure(panels, theme)
        lines: list[tuple[str, Line2D]] = []
        references: list[tuple[str, Line2D]] = []
        for one, (sampler, members) in zip(axes, panels.items(), strict=True):
            style_axes(one, theme, sampler)
            lines += [(method.line, _draw_curve(one, self.curves[method], looks[method])) for method in members]
            references = self._draw_references(one, report, theme)
            one.xaxis.set_major_locator(MaxNLocator(5))
            if self.task == ALL_TASKS:
                one.xaxis.set_major_formatter(PercentFormatter(1.0))
        what = "env steps" if self.axis == "env_steps" else "labels"
        if self.task == ALL_TASKS:
            label_axes(axes, f"share of the {what}", "score")
        else:
            label_axes(axes, what, "true return")
        add_legend(figure, [*lines, *references], theme)
        return figure

    def _draw_references(self, axes: Axes, report: Report, theme: Theme) -> list[tuple[str, Line2D]]:
        """Draw where random actions and, over labels, the runs of the true reward end."""
        scales = [cell.scale for (task, _), cell in report.groups.cells.items() if task == self.task and cell.scale]
        if self.task == ALL_TASKS:
            return _draw_levels(axes, theme)
        return _draw_levels(axes, theme, scales[0].random, scales[0].true) if scales else []


def _draw_levels(axes: Axes, theme: Theme, random: float = 0.0, true: float = 1.0) -> list[tuple[str, Line2D]]:
    return [
        (name, axes.axhline(level, color=theme.muted, linewidth=1.0, linestyle=dash, zorder=1))
        for (name, dash), level in zip(REFERENCES.items(), (random, true), strict=True)
    ]


def _draw_curve(axes: Axes, curve: Curve, look: Mapping[str, Any]) -> Line2D:
    (line,) = axes.plot(curve.x, curve.y, linewidth=1.8, **look)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0)
    return line


def _budget_lines(report: Report) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each task and of methods that are the same but for the budget, by rising number of labels."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        if row.task != ALL_TASKS and row.method.is_learned and row.iqm is not None:
            others = [part for part in row.method.others if not part.startswith(("budget=", "feedback.budget="))]
            name = ", ".join(part for part in (row.method.teacher, row.method.sampler, *others) if part)
            lines.setdefault((row.task, name), []).append(row)
    return {key: sorted(rows, key=_num_labels) for key, rows in lines.items()}


def _num_labels(row: Row) -> float:
    return row.labels_mean or 0.0


def _draw_budgets(report: Report, theme: Theme) -> Figure:
    rows_of = _budget_lines(report)
    names = list(dict.fromkeys(name for _, name in rows_of))
    tasks = {task: None for task, _ in rows_of}
    lines: list[tuple[str, Line2D]] = []
    references: list[tuple[str, Line2D]] = []
    figure, axes = panel_figure(tasks, theme, has_same_x=False)
    for one, task in zip(axes, tasks, strict=True):
        style_axes(one, theme, task)
        most = max(_num_labels(row) for (of, _), rows in rows_of.items() if of == task for row in rows) or 1.0
        for number, name in enumerate(names):
            color, dash = theme.lines[number % len(theme.lines)], DASHES[number % len(DASHES)]
            rows = rows_of.get((task, name), [])
            # Side by side, so that intervals at the same number of labels can be told apart.
            shift = (number - (len(names) - 1) / 2) * 0.015 * most
            x = [_num_labels(row) + shift for row in rows]
            (line,) = one.plot(x, [row.iqm.value for row in rows if row.iqm], "o", color=color, linestyle=dash)
            lines.append((name, line))
            for place, row in zip(x, rows, strict=True):
                if row.iqm is not None and row.iqm.low is not None and row.iqm.high is not None:
                    ends = [row.iqm.low, row.iqm.high]
                    one.plot([place] * 2, ends, color=color, linewidth=5, alpha=0.3, solid_capstyle="butt")
        references = _draw_levels(one, theme)
        one.set_xlim(0, most * 1.08)
    label_axes(axes, "labels of the whole run", "score (interquartile mean)")
    add_legend(figure, [*lines, *references], theme)
    return figure
