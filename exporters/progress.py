"""Shows an export's steps on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from exporters.draft import Reporter


class Lines:
    """One line a step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, number: int, total: int, title: str) -> None:
        self._console.print(f"[{number}/{total}] {title}", markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Too fine for a log."""

    def note(self, text: str) -> None:
        self._console.print(f"note: {text}", markup=False, soft_wrap=True)


class Bar:
    """A bar over the steps, with what the present one does."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._title = ""

    def step(self, number: int, total: int, title: str) -> None:
        self._title = title
        self._progress.update(self._task, description=escape(title), total=total, completed=number - 1)

    def detail(self, text: str) -> None:
        self._progress.update(self._task, description=escape(f"{self._title}: {text}"))

    def note(self, text: str) -> None:
        self._progress.console.print(f"note: {text}", markup=False, soft_wrap=True)


@contextmanager
def following(console: Console) -> Iterator[Reporter]:
    """A reporter that suits the console; its bar is gone when this ends."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)
