"""Progress bars on standard error, so that standard output stays free for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

Step = Callable[[int, int], None]


def stderr_console() -> Console:
    """A console that writes to standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress_step(console: Console, label: str) -> Iterator[Step]:
    """A bar for one step; the yielded function takes the bytes done and in all.

    Drawn only on a terminal and removed at the end; elsewhere the label is printed once.
    """
    if not console.is_terminal:
        console.print(label, markup=False)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
