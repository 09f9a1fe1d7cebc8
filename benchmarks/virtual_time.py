"""Time that passes only when an event loop waits: what was written for seconds plays in as long as its computing takes, the same each time.

Importing this puts a clock in the place of `time.monotonic`, for what is imported after it: it's for processes that do nothing else.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Clock:
    """Called, it's the time in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
time.monotonic = CLOCK


class _Selector(selectors.SelectSelector):
    """Waits for nothing: the clock is where the wait would have ended."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more")
        CLOCK.now += max(0.0, timeout)
        return []


def run(work: Coroutine[Any, Any, T]) -> T:
    """What it comes to, in a loop of that time. Nothing in it may need a thread or a socket."""
    loop = asyncio.SelectorEventLoop(_Selector())
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
