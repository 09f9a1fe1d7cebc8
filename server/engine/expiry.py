"""Answers who waits past his deadline at that moment, and not when a lane comes free: runs may last, and lanes may be restarting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from server.engine.batcher import Cut, DropReason
from server.engine.request_queue import RequestQueue

LEAST_WAIT = 1e-3  # seconds: the loop's timers are whole milliseconds


class Expiry:
    """One timer for a whole queue, set for the earliest deadline that it was told of. `drop` answers those that are late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: RequestQueue, drop: Callable[[Cut], None]) -> None:
        self._loop = loop
        self._queue = queue
        self._drop = drop
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    def expect(self, deadline: float) -> None:
        """A request waits that has this deadline."""
        if self._timer is None or deadline < self._deadline:
            self.stop()
            self._deadline = deadline
            self._timer = self._loop.call_at(self._loop.time() + max(LEAST_WAIT, deadline - monotonic()), self._expire)

    def stop(self) -> None:
        """Set no more, until the next is expected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        late = self._queue.overdue(monotonic())
        if late:
            self._drop(Cut(dropped=[(ticket, DropReason.EXPIRED) for ticket in late]))
        coming = self._queue.next_deadline()
        if coming is not None:
            self.expect(coming)
