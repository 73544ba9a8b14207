"""Charts of a study's report as SVG inside the page: no script, no style, colours by classes of the stylesheet.

Every chart says in its description what it shows, and each mark its own numbers; times are in UTC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from markupsafe import Markup, escape

from themis_ray.labeling.report import (
    AgreementReport,
    AnnotatorReport,
    ArmReport,
    Bucket,
    Share,
    StudyReport,
    TimesReport,
)

__all__ = [
    "Chart",
    "agreement_by_arm_chart",
    "agreement_chart",
    "position_chart",
    "rate_chart",
    "reliability_chart",
    "study_charts",
    "times_chart",
]

WIDTH = 480
HEIGHT = 236
TOP, RIGHT, BOTTOM, LEFT = 14, 14, 46, 56
ROW_HEIGHT = 22
MIN_ROWS, MAX_ROWS = 3, 20
# As high as the charts beside it.
MIN_PEOPLE = 14
MAX_TIME_TICKS = 5


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


def study_charts(report: StudyReport) -> list[Chart]:
    """Returns the charts of a study's page in the order in which they stand there."""
    charts = [
        rate_chart(report.rate, report.bucket_s),
        times_chart(report.times),
        agreement_chart(report.agreement, report.agreement_over_time),
    ]
    if sum(report.counts.choices.values()):
        charts += [reliability_chart(report.annotators), position_chart(report.position_bias, report.arms)]
    if report.arms:
        charts.append(agreement_by_arm_chart(report.arms))
    return charts


# ---------------------------------------------------------------- the charts


def rate_chart(rate: Sequence[Bucket], bucket_s: int) -> Chart:
    """Bars: answers per hour in each stretch of time."""
    title = "Answers per hour"
    if not rate:
        return Chart("rate", title, "No answers yet.")
    highest = max(bucket.answers_per_hour for bucket in rate)
    best = max(rate, key=lambda bucket: bucket.answers_per_hour)
    summary = (
        f"{_answers(sum(bucket.num_answers for bucket in rate))} in stretches of {_duration(bucket_s)}; "
        f"at most {_number(best.answers_per_hour)} per hour, from {_time(best.starts_at)} UTC."
    )
    plot = _Plot("rate", title, summary, x=(0, max(len(rate), 6)), y=(0, _nice_end(highest)))
    plot.y_axis(_ticks(0, plot.y[1]), "answers per hour")
    step = max(1, math.ceil(len(rate) / MAX_TIME_TICKS))
    is_long = bucket_s * len(rate) > 36 * 3600
    plot.x_axis(
        [
            (number + 0.5, _day(bucket.starts_at) if is_long else _clock(bucket.starts_at))
            for number, bucket in enumerate(rate)
            if number % step == 0
        ],
        f"{'day' if is_long else 'time'} (UTC), {_duration(bucket_s)} a bar",
    )
    for number, bucket in enumerate(rate):
        ends_at = bucket.starts_at + timedelta(seconds=bucket_s)
        said = f"{_time(bucket.starts_at)} to {_clock(ends_at)} UTC: {bucket.num_answers} answers"
        plot.bar(number, number + 1, bucket.answers_per_hour, f"{said}, {_number(bucket.answers_per_hour)} per hour")
    return plot.chart()


def times_chart(times: TimesReport) -> Chart:
    """Histogram: how long people took to answer."""
    title = "Time to answer"
    if not times.counts:
        return Chart("times", title, "No answers yet.")
    quantiles = {name: value or 0.0 for name, value in times.quantiles_s.items()}
    summary = (
        f"Half of the answers took {_seconds(quantiles['25%'])} to {_seconds(quantiles['75%'])}, "
        f"the median {_seconds(quantiles['50%'])}; one in twenty took longer than {_seconds(quantiles['95%'])}."
    )
    edges = times.edges_s
    step = edges[1] - edges[0] if len(edges) > 1 else max(1.0, edges[0] or 1.0)
    end = edges[-1] + step
    plot = _Plot("times", title, summary, x=(0, end), y=(0, _nice_end(max(times.counts))))
    plot.y_axis(_ticks(0, plot.y[1]), "answers")
    plot.x_axis([(tick, _plain(tick)) for tick in _ticks(0, end)], "seconds; the last bar holds all that are longer")
    for start, count in zip(edges, times.counts, strict=True):
        stop = f"{_plain(start + step)} s" if start < edges[-1] else "more"
        plot.bar(start, start + step, count, f"{_plain(start)} to {stop}: {_answers(count)}")
    plot.vertical(quantiles["50%"], f"median {_seconds(quantiles['50%'])}")
    return plot.chart()


def agreement_chart(overall: AgreementReport, points: Sequence[AgreementReport]) -> Chart:
    """Dots with whiskers: Krippendorff's alpha of queries in the order in which they were done."""
    title = "Agreement"
    if overall.alpha is None:
        why = "Not known yet: it needs queries that two people or more have answered, and answers that differ."
        return Chart("agreement", title, why)
    summary = (
        f"Krippendorff's alpha is {overall.alpha:.2f}{_interval(overall.low, overall.high)}, "
        f"over {_queries(overall.num_queries)}. 1 is full agreement, 0 is chance."
    )
    known = [point for point in points if point.alpha is not None]
    if len(known) < 2:
        known = [overall]
    lowest = min(point.alpha if point.low is None else point.low for point in known if point.alpha is not None)
    y_low = 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 5) / 5)
    plot = _Plot("agreement", title, summary, x=(0, len(known)), y=(y_low, 1), right=52)
    plot.y_axis(_ticks(y_low, 1), "alpha")
    ticks = []
    for number, point in enumerate(known):
        label = "" if point.until is None else _clock(point.until)
        if number % max(1, math.ceil(len(known) / MAX_TIME_TICKS)) == 0:
            ticks.append((number + 0.5, label))
    plot.x_axis(ticks, "queries in the order of their last answer (UTC)" if len(known) > 1 else "all queries")
    plot.horizontal(overall.alpha, f"all {overall.alpha:.2f}")
    for number, point in enumerate(known):
        if point.alpha is not None:
            until = "" if point.until is None else f" until {_time(point.until)} UTC"
            said = f"{_queries(point.num_queries)}{until}: {point.alpha:.2f}{_interval(point.low, point.high)}"
            plot.upright(number + 0.5, point.alpha, point.low, point.high, said)
    return plot.chart()


def agreement_by_arm_chart(arms: Sequence[ArmReport]) -> Chart:
    """Dots with whiskers: Krippendorff's alpha of each arm."""
    title = "Agreement by arm"
    known = [arm for arm in arms if arm.agreement.alpha is not None]
    if not known:
        return Chart("agreement-arms", title, "Not known yet.")
    summary = (
        "; ".join(
            f"{arm.arm} {arm.agreement.alpha or 0:.2f}{_interval(arm.agreement.low, arm.agreement.high)}"
            for arm in known
        )
        + "."
    )
    lowest = min(min(arm.agreement.alpha or 0, arm.agreement.low or 0) for arm in known)
    x_low = 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 5) / 5)
    rows = [
        _DotRow(
            arm.arm,
            arm.agreement.alpha or 0,
            arm.agreement.low,
            arm.agreement.high,
            _queries(arm.agreement.num_queries),
        )
        for arm in known
    ]
    return _dot_chart("agreement-arms", title, summary, rows, (x_low, 1), "alpha, 95 % interval", _two_digits, 0.0)


def position_chart(overall: Share, arms: Sequence[ArmReport]) -> Chart:
    """Dots with whiskers: how often the clip that was shown left was chosen."""
    title = "Position bias"
    if overall.share is None:
        return Chart("position", title, "No answers yet.")
    summary = (
        f"The clip shown left was chosen {_percent(overall.share)} of {overall.num_trials:,} times; without bias it is "
        f"50 %. {_bias_in_words(overall)}"
    )
    named = [("all", overall), *((arm.arm, arm.position_bias) for arm in arms)]
    rows = [
        _DotRow(name, share.share, share.low, share.high, f"{share.num_hits} of {share.num_trials}")
        for name, share in named
        if share.share is not None
    ]
    # As wide as it has to be and the same to both sides, so that one half stays in the middle.
    reach = max(abs(end - 0.5) for row in rows for end in (row.low or 0.5, row.high or 0.5))
    half = min(0.5, math.ceil(max(reach, 0.1) * 10) / 10)
    ends = (0.5 - half, 0.5 + half)
    return _dot_chart(
        "position", title, summary, rows, ends, "share of the clip shown left, 95 % interval", _percent, 0.5
    )


def reliability_chart(annotators: Sequence[AnnotatorReport]) -> Chart:
    """Dots: the reliability of each person, the lowest on top."""
    title = "Reliability"
    known = sorted(
        ((row.reliability, row) for row in annotators if row.reliability is not None),
        key=lambda pair: (pair[0], pair[1].annotator_id),
    )
    if not known:
        why = "Not known yet: a person needs 5 answers that can be compared with those of others or with gold."
        return Chart("reliability", title, why)
    values = [value for value, _ in known]
    summary = (
        f"Dawid-Skene, of {len(known)} of {len(annotators)} people: from {values[0]:.2f} to {values[-1]:.2f}, median "
        f"{values[len(values) // 2]:.2f}. 0.5 knows nothing, 1 is always right."
    )
    if len(known) > MAX_ROWS:
        summary += f" Shown are the {MAX_ROWS} lowest."
    rows = [
        _DotRow(row.annotator_id, value, None, None, f"weight {row.weight:.2f}, {_answers(row.num_answers)}")
        for value, row in known[:MAX_ROWS]
    ]
    ends = (min(0.4, math.floor(values[0] * 10) / 10), 1.0)
    return _dot_chart("reliability", title, summary, rows, ends, "reliability", _two_digits, 0.5, MIN_PEOPLE)


# ---------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _DotRow:
    """One row of a dot chart."""

    label: str
    value: float
    low: float | None
    high: float | None
    about: str


@dataclass
class _Plot:
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
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(self.left + share * (WIDTH - self.right - self.left), 2)

    def to_y(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - BOTTOM - share * (self.height - BOTTOM - TOP), 2)

    def y_axis(self, ticks: Sequence[float], label: str) -> None:
        for tick in ticks:
            at = self.to_y(tick)
            self._line("grid", self.left, at, WIDTH - self.right, at)
            self._text("tick end", self.left - 8, at + 4, _plain(tick))
        middle = (TOP + self.height - BOTTOM) / 2
        self.parts.append(
            Markup('<text class="axis-label middle" transform="translate(12 {}) rotate(-90)">{}</text>').format(
                middle, label
            )
        )

    def x_axis(self, ticks: Sequence[tuple[float, str]], label: str) -> None:
        base = self.height - BOTTOM
        self._line("base", self.left, base, WIDTH - self.right, base)
        for tick, text in ticks:
            self._line("tick-mark", self.to_x(tick), base, self.to_x(tick), base + 4)
            self._text("tick middle", self.to_x(tick), base + 17, text)
        self._text("axis-label middle", (self.left + WIDTH - self.right) / 2, self.height - 7, label)

    def bar(self, start: float, end: float, value: float, said: str) -> None:
        left, right, top = self.to_x(start), self.to_x(end), self.to_y(value)
        gap = min(1.5, (right - left) / 8)
        height = round(self.height - BOTTOM - top, 2)
        self.parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="1.5"><title>{}</title></rect>').format(
                round(left + gap, 2), top, round(max(0.5, right - left - 2 * gap), 2), height, said
            )
        )

    def vertical(self, value: float, label: str) -> None:
        at = self.to_x(value)
        self._line("mark", at, TOP, at, self.height - BOTTOM)
        is_right = at > (self.left + WIDTH) / 2
        self._text("mark-label end" if is_right else "mark-label", at - 6 if is_right else at + 6, TOP + 10, label)

    def horizontal(self, value: float, label: str) -> None:
        at = self.to_y(value)
        self._line("mark", self.left, at, WIDTH - self.right, at)
        self._text("mark-label", WIDTH - self.right + 5, at + 4, label)

    def upright(self, at: float, value: float, low: float | None, high: float | None, said: str) -> None:
        x = self.to_x(at)
        whisker = "" if low is None or high is None else _whisker(x, self.to_y(low), x, self.to_y(high))
        self._dot(x, self.to_y(value), whisker, said)

    def flat(self, at: float, row: _DotRow, said: str) -> None:
        low, high = row.low, row.high
        whisker = "" if low is None or high is None else _whisker(self.to_x(low), at, self.to_x(high), at)
        self._dot(self.to_x(row.value), at, whisker, said)

    def reference(self, value: float) -> None:
        self._line("mark", self.to_x(value), TOP, self.to_x(value), self.height - BOTTOM)

    def row_label(self, at: float, label: str) -> None:
        shown = label if len(label) <= 16 else f"{label[:15]}…"
        self._text("tick end", self.left - 8, at + 4, shown)
        self._line("grid", self.left, at, WIDTH - self.right, at)

    def chart(self) -> Chart:
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


def _dot_chart(
    key: str,
    title: str,
    summary: str,
    rows: Sequence[_DotRow],
    ends: tuple[float, float],
    label: str,
    write: Callable[[float], str],
    reference: float,
    min_rows: int = MIN_ROWS,
) -> Chart:
    """A row for each thing: its name, a dot, and a whisker where there is an interval."""
    longest = max(len(str(escape(row.label))) for row in rows)
    plot = _Plot(
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
    plot.x_axis([(tick, write(tick)) for tick in _ticks(*ends)], label)
    for number, row in enumerate(rows):
        said = f"{row.label}: {write(row.value)}{_interval(row.low, row.high, write)}, {row.about}"
        plot.flat(_row_at(number, len(rows), min_rows), row, said)
    return plot.chart()


def _row_at(number: int, num_rows: int, min_rows: int) -> float:
    """Returns the height of a row; few rows are spread."""
    room = ROW_HEIGHT * max(min_rows, num_rows) / num_rows
    return round(TOP + room * (number + 0.5), 2)


# ---------------------------------------------------------------- numbers as people write them


def _ticks(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Returns round numbers from low to high, at distances of 1, 2 or 5 times a power of ten."""
    span = high - low
    rough = span / num_wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _nice_end(highest: float) -> float:
    """Returns a round number that is not below the highest value, for an axis that begins at 0."""
    top = max(highest, 1.0)
    ticks = _ticks(0, top)
    step = ticks[1] - ticks[0]
    return math.ceil(top / step - 1e-9) * step


def _plain(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}".rstrip("0")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.1f} s" if value < 20 else f"{value:.0f} s"


def _duration(seconds: int) -> str:
    for size, name in ((7 * 86_400, "week"), (86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds} seconds"


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _queries(count: int) -> str:
    return f"{count:,} quer{'y' if count == 1 else 'ies'}"


def _interval(low: float | None, high: float | None, write: Callable[[float], str] = _two_digits) -> str:
    return "" if low is None or high is None else f" ({write(low)} to {write(high)})"


def _bias_in_words(share: Share) -> str:
    if share.p_value is None:
        return ""
    if share.p_value >= 0.05:
        return f"That may be chance (p = {share.p_value:.2f})."
    written = "p < 0.001" if share.p_value < 0.001 else f"p = {share.p_value:.3f}"
    return f"That is more than chance ({written})."


def _clock(at: datetime) -> str:
    return f"{at:%H:%M}"


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b}"


def _time(at: datetime) -> str:
    return f"{_day(at)} {_clock(at)}"
