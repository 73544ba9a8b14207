"""A report as files: the page, the pictures, CSV and LaTeX, and a list of these."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from themis_ray.errors import RunFolderError
from themis_ray.files import write_whole
from themis_ray.reporting.charts import draw_report
from themis_ray.reporting.page import render_page
from themis_ray.reporting.report import Report
from themis_ray.reporting.tables import comparisons_csv, curves_csv, groups_csv, latex_table, runs_csv

__all__ = ["MANIFEST", "PAGE", "report_files", "write_report"]

PAGE = "report.html"
# Names the files of the report in its folder: the next report replaces these and no others.
MANIFEST = "report.json"
WRITTEN_BY = "themis report"


def write_report(report: Report, out: Path, title: str) -> Path:
    """Write everything into a folder, which is made if it is missing, and return the path of the page.

    Files of an earlier report that this one does not have are deleted; other files are left alone.

    Raises:
        RunFolderError: The folder cannot be written to, or holds a file of the same name that no report wrote.
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
    earlier = _listed(out)
    for name in (MANIFEST, *files):
        if name not in earlier and (out / name).exists():
            raise RunFolderError(
                f"{out / name} is no file of an earlier report, by {MANIFEST} beside it. Move it away, or give another "
                "--out."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Listed before they are there, so that an end in between leaves no file that nobody knows.
        write_whole(out / MANIFEST, _manifest({*earlier, *files}))
        for name, content in files.items():
            write_whole(out / name, content)
        for name in earlier:
            if name not in (MANIFEST, *files):
                (out / name).unlink(missing_ok=True)
        write_whole(out / MANIFEST, _manifest(files))
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written ({error.strerror}). Give an --out folder that you may write to."
        ) from None
    return out / PAGE


def report_files(folder: Path) -> list[Path]:
    """Return the files of the report in a folder, the page first; the page alone where nothing lists the others."""
    names = [name for name in _listed(folder) if name not in (MANIFEST, PAGE)]
    return [folder / PAGE, *(folder / name for name in names if (folder / name).is_file())]


def _manifest(names: Iterable[str]) -> bytes:
    return (json.dumps({"written_by": WRITTEN_BY, "files": sorted({MANIFEST, *names})}, indent=2) + "\n").encode()


def _listed(folder: Path) -> list[str]:
    """Return the names that the list in a folder holds, its own too, as far as they are names of files in it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(manifest, dict) or manifest.get("written_by") != WRITTEN_BY:
        return []
    names = manifest.get("files")
    return [name for name in names if _is_file_name(name)] if isinstance(names, list) else []


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name
