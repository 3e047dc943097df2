"""The screen: a console for results on standard output, and a progress bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Columns of output that goes to a file or another program: lines stay whole.
_UNLIMITED = 10_000


def output_console() -> Console:
    """A console on standard output; lines are wrapped only where that is a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


@contextmanager
def pipeline_progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for the pipeline's stages; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def report(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{label}: {stage}", completed=done, total=total)

        yield report
