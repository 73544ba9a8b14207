"""A report as files: the page, the pictures, CSV and LaTeX."""

from __future__ import annotations

import os
from pathlib import Path

from themis_ray.errors import RunFolderError
from themis_ray.reporting.charts import draw_report
from themis_ray.reporting.page import render_page
from themis_ray.reporting.report import Report
from themis_ray.reporting.tables import comparisons_csv, curves_csv, groups_csv, latex_table, runs_csv

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"


def write_report(report: Report, out: Path, title: str) -> Path:
    """Write everything into a folder, which is made if it is missing, and return the path of the page.

    Pictures of an earlier report that this one does not have stay where they are.

    Raises:
        RunFolderError: The folder cannot be written to.
    """
    pictures = draw_report(report)
    texts = {
        "runs.csv": runs_csv(report),
        "groups.csv": groups_csv(report),
        "curves.csv": curves_csv(report),
        "table.tex": latex_table(report),
        PAGE: render_page(report, pictures, title),
    }
    if report.comparisons:
        texts["comparisons.csv"] = comparisons_csv(report)
    files = {f"{picture.key}.png": picture.light for picture in pictures}
    files |= {name: text.encode() for name, text in texts.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            # Whole or not at all: someone may have it open.
            temporary = out / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(content)
            temporary.replace(out / name)
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written ({error.strerror}). Give an --out folder that you may write to."
        ) from None
    return out / PAGE
