"""`themis report`: what many runs say together, and whether they are enough to say it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from themis_ray.errors import RunFolderError
from themis_ray.reporting import ALL_TASKS, Report, Row, make_report, num_labels, with_interval, write_report
from themis_ray.storage import Storage, is_uri
from themis_ray.tracking.description import without_password

__all__ = ["report"]

REPORT_EXAMPLES = """
\b
Examples:
  themis report runs
  themis report runs/sweep --baseline teacher.name=oracle
  themis report runs/oracle runs/mistake --baseline learn_reward=false --out reports/teachers
  themis report s3://my-bucket/sweeps/smoke --out reports/smoke
"""

MAX_LEFT_OUT = 5


@click.command(epilog=REPORT_EXAMPLES)
@click.argument("folders", nargs=-1, required=True, metavar="DIR|URI...")
@click.option("--baseline", metavar="KEY=VALUE", help="Compare every group with the one that has this value.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder. Default: DIR/report; ./report for several, a URI."
)
@click.option("--title", help="Heading of the page. Default: the names of the folders.")
@click.option("--seed", default=0, show_default=True, help="For the bootstrap samples of the intervals.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def report(
    folders: tuple[str, ...], baseline: str | None, out: Path | None, title: str | None, seed: int, debug: bool
) -> None:
    """Compare finished runs by environment, teacher, sampler and whatever else differs between them.

    Each DIR is a run folder, or holds some at any depth; so does each URI in a storage. Scores are against the runs
    with learn_reward=false.
    """
    del debug
    with tempfile.TemporaryDirectory(prefix="themis-report-") as fetched:
        # Two storages may hold sweeps of the same name.
        paths = {
            _fetch(folder, Path(fetched) / str(number)) if is_uri(folder) else Path(folder): folder
            for number, folder in enumerate(dict.fromkeys(folders))
        }
        places = {path: _shown(folder) for path, folder in paths.items() if is_uri(folder)}
        made = make_report(list(paths), baseline, seed=seed, places=places)
        out = out or (next(iter(paths)) / "report" if len(paths) == 1 and not places else Path("report"))
        page = write_report(made, out, title or ", ".join(path.resolve().name for path in paths))
    console = Console()
    console.print(_table(made))
    if made.comparisons:
        console.print(_comparison_table(made))
    for note in made.notes:
        console.print(note, highlight=False, markup=False)
    for run in made.left_out[:MAX_LEFT_OUT]:
        console.print(f"left out: {run.place}: {run.reason}", highlight=False, markup=False, soft_wrap=True)
    if len(made.left_out) > MAX_LEFT_OUT:
        console.print(f"left out: {len(made.left_out) - MAX_LEFT_OUT} more, see the page", highlight=False)
    console.print(made.verdict.text, style=None if made.verdict.is_enough else "yellow", highlight=False, markup=False)
    click.echo(f"Page: {page}")


def _fetch(uri: str, folder: Path) -> Path:
    """Return a folder with what a report needs of the runs in a storage.

    Raises:
        RunFolderError: It cannot be read, or holds no run.
    """
    from themis_ray.sweeping import is_shown  # Tune takes seconds to import, and other reports do without

    target = folder / uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    if not Storage(uri).pull(target, is_shown):
        raise RunFolderError(f"{uri} holds no run. Give the URI of a sweep, or of what is above it.")
    return target


def _shown(uri: str) -> str:
    """Return a URI without its options and, where it holds one, its password."""
    place = uri.partition("?")[0].rstrip("/")
    user = place.partition("://")[2].partition("/")[0].rpartition("@")[0]
    return without_password(place) if ":" in user else place


def _table(made: Report) -> Table:
    table = Table(title=f"{sum(len(cell.runs) for cell in made.groups.cells.values())} runs", title_justify="left")
    for name in ("environment", "group"):
        table.add_column(name, overflow="fold")
    for name in ("seeds", "labels", *(("IQM [95 %]", "gap") if made.has_scores else ("true return",))):
        table.add_column(name, justify="right")
    for row in made.summary_rows:
        table.add_row(
            _env(row, made),
            escape(row.method.name),
            f"{row.num_seeds}",
            num_labels(row.labels_mean),
            *_figures(row, made),
        )
    return table


def _env(row: Row, made: Report) -> str:
    return f"{row.num_tasks} of {len(made.groups.tasks)}" if row.task == ALL_TASKS else escape(row.task)


def _figures(row: Row, made: Report) -> tuple[str, ...]:
    if made.has_scores:
        return with_interval(row.iqm), "-" if row.gap is None else f"{row.gap.value:.2f}"
    return ("-" if row.return_mean is None else f"{row.return_mean:.1f}",)


def _comparison_table(made: Report) -> Table:
    table = Table(title=f"Against {escape(made.baseline)}", title_justify="left")
    for name in ("environment", "group", "P(improvement) [95 %]", "says"):
        table.add_column(name, overflow="fold", justify="right" if name.startswith("P") else "left")
    names = {row.task for row in made.comparisons}
    for one in made.comparisons:
        if one.task == ALL_TASKS or ALL_TASKS not in names:
            env = "all" if one.task == ALL_TASKS else escape(one.task)
            table.add_row(env, escape(one.method.name), with_interval(one.improvement), one.says)
    return table
