"""How the demo talks: steps with a spinner on a terminal and plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

PLAIN_WIDTH = 110


def make_console() -> Console:
    """Standard output; wide enough for the demo's tables where it isn't a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def heading(console: Console, text: str) -> None:
    """Opens a part of the demo."""
    console.print(f"\n[bold]{text}[/bold]")


def say(console: Console, text: str) -> None:
    """A line of prose: broken between words on a terminal, left whole elsewhere. A command to copy is printed with soft_wrap."""
    console.print(text, soft_wrap=not console.is_terminal)


@contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    """Shows that `title` is being done, and then how long it took."""
    started = time.monotonic()
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        console.print(f"- {title} …", soft_wrap=True)
        yield
    say(console, f"- {title}: [green]done[/green] in {time.monotonic() - started:.1f} s")
