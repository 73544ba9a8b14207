"""Charts of a study's report; times are in UTC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from themis_ray.labeling.drawing import (
    Chart,
    DotRow,
    Plot,
    dot_chart,
    duration,
    interval_text,
    nice_end,
    number_text,
    percent,
    plain,
    seconds_text,
    ticks_between,
    two_digits,
)
from themis_ray.labeling.report_parts import (
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

MAX_ROWS = 20
# As high as the charts beside it.
MIN_PEOPLE = 14
MAX_TIME_TICKS = 5


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
        f"{_answers(sum(bucket.num_answers for bucket in rate))} in stretches of {duration(bucket_s)}; "
        f"at most {number_text(best.answers_per_hour)} per hour, from {_time(best.starts_at)} UTC."
    )
    plot = Plot("rate", title, summary, x=(0, max(len(rate), 6)), y=(0, nice_end(highest)))
    plot.y_axis(ticks_between(0, plot.y[1]), "answers per hour")
    step = max(1, math.ceil(len(rate) / MAX_TIME_TICKS))
    is_long = bucket_s * len(rate) > 36 * 3600
    plot.x_axis(
        [
            (number + 0.5, _day(bucket.starts_at) if is_long else _clock(bucket.starts_at))
            for number, bucket in enumerate(rate)
            if number % step == 0
        ],
        f"{'day' if is_long else 'time'} (UTC), {duration(bucket_s)} a bar",
    )
    for number, bucket in enumerate(rate):
        ends_at = bucket.starts_at + timedelta(seconds=bucket_s)
        said = f"{_time(bucket.starts_at)} to {_clock(ends_at)} UTC: {bucket.num_answers} answers"
        plot.bar(
            number, number + 1, bucket.answers_per_hour, f"{said}, {number_text(bucket.answers_per_hour)} per hour"
        )
    return plot.chart()


def times_chart(times: TimesReport) -> Chart:
    """Histogram: how long people took to answer."""
    title = "Time to answer"
    if not times.counts:
        return Chart("times", title, "No answers yet.")
    quantiles = {name: value or 0.0 for name, value in times.quantiles_s.items()}
    summary = (
        f"Half of the answers took {seconds_text(quantiles['25%'])} to {seconds_text(quantiles['75%'])}, "
        f"the median {seconds_text(quantiles['50%'])}; one in twenty took longer than {seconds_text(quantiles['95%'])}."
    )
    edges = times.edges_s
    step = edges[1] - edges[0] if len(edges) > 1 else max(1.0, edges[0] or 1.0)
    end = edges[-1] + step
    plot = Plot("times", title, summary, x=(0, end), y=(0, nice_end(max(times.counts))))
    plot.y_axis(ticks_between(0, plot.y[1]), "answers")
    plot.x_axis(
        [(tick, plain(tick)) for tick in ticks_between(0, end)], "seconds; the last bar holds all that are longer"
    )
    for start, count in zip(edges, times.counts, strict=True):
        stop = f"{plain(start + step)} s" if start < edges[-1] else "more"
        plot.bar(start, start + step, count, f"{plain(start)} to {stop}: {_answers(count)}")
    plot.vertical(quantiles["50%"], f"median {seconds_text(quantiles['50%'])}")
    return plot.chart()


def agreement_chart(overall: AgreementReport, points: Sequence[AgreementReport]) -> Chart:
    """Dots with whiskers: Krippendorff's alpha of queries in the order in which they were done."""
    title = "Agreement"
    if overall.alpha is None:
        why = "Not known yet: it needs queries that two people or more have answered, and answers that differ."
        return Chart("agreement", title, why)
    summary = (
        f"Krippendorff's alpha is {overall.alpha:.2f}{interval_text(overall.low, overall.high)}, "
        f"over {_queries(overall.num_queries)}. 1 is full agreement, 0 is chance."
    )
    known = [point for point in points if point.alpha is not None]
    if len(known) < 2:
        known = [overall]
    lowest = min(point.alpha if point.low is None else point.low for point in known if point.alpha is not None)
    y_low = 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 5) / 5)
    plot = Plot("agreement", title, summary, x=(0, len(known)), y=(y_low, 1), right=52)
    plot.y_axis(ticks_between(y_low, 1), "alpha")
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
            said = f"{_queries(point.num_queries)}{until}: {point.alpha:.2f}{interval_text(point.low, point.high)}"
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
            f"{arm.arm} {arm.agreement.alpha or 0:.2f}{interval_text(arm.agreement.low, arm.agreement.high)}"
            for arm in known
        )
        + "."
    )
    lowest = min(min(arm.agreement.alpha or 0, arm.agreement.low or 0) for arm in known)
    x_low = 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 5) / 5)
    rows = [
        DotRow(
            arm.arm,
            arm.agreement.alpha or 0,
            arm.agreement.low,
            arm.agreement.high,
            _queries(arm.agreement.num_queries),
        )
        for arm in known
    ]
    return dot_chart("agreement-arms", title, summary, rows, (x_low, 1), "alpha, 95 % interval", two_digits, 0.0)


def position_chart(overall: Share, arms: Sequence[ArmReport]) -> Chart:
    """Dots with whiskers: how often the clip that was shown left was chosen."""
    title = "Position bias"
    if overall.share is None:
        return Chart("position", title, "No answers yet.")
    summary = (
        f"The clip shown left was chosen {percent(overall.share)} of {overall.num_trials:,} times; without bias it is "
        f"50 %. {_bias_in_words(overall)}"
    )
    named = [("all", overall), *((arm.arm, arm.position_bias) for arm in arms)]
    rows = [
        DotRow(name, share.share, share.low, share.high, f"{share.num_hits} of {share.num_trials}")
        for name, share in named
        if share.share is not None
    ]
    # As wide as it has to be and the same to both sides, so that one half stays in the middle.
    reach = max(abs(end - 0.5) for _, share in named for end in (share.low, share.high) if share.num_trials)
    half = min(0.5, math.ceil(max(reach, 0.1) * 10) / 10)
    ends = (0.5 - half, 0.5 + half)
    return dot_chart(
        "position", title, summary, rows, ends, "share of the clip shown left, 95 % interval", percent, 0.5
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
        DotRow(row.annotator_id, value, None, None, f"weight {row.weight:.2f}, {_answers(row.num_answers)}")
        for value, row in known[:MAX_ROWS]
    ]
    ends = (min(0.4, math.floor(values[0] * 10) / 10), 1.0)
    return dot_chart("reliability", title, summary, rows, ends, "reliability", two_digits, 0.5, MIN_PEOPLE)


# ---------------------------------------------------------------- words


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _queries(count: int) -> str:
    return f"{count:,} quer{'y' if count == 1 else 'ies'}"


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
