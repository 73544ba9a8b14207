"""Pictures of a report, for light and for dark paper.

Colour is what is compared (teacher, or what else differs), a panel is a sampler; dashes repeat what colour says.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from themis_ray.plots import BLUE, GREEN, ORANGE, PURPLE
from themis_ray.reporting.curves import Curve, CurveAxis
from themis_ray.reporting.groups import Method
from themis_ray.reporting.report import ALL_TASKS, Report, Row
from themis_ray.reporting.statistics import Estimate

__all__ = ["DARK", "LIGHT", "Picture", "Theme", "draw_report"]

DPI = 144
CSS_PIXELS_PER_INCH = 100
MAX_COLUMNS = 3
# A matrix of more would be a picture of nothing.
MAX_COMPARED = 24
MAX_HEATMAPS = 12
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Theme:
    """Colours of a kind of paper; the lines' are Okabe and Ito's, told apart by colour-blind people too."""

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]
    scale: tuple[str, ...]
    diverging: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1b2126",
    muted="#57606a",
    grid="#dcdcd5",
    lines=(BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#7A4B00"),
    scale=("#fbf6e3", "#9fd0c0", "#2f8f9a", "#134a78"),
    diverging=("#b45f06", "#f3d9b8", "#f7f7f5", "#bcd5ef", "#0f5aa6"),
)
DARK = Theme(
    paper="#1b2023",
    ink="#e9edf0",
    muted="#a6b0b9",
    grid="#353d43",
    lines=("#56B4E9", "#F28E4B", "#2BC49A", "#E59CC8", "#F0C541", "#8FA8FF", "#C9A27A"),
    scale=("#262c30", "#245a68", "#2fa39b", "#cdeccf"),
    diverging=("#f59b2e", "#6a4a22", "#2a3035", "#24507c", "#5aa9f0"),
)


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
    pictures = []
    for key, title, text, draw in _plans(report):
        light, dark = (draw(report, theme) for theme in (LIGHT, DARK))
        width = round(light.get_figwidth() * CSS_PIXELS_PER_INCH)
        pictures.append(Picture(key, title, text, _png(light, LIGHT), _png(dark, DARK), width))
    return pictures


def _plans(report: Report) -> Iterator[tuple[str, str, str, Any]]:
    learned = [method for method in report.groups.methods if method.is_learned]
    if report.has_scores:
        yield (
            "scores",
            "Scores",
            "Dots are the interquartile mean of the scores and the optimality gap, bars their 95 % intervals.",
            _draw_scores,
        )
    if len({(method.teacher, method.sampler) for method in learned}) > 1:
        shown = "Interquartile mean of the scores" if report.has_scores else "Mean return of the final evaluations"
        yield ("heatmap", "Teacher and sampler", f"{shown}; below it the number of runs.", _draw_heatmaps)
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


def file_name(text: str) -> str:
    """Return a text as a part of a file's name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in text.lower())
    return "-".join(part for part in kept.split("-") if part)


def _png(figure: Figure, theme: Theme) -> bytes:
    """Return a picture with 256 colours, which charts do not exceed by much, at a third of the size."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=theme.paper)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True, dpi=(DPI, DPI))
    return small.getvalue()


# ---------------------------------------------------------------- style


def _figure(width: float, height: float, theme: Theme) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI, facecolor=theme.paper)


def _style(axes: Axes, theme: Theme, title: str = "") -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=theme.ink)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def _looks(methods: Sequence[Method], theme: Theme) -> dict[Method, dict[str, Any]]:
    """Return colour and dash of each method: one for all samplers of the same teacher and settings."""
    names = list(dict.fromkeys(method.line for method in methods if method.is_learned))
    true = list(dict.fromkeys(method.line for method in methods if not method.is_learned))
    looks = {}
    for method in methods:
        if method.is_learned:
            number = names.index(method.line)
            color, dash = theme.lines[number % len(theme.lines)], DASHES[number % len(DASHES)]
        else:
            color, dash = theme.ink, DASHES[true.index(method.line) % len(DASHES)]
        looks[method] = {"color": color, "linestyle": dash}
    return looks


def _panels(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Return the methods of each sampler; those without one, such as the true reward, stand in every panel."""
    samplers = list(dict.fromkeys(method.sampler for method in methods if method.sampler))
    if not samplers:
        return {"": list(methods)}
    return {sampler: [m for m in methods if m.sampler in (sampler, "")] for sampler in samplers}


def _panel_figure(panels: Mapping[str, Any], theme: Theme, *, has_same_x: bool = True) -> tuple[Figure, list[Axes]]:
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = _figure(max(7.0, 3.6 * num_columns + 0.4), 2.75 * num_rows + 0.55, theme)
    grid = figure.subplots(num_rows, num_columns, sharex=has_same_x, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    return figure, axes[: len(panels)]


def _label(axes: Sequence[Axes], x: str, y: str) -> None:
    """Name the axes once: x below the panels that have none below them, y at the left."""
    for number, one in enumerate(axes):
        if number + MAX_COLUMNS >= len(axes):
            one.set_xlabel(x)
            one.tick_params(labelbottom=True)
        if number % MAX_COLUMNS == 0:
            one.set_ylabel(y)


def _legend(figure: Figure, axes: Sequence[Axes], theme: Theme) -> None:
    handles = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    num_columns = max(1, int(figure.get_figwidth() / (0.085 * max(map(len, handles)) + 0.6)))
    num_rows = math.ceil(len(handles) / num_columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (num_rows - 1))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), num_columns),
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
        handlelength=2.6,
    )


# ---------------------------------------------------------------- dots


def _draw_scores(report: Report, theme: Theme) -> Figure:
    rows = [row for row in report.summary_rows if row.iqm is not None]
    several = len({row.task for row in rows}) > 1
    looks = _looks(report.groups.methods, theme)
    figure = _figure(10.5, 1.1 + 0.3 * len(rows), theme)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title in ((left, "Interquartile mean of the scores"), (right, "Optimality gap")):
        _style(axes, theme, title)
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
    panels = _heatmap_panels(report)
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    teachers = list(dict.fromkeys(m.teacher for m in report.groups.methods if m.is_learned))
    samplers = list(dict.fromkeys(m.sampler for m in report.groups.methods if m.is_learned))
    room = 0.09 * max(map(len, teachers)) + 0.2
    panel = max(0.95 * len(samplers), 0.085 * max(map(len, panels)), 1.6)
    figure = _figure(min(11.2, max(5.0, room + num_columns * panel)), (0.5 * len(teachers) + 0.85) * num_rows, theme)
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
    """Return the rows of each map: all environments and each, or one for every combination of other settings."""
    others = list(dict.fromkeys(m.others for m in report.groups.methods if m.is_learned))
    tasks = list(dict.fromkeys(row.task for row in report.rows))
    panels = {}
    for task in tasks if len(others) == 1 or len(tasks) == 1 else [ALL_TASKS]:
        for other in others:
            title = ", ".join(other) or ("all environments" if task == ALL_TASKS else task)
            rows = [r for r in report.rows if r.task == task and r.method.is_learned and r.method.others == other]
            if any(_shown(row, report.has_scores) is not None for row in rows):
                panels[title] = rows
    return dict(list(panels.items())[:MAX_HEATMAPS])


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
    _style(axes, theme, title)
    axes.grid(visible=False)
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for (i, j), (number, runs) in texts.items():
        ink = _ink_on(colours(float(np.clip((values[i, j] - low) / max(high - low, 1e-9), 0, 1))))
        axes.text(j, i - 0.08, number, ha="center", va="center", fontsize=10, fontweight="bold", color=ink)
        axes.text(j, i + 0.28, runs, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set_xticks(range(len(samplers)), [name or "no sampler" for name in samplers], color=theme.ink)
    axes.set_yticks(range(len(teachers)), teachers, color=theme.ink)
    _white_lines(axes, len(teachers), len(samplers), theme)


def _white_lines(axes: Axes, num_rows: int, num_columns: int, theme: Theme) -> None:
    axes.set_xticks(np.arange(-0.5, num_columns), minor=True)
    axes.set_yticks(np.arange(-0.5, num_rows), minor=True)
    axes.grid(which="minor", color=theme.paper, linewidth=2)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _ink_on(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever is read better on a colour."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111418" if luminance > 0.18 else "#ffffff"


def _draw_pairs(report: Report, theme: Theme) -> Figure:
    methods = report.groups.methods
    names = [method.name for method in methods]
    size = 0.52 * len(methods)
    longest = max(map(len, names)) * 0.075
    figure = _figure(max(6.0, size * 1.15 + longest + 0.8), max(2.6, size * 0.75 + longest * 0.72 + 0.5), theme)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("pairs", theme.diverging)
    _style(axes, theme, "P(row beats column)")
    axes.grid(visible=False)
    axes.imshow(np.ma.masked_invalid(report.pairs), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), share in np.ndenumerate(report.pairs):
        if np.isfinite(share):
            axes.text(
                j, i, f"{share:.2f}", ha="center", va="center", fontsize=7.5, color=_ink_on(colours(float(share)))
            )
    axes.set_xticks(range(len(names)), names, color=theme.ink, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    _white_lines(axes, len(names), len(names), theme)
    return figure


# ---------------------------------------------------------------- lines


def _draw_profiles(report: Report, theme: Theme) -> Figure:
    methods = list(report.profiles)
    panels, looks = _panels(methods), _looks(report.groups.methods, theme)
    figure, axes = _panel_figure(panels, theme)
    for one, (sampler, members) in zip(axes, panels.items(), strict=True):
        _style(one, theme, sampler)
        for method in members:
            profile = report.profiles[method]
            one.plot(profile.thresholds, profile.shares, label=method.line, linewidth=1.8, **looks[method])
            if method.is_learned and profile.low is not None and profile.high is not None:
                one.fill_between(
                    profile.thresholds, profile.low, profile.high, color=looks[method]["color"], alpha=0.15, linewidth=0
                )
        one.set_ylim(-0.02, 1.02)
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
    _label(axes, "score (0: random actions, 1: true reward)", "runs that score more")
    _legend(figure, axes, theme)
    return figure


@dataclass(frozen=True)
class _CurveDrawing:
    """Draws the curves of one axis and task."""

    axis: CurveAxis
    task: str
    curves: Mapping[Method, Curve]

    def __call__(self, report: Report, theme: Theme) -> Figure:
        panels, looks = _panels(list(self.curves)), _looks(report.groups.methods, theme)
        figure, axes = _panel_figure(panels, theme)
        for one, (sampler, members) in zip(axes, panels.items(), strict=True):
            _style(one, theme, sampler)
            for method in members:
                _draw_curve(one, method, self.curves[method], looks[method])
            self._draw_references(one, report, theme)
            one.xaxis.set_major_locator(MaxNLocator(5))
            if self.task == ALL_TASKS:
                one.xaxis.set_major_formatter(PercentFormatter(1.0))
        what = "env steps" if self.axis == "env_steps" else "labels"
        if self.task == ALL_TASKS:
            _label(axes, f"share of the {what}", "score")
        else:
            _label(axes, what, "true return")
        _legend(figure, axes, theme)
        return figure

    def _draw_references(self, axes: Axes, report: Report, theme: Theme) -> None:
        """Draw where random actions and, over labels, the runs of the true reward end."""
        scales = [cell.scale for (task, _), cell in report.groups.cells.items() if task == self.task and cell.scale]
        levels = {"random actions": 0.0, "true reward, final": 1.0}
        if self.task != ALL_TASKS:
            if not scales:
                return
            levels = {"random actions": scales[0].random, "true reward, final": scales[0].true}
        for (label, level), dash in zip(levels.items(), (":", "--"), strict=True):
            axes.axhline(level, color=theme.muted, linewidth=1.0, linestyle=dash, label=label, zorder=1)


def _draw_curve(axes: Axes, method: Method, curve: Curve, look: Mapping[str, Any]) -> None:
    axes.plot(curve.x, curve.y, label=method.line, linewidth=1.8, **look)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0)


def _budget_lines(report: Report) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each task and of methods that are the same but for the budget, by rising number of labels."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        if row.task != ALL_TASKS and row.method.is_learned and row.iqm is not None:
            others = [part for part in row.method.others if not part.startswith(("budget=", "feedback.budget="))]
            name = ", ".join(part for part in (row.method.teacher, row.method.sampler, *others) if part)
            lines.setdefault((row.task, name), []).append(row)
    return {key: sorted(rows, key=lambda row: row.labels_mean) for key, rows in lines.items()}


def _draw_budgets(report: Report, theme: Theme) -> Figure:
    lines = _budget_lines(report)
    names = list(dict.fromkeys(name for _, name in lines))
    tasks = {task: None for task, _ in lines}
    figure, axes = _panel_figure(tasks, theme, has_same_x=False)
    for one, task in zip(axes, tasks, strict=True):
        _style(one, theme, task)
        most = max(row.labels_mean for (of, _), rows in lines.items() if of == task for row in rows) or 1.0
        for number, name in enumerate(names):
            color, dash = theme.lines[number % len(theme.lines)], DASHES[number % len(DASHES)]
            rows = lines.get((task, name), [])
            # Side by side, so that intervals at the same number of labels can be told apart.
            shift = (number - (len(names) - 1) / 2) * 0.015 * most
            x = [row.labels_mean + shift for row in rows]
            one.plot(x, [row.iqm.value for row in rows if row.iqm], "o", color=color, linestyle=dash, label=name)
            for place, row in zip(x, rows, strict=True):
                if row.iqm is not None and row.iqm.low is not None and row.iqm.high is not None:
                    ends = [row.iqm.low, row.iqm.high]
                    one.plot([place] * 2, ends, color=color, linewidth=5, alpha=0.3, solid_capstyle="butt")
        one.axhline(0.0, color=theme.muted, linewidth=1.0, linestyle=":", label="random actions", zorder=1)
        one.axhline(1.0, color=theme.muted, linewidth=1.0, linestyle="--", label="true reward, final", zorder=1)
        one.set_xlim(0, most * 1.08)
    _label(axes, "labels of the whole run", "score (interquartile mean)")
    _legend(figure, axes, theme)
    return figure
