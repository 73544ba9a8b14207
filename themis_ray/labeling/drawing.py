"""Charts as SVG inside a page: axes, bars, dots with whiskers, and numbers as people write them.

No script and no style: colours are classes of the stylesheet. Every chart says in its description what it shows, and
each mark its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

__all__ = [
    "Chart",
    "DotRow",
    "Plot",
    "dot_chart",
    "duration",
    "interval_text",
    "nice_end",
    "number_text",
    "percent",
    "plain",
    "seconds_text",
    "ticks_between",
    "two_digits",
]

WIDTH = 480
HEIGHT = 236
TOP, RIGHT, BOTTOM, LEFT = 14, 14, 46, 56
ROW_HEIGHT = 22
MIN_ROWS = 3


@dataclass(frozen=True)
class Chart:
    """A chart and the words around it.

    Attributes:
        key: Unique on the page; names its elements.
        title: What is shown.
        summary: What there is to see, in a sentence with numbers.
        svg: The picture; empty where there is nothing to draw yet.
    """

    key: str
    title: str
    summary: str
    svg: str = ""


@dataclass(frozen=True)
class DotRow:
    """One row of a dot chart."""

    label: str
    value: float
    low: float | None
    high: float | None
    about: str


@dataclass
class Plot:
    """An area with two linear axes.

    Attributes:
        key: See `Chart`.
        title: See `Chart`.
        summary: See `Chart`.
        x: Ends of the horizontal axis.
        y: Ends of the vertical axis.
        height: Of the picture.
        left: Where the area begins.
        right: Room beside it.
        parts: What was drawn so far.
    """

    key: str
    title: str
    summary: str
    x: tuple[float, float]
    y: tuple[float, float]
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    parts: list[Markup] = field(default_factory=list)

    def to_x(self, value: float) -> float:
        """Returns where a value of the horizontal axis is."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(self.left + share * (WIDTH - self.right - self.left), 2)

    def to_y(self, value: float) -> float:
        """Returns where a value of the vertical axis is."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - BOTTOM - share * (self.height - BOTTOM - TOP), 2)

    def y_axis(self, ticks: Sequence[float], label: str) -> None:
        """Draws a line across for each tick, its number, and the axis' label."""
        for tick in ticks:
            at = self.to_y(tick)
            self._line("grid", self.left, at, WIDTH - self.right, at)
            self._text("tick end", self.left - 8, at + 4, plain(tick))
        middle = (TOP + self.height - BOTTOM) / 2
        self.parts.append(
            Markup('<text class="axis-label middle" transform="translate(12 {}) rotate(-90)">{}</text>').format(
                middle, label
            )
        )

    def x_axis(self, ticks: Sequence[tuple[float, str]], label: str) -> None:
        """Draws the base, ticks with their texts, and the axis' label."""
        base = self.height - BOTTOM
        self._line("base", self.left, base, WIDTH - self.right, base)
        for tick, text in ticks:
            self._line("tick-mark", self.to_x(tick), base, self.to_x(tick), base + 4)
            self._text("tick middle", self.to_x(tick), base + 17, text)
        self._text("axis-label middle", (self.left + WIDTH - self.right) / 2, self.height - 7, label)

    def bar(self, start: float, end: float, value: float, said: str) -> None:
        """Draws a bar from the base to a value."""
        left, right, top = self.to_x(start), self.to_x(end), self.to_y(value)
        gap = min(1.5, (right - left) / 8)
        height = round(self.height - BOTTOM - top, 2)
        self.parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="1.5"><title>{}</title></rect>').format(
                round(left + gap, 2), top, round(max(0.5, right - left - 2 * gap), 2), height, said
            )
        )

    def vertical(self, value: float, label: str) -> None:
        """Draws a dashed line at a value of the horizontal axis."""
        at = self.to_x(value)
        self._line("mark", at, TOP, at, self.height - BOTTOM)
        is_right = at > (self.left + WIDTH) / 2
        self._text("mark-label end" if is_right else "mark-label", at - 6 if is_right else at + 6, TOP + 10, label)

    def horizontal(self, value: float, label: str) -> None:
        """Draws a dashed line at a value of the vertical axis."""
        at = self.to_y(value)
        self._line("mark", self.left, at, WIDTH - self.right, at)
        self._text("mark-label", WIDTH - self.right + 5, at + 4, label)

    def upright(self, at: float, value: float, low: float | None, high: float | None, said: str) -> None:
        """Draws a dot with an upright whisker."""
        x = self.to_x(at)
        whisker = "" if low is None or high is None else _whisker(x, self.to_y(low), x, self.to_y(high))
        self._dot(x, self.to_y(value), whisker, said)

    def flat(self, at: float, row: DotRow, said: str) -> None:
        """Draws a dot with a flat whisker."""
        low, high = row.low, row.high
        whisker = "" if low is None or high is None else _whisker(self.to_x(low), at, self.to_x(high), at)
        self._dot(self.to_x(row.value), at, whisker, said)

    def reference(self, value: float) -> None:
        """Draws a dashed line that has no label."""
        self._line("mark", self.to_x(value), TOP, self.to_x(value), self.height - BOTTOM)

    def row_label(self, at: float, label: str) -> None:
        """Names a row and draws its line."""
        shown = label if len(label) <= 16 else f"{label[:15]}…"
        self._text("tick end", self.left - 8, at + 4, shown)
        self._line("grid", self.left, at, WIDTH - self.right, at)

    def chart(self) -> Chart:
        """Returns the chart."""
        svg = Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
            '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>{}</svg>'
        ).format(
            WIDTH,
            self.height,
            *[self.key] * 3,
            self.title,
            self.key,
            self.summary,
            Markup("").join(self.parts),
        )
        return Chart(self.key, self.title, self.summary, svg)

    def _dot(self, x: float, y: float, whisker: str | Markup, said: str) -> None:
        self.parts.append(
            Markup('<g class="point"><title>{}</title>{}<circle class="dot" cx="{}" cy="{}" r="4.5"/></g>').format(
                said, whisker, x, y
            )
        )

    def _line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2))

    def _text(self, kind: str, x: float, y: float, text: str) -> None:
        self.parts.append(Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, x, y, text))


def _whisker(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="whisker" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x1, y1, x2, y2)


def dot_chart(
    key: str,
    title: str,
    summary: str,
    rows: Sequence[DotRow],
    ends: tuple[float, float],
    label: str,
    write: Callable[[float], str],
    reference: float,
    min_rows: int = MIN_ROWS,
) -> Chart:
    """A row for each thing: its name, a dot, and a whisker where there is an interval."""
    longest = max(len(str(escape(row.label))) for row in rows)
    plot = Plot(
        key,
        title,
        summary,
        x=ends,
        y=(0, 1),
        height=TOP + BOTTOM + ROW_HEIGHT * max(min_rows, len(rows)),
        left=min(140, max(LEFT, 18 + 7 * min(16, longest))),
    )
    for number, row in enumerate(rows):
        plot.row_label(_row_at(number, len(rows), min_rows), row.label)
    if ends[0] < reference < ends[1]:
        plot.reference(reference)
    plot.x_axis([(tick, write(tick)) for tick in ticks_between(*ends)], label)
    for number, row in enumerate(rows):
        said = f"{row.label}: {write(row.value)}{interval_text(row.low, row.high, write)}, {row.about}"
        plot.flat(_row_at(number, len(rows), min_rows), row, said)
    return plot.chart()


def _row_at(number: int, num_rows: int, min_rows: int) -> float:
    """Returns the height of a row; few rows are spread."""
    room = ROW_HEIGHT * max(min_rows, num_rows) / num_rows
    return round(TOP + room * (number + 0.5), 2)


# ---------------------------------------------------------------- numbers as people write them


def ticks_between(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Returns round numbers from low to high, at distances of 1, 2 or 5 times a power of ten."""
    span = high - low
    rough = span / num_wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def nice_end(highest: float) -> float:
    """Returns a round number that is not below the highest value, for an axis that begins at 0."""
    top = max(highest, 1.0)
    ticks = ticks_between(0, top)
    step = ticks[1] - ticks[0]
    return math.ceil(top / step - 1e-9) * step


def plain(value: float) -> str:
    """Writes a number of an axis."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}".rstrip("0")


def number_text(value: float) -> str:
    """Writes a number with as many digits as matter."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def two_digits(value: float) -> str:
    """Writes a number between -1 and 1."""
    return f"{value:.2f}"


def percent(share: float) -> str:
    """Writes a share."""
    return f"{100 * share:.0f} %"


def seconds_text(value: float) -> str:
    """Writes a time that people take."""
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.1f} s" if value < 20 else f"{value:.0f} s"


def duration(seconds: int) -> str:
    """Writes a length of time in its largest whole unit."""
    for size, name in ((7 * 86_400, "week"), (86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds} seconds"


def interval_text(low: float | None, high: float | None, write: Callable[[float], str] = two_digits) -> str:
    """Writes an interval in brackets; nothing where there is none."""
    return "" if low is None or high is None else f" ({write(low)} to {write(high)})"
