"""A report as one HTML page that asks no other machine for anything, on light and on dark paper."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from themis_ray.reporting.charts import Picture
from themis_ray.reporting.groups import ALL_TASKS
from themis_ray.reporting.report import Report
from themis_ray.reporting.statistics import FEW_SEEDS, MIN_SEEDS
from themis_ray.reporting.tables import num_labels, number, with_interval

__all__ = ["render_page"]

TEMPLATE = "page.html"


def render_page(report: Report, pictures: Sequence[Picture], title: str) -> str:
    """Return the page; whatever is said is shown as it is, HTML too."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval, "address": _address, "labels": num_labels}
    return environment.get_template(TEMPLATE).render(
        title=title,
        report=report,
        facts=_facts(report),
        parts=_parts(pictures),
        scales=_scales(report),
        all_tasks=ALL_TASKS,
        min_seeds=MIN_SEEDS,
        few_seeds=FEW_SEEDS,
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    groups = report.groups
    sizes = sorted(len(cell.runs) for cell in groups.cells.values())
    samplers = {method.sampler for method in groups.methods if method.sampler}
    teachers = {method.teacher for method in groups.methods if method.is_learned}
    seeds = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    return [
        ("runs", f"{sum(sizes)}"),
        ("environments", f"{len(groups.tasks)}"),
        ("teachers", f"{len(teachers)}"),
        ("samplers", f"{len(samplers)}"),
        ("seeds per cell", seeds),
        ("left out", f"{len(report.left_out)}"),
    ]


def _parts(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return the pictures by the part of the page in which they stand."""
    parts: dict[str, list[Picture]] = {}
    for picture in pictures:
        parts.setdefault(picture.key.split("-")[0], []).append(picture)
    return parts


def _scales(report: Report) -> list[tuple[str, str, str, int, str]]:
    """Return (environment, random, true, number of true-reward runs, settings that differ), each scale once."""
    rows = []
    for cell in report.groups.cells.values():
        if cell.scale is not None:
            scale = cell.scale
            differs = ", ".join(scale.differs) or "none"
            rows.append((cell.task, _number(scale.random), _number(scale.true), scale.num_true_runs, differs))
    return list(dict.fromkeys(rows))


def _number(value: float | None, beside: float | None = None) -> str:
    return number(value, beside).replace("-", "\N{MINUS SIGN}") if value is not None else "\N{EN DASH}"


def _interval(estimate: object) -> str:
    text = with_interval(estimate)  # type: ignore[arg-type]
    return "\N{EN DASH}" if text == "-" else text.replace("-", "\N{MINUS SIGN}")


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
