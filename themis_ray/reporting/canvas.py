"""What all pictures of a report share: themes for light and dark paper, panels, legends, and PNG files with names."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from themis_ray.plots import BLUE, GREEN, ORANGE, PURPLE
from themis_ray.reporting.groups import Method

__all__ = [
    "DARK",
    "DASHES",
    "LIGHT",
    "MAX_COLUMNS",
    "Theme",
    "add_legend",
    "cell_lines",
    "file_name",
    "free_name",
    "ink_on",
    "label_axes",
    "looks_of",
    "new_figure",
    "panel_figure",
    "panels_of",
    "render",
    "style_axes",
]

DPI = 144
CSS_PIXELS_PER_INCH = 100
MAX_COLUMNS = 3
# File systems take 255 bytes, and a letter may be four.
MAX_NAME_LENGTH = 50
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


# ---------------------------------------------------------------- files


def render(draw: Callable[[Theme], Figure]) -> tuple[bytes, bytes, int]:
    """Return a picture as PNG for light and for dark paper, and how wide it is shown, in CSS pixels."""
    # Names of teachers and folders are shown as they are: a dollar sign in one begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        light, dark = draw(LIGHT), draw(DARK)
        width = round(light.get_figwidth() * CSS_PIXELS_PER_INCH)
        return _png(light, LIGHT), _png(dark, DARK), width


def _png(figure: Figure, theme: Theme) -> bytes:
    """Return a picture with 256 colours, which charts do not exceed by much, at a third of the size."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=theme.paper)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True, dpi=(DPI, DPI))
    return small.getvalue()


def file_name(text: str) -> str:
    """Return a text as a part of a file's name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:MAX_NAME_LENGTH].rstrip("-")


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: itself, or with the first number from 2 that makes it so."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


# ---------------------------------------------------------------- figures


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI, facecolor=theme.paper)


def panel_figure(panels: Mapping[str, Any], theme: Theme, *, has_same_x: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes for each panel, at most `MAX_COLUMNS` side by side."""
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(max(7.0, 3.6 * num_columns + 0.4), 2.75 * num_rows + 0.55, theme)
    grid = figure.subplots(num_rows, num_columns, sharex=has_same_x, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    return figure, axes[: len(panels)]


def panels_of(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Return the methods of each sampler; those without one, such as the true reward, stand in every panel."""
    samplers = list(dict.fromkeys(method.sampler for method in methods if method.sampler))
    if not samplers:
        return {"": list(methods)}
    return {sampler: [m for m in methods if m.sampler in (sampler, "")] for sampler in samplers}


# ---------------------------------------------------------------- style


def style_axes(axes: Axes, theme: Theme, title: str = "") -> None:
    """Give axes the colours of a theme, and a title."""
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


def cell_lines(axes: Axes, num_rows: int, num_columns: int, theme: Theme) -> None:
    """Part the cells of a matrix by lines of the paper's colour."""
    axes.set_xticks(np.arange(-0.5, num_columns), minor=True)
    axes.set_yticks(np.arange(-0.5, num_rows), minor=True)
    axes.grid(which="minor", color=theme.paper, linewidth=2)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def ink_on(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever is read better on a colour."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111418" if luminance > 0.18 else "#ffffff"


def looks_of(methods: Sequence[Method], theme: Theme) -> dict[Method, dict[str, Any]]:
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


# ---------------------------------------------------------------- words


def label_axes(axes: Sequence[Axes], x: str, y: str) -> None:
    """Name the axes once: x below the panels that have none below them, y at the left."""
    for number, one in enumerate(axes):
        if number + MAX_COLUMNS >= len(axes):
            one.set_xlabel(x)
            one.tick_params(labelbottom=True)
        if number % MAX_COLUMNS == 0:
            one.set_ylabel(y)


def add_legend(figure: Figure, lines: Iterable[tuple[str, Line2D]], theme: Theme) -> None:
    """Name lines below the figure, each name once.

    The names are given here and not asked of the lines: matplotlib takes one that begins with _ for none.
    """
    handles = dict(lines)
    num_columns = max(1, int(figure.get_figwidth() / (0.085 * max(map(len, handles)) + 0.6)))
    num_rows = math.ceil(len(handles) / num_columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (num_rows - 1))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(len(handles), num_columns),
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
        handlelength=2.6,
    )
