"""Progress bars on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

__all__ = ["late_progress", "progress_bar"]

# Shorter work shows no bar.
PROGRESS_DELAY_S = 5.0
# Characters of a description.
MAX_WIDTH = 40


def progress_bar(console: Console) -> Progress:
    """Return a bar for tasks that have a field `status`.

    A long description, such as a path, is cut: bar and percentage stay on a line of 80 characters.
    """
    return Progress(
        TextColumn(
            "[bold]{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=MAX_WIDTH)
        ),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
        console=console,
    )


@contextmanager
def late_progress(description: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes shares of the work from 0 to 1; a bar appears after `PROGRESS_DELAY_S`."""
    started = time.monotonic()
    with ExitStack() as stack:
        bar: Progress | None = None

        def report(share: float) -> None:
            nonlocal bar
            if bar is None and time.monotonic() - started >= PROGRESS_DELAY_S:
                bar = stack.enter_context(progress_bar(Console(stderr=True)))
                bar.add_task(description, total=1.0, status="")
            if bar is not None:
                bar.update(bar.task_ids[0], completed=share)

        yield report
