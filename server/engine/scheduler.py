"""When a batch is cut: an arrival or a freed lane arms one cut for the end of the loop turn, after all ready sockets were read.

That one turn of patience is what coalesces at high rates; at low rates it costs microseconds. One loop owns all of it: no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue
from server.lanes.arbiter import Share
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
        self.share: Share | None = None  # of a device that other models run on, too

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
        """A lane is gone, free or not."""
        if lane in self._free:
            self._free.remove(lane)

    def _turn(self) -> None:
        """One cut for each lane that was free when the turn began: an inline run frees its lane at once, and sockets go first."""
        self._armed = False
        for _ in range(len(self._free)):
            if self.share is not None and not self.share.take(monotonic()):
                return
            if not self._cut():
                self.over(0.0)
                return

    def _cut(self) -> bool:
        """Start one run; False where there's nothing to run."""
        cut = self._batcher.cut(self._queue, monotonic())
        if not cut.tickets and not cut.expired:
            return False
        self._start(cut, self._free.pop())
        return True

    def granted(self) -> bool:
        """The device is ours for one run: start it. False where there's nothing to run, or no lane free."""
        started = bool(self._free) and self._cut()
        if self._queue.groups:
            self.arm()
        return started

    def over(self, seconds: float) -> None:
        """A run is over, after `seconds`: the device may be another's turn. After `release`, so that it may be ours."""
        if self.share is not None:
            self.share.give(seconds, monotonic(), more=bool(self._free and self._queue.groups))

    def unasked(self) -> None:
        """A run is started that didn't wait for its turn."""
        if self.share is not None:
            self.share.running += 1
