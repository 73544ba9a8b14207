"""The numbers of a report as CSV files and as a LaTeX table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from themis_ray.reporting.groups import ALL_TASKS
from themis_ray.reporting.report import Report, Row
from themis_ray.reporting.statistics import Estimate

__all__ = [
    "comparisons_csv",
    "curves_csv",
    "groups_csv",
    "latex_table",
    "num_labels",
    "number",
    "runs_csv",
    "with_interval",
]

METHOD_COLUMNS = ("teacher", "sampler", "settings")
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def runs_csv(report: Report) -> str:
    """Return a line per run that counts."""
    header = (
        *("path", "env", *METHOD_COLUMNS, "seed", "true_return_mean", "random_return_mean", "score"),
        *("queries_asked", "wall_s"),
    )
    rows = []
    for cell in report.groups.cells.values():
        scores = [None] * len(cell.runs) if cell.scores is None else cell.scores.tolist()
        rows += [
            (
                *(run.place, cell.task, cell.method.teacher, cell.method.sampler, " ".join(cell.method.others)),
                *(run.seed, run.true_return, run.random_return, score, run.queries_asked, run.wall_s),
            )
            for run, score in zip(cell.runs, scores, strict=True)
        ]
    return _csv(header, rows)


def groups_csv(report: Report) -> str:
    """Return a line per group on each environment, and on all of them where there are several."""
    header = (
        *("env", *METHOD_COLUMNS, "num_envs", "num_runs", "num_seeds", "labels_mean"),
        *("true_return_mean", "true_return_std", "score_mean", *_ends("iqm"), *_ends("optimality_gap")),
    )
    rows = [
        (
            *(row.task, row.method.teacher, row.method.sampler, " ".join(row.method.others)),
            *(row.num_tasks, row.num_runs, row.num_seeds, row.labels_mean),
            *(row.return_mean, row.return_std, row.score_mean, *_values(row.iqm), *_values(row.gap)),
        )
        for row in report.rows
    ]
    return _csv(header, rows)


def comparisons_csv(report: Report) -> str:
    """Return a line per comparison with the baseline."""
    header = (
        *("env", *METHOD_COLUMNS, "baseline", "num_seeds"),
        *(*_ends("probability_of_improvement"), *_ends("iqm_difference"), "says"),
    )
    rows = [
        (
            *(one.task, one.method.teacher, one.method.sampler, " ".join(one.method.others), one.baseline.name),
            *(one.num_seeds, *_values(one.improvement), *_values(one.difference), one.says),
        )
        for one in report.comparisons
    ]
    return _csv(header, rows)


def curves_csv(report: Report) -> str:
    """Return a line per point of each curve."""
    header = ("axis", "env", *METHOD_COLUMNS, "num_runs", "x", "iqm", "iqm_low", "iqm_high")
    rows = []
    for (axis, task), curves in report.curves.items():
        for method, curve in curves.items():
            empty = [None] * len(curve.x)
            low = empty if curve.low is None else curve.low.tolist()
            high = empty if curve.high is None else curve.high.tolist()
            about = (axis, task, method.teacher, method.sampler, " ".join(method.others), curve.num_runs)
            points = zip(curve.x.tolist(), curve.y.tolist(), low, high, strict=True)
            rows += [(*about, *point) for point in points]
    return _csv(header, rows)


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _values(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


# ---------------------------------------------------------------- words


def number(value: float | None, beside: float | None = None) -> str:
    """Return a number as a table shows it: three digits, or one where it or the one that it stands beside is large."""
    if value is None:
        return "-"
    digits = 1 if max(abs(value), abs(beside or 0.0)) >= 10 else 3
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def num_labels(value: float | None) -> str:
    """Return a mean number of labels as a table shows it."""
    return "-" if value is None else f"{value:.0f}"


def with_interval(estimate: Estimate | None, digits: int = 2) -> str:
    """Return a number with its interval, where it has one."""
    if estimate is None:
        return "-"
    # Rounding first keeps a minus from a zero.
    value, low, high = (None if x is None else f"{round(x, digits) + 0.0:.{digits}f}" for x in _values(estimate))
    return f"{value}" if low is None else f"{value} [{low}, {high}]"


# ---------------------------------------------------------------- LaTeX


def latex_table(report: Report) -> str:
    r"""Return a table for booktabs: a line per group, a column per environment with the mean score or return.

    The last columns are the interquartile mean over all environments and the optimality gap with their intervals.
    """
    has_settings = any(row.method.others for row in report.rows)
    tasks, methods = report.groups.tasks, report.groups.methods
    head = ["teacher", "sampler", *(["settings"] if has_settings else []), "seeds", *tasks]
    if report.has_scores:
        head += ["IQM", "optimality gap"]
    num_text = 3 if has_settings else 2
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {report.verdict.text}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_caption(report)}}}",
        f"  \\begin{{tabular}}{{{'l' * num_text}{'r' * (len(head) - num_text)}}}",
        r"    \toprule",
        f"    {' & '.join(map(escape_latex, head))} \\\\",
        r"    \midrule",
    ]
    for method in methods:
        rows = {row.task: row for row in report.rows if row.method == method}
        total = rows.get(ALL_TASKS) or rows.get(tasks[0])
        cells = [method.teacher, method.sampler or "-", *([" ".join(method.others) or "-"] if has_settings else [])]
        cells += [str(total.num_seeds) if total else "-"]
        cells += [_task_cell(rows.get(task), has_scores=report.has_scores) for task in tasks]
        if report.has_scores:
            cells += [with_interval(total.iqm), with_interval(total.gap)] if total else ["-", "-"]
        lines.append(f"    {' & '.join(map(_latex_cell, cells))} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _caption(report: Report) -> str:
    what = (
        "Mean score per environment (0: random actions, 1: the runs paid the true reward), interquartile mean and "
        "optimality gap over all runs with 95\\,\\% stratified bootstrap intervals."
        if report.has_scores
        else "Mean true return of the final policies."
    )
    return f"{what} {report.verdict.short}".strip()


def _task_cell(row: Row | None, *, has_scores: bool) -> str:
    if row is None:
        return "-"
    return number(row.score_mean if has_scores else row.return_mean)


def _latex_cell(text: str) -> str:
    # A hyphen before a number is a minus; that of 1e-4 is not.
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escape_latex(text))


def escape_latex(text: str) -> str:
    """Return a text in which nothing is a command."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)
