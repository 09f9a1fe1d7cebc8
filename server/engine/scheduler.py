"""When a batch is cut: an arrival or a freed lane arms one cut for the end of the loop turn, after all ready sockets were read.

That one turn of patience is what coalesces at high rates; at low rates it costs microseconds. One loop owns all of it: no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue
from server.lanes.base import Lane


class Scheduler:
    """Hands cuts to free lanes: `start(cut, lane)` begins a run, `expire(tickets)` answers those whose deadline has passed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: RequestQueue,
        batcher: Batcher,
        lanes: list[Lane],
        start: Callable[[Cut, Lane], None],
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._batcher = batcher
        self._free = list(lanes)
        self._start = start
        self._armed = False

    @property
    def free_lanes(self) -> int:
        return len(self._free)

    def arm(self) -> None:
        """Cut at the end of this turn, once however many asked for it; without a free lane the next release will."""
        if not self._armed and self._free:
            self._armed = True
            self._loop.call_soon(self._turn)

    def release(self, lane: Lane) -> None:
        """A lane's run is over."""
        self._free.append(lane)
        if self._queue.groups:
            self.arm()

    def withdraw(self, lane: Lane) -> None:
        """A free lane is gone."""
        if lane in self._free:
            self._free.remove(lane)

    def _turn(self) -> None:
        """One cut for each lane that was free when the turn began: an inline run frees its lane at once, and sockets go first."""
        self._armed = False
        for _ in range(len(self._free)):
            cut = self._batcher.cut(self._queue, monotonic())
            if not cut.tickets and not cut.expired:
                return
            self._start(cut, self._free.pop())
