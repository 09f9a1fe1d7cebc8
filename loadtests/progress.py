"""Shows how a run goes, on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtests.running import runner

TELL_EVERY = 5.0  # seconds


@contextmanager
def telling(console: Console) -> Iterator[runner.Tell]:
    """Who is told how a run goes."""
    if not console.is_terminal:
        yield _Lines(console).tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda progress: bar.update(task, total=progress.end, completed=progress.at, description=_told(progress))


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = TELL_EVERY

    def tell(self, progress: runner.Progress) -> None:
        if progress.at >= self._next:
            self._next = progress.at + TELL_EVERY
            self._console.print(f"{progress.at:.0f} of {progress.end:.0f} s: {_told(progress)}", markup=False, highlight=False)


def _told(progress: runner.Progress) -> str:
    bad = f", {progress.failed:,} not" if progress.failed else ""
    return f"{progress.sent:,} sent, {progress.answered:,} answered{bad}, {progress.in_flight:,} under way"
