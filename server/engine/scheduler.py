"""When a batch is cut: an arrival or a freed lane arms one cut for the end of the loop turn, after all ready sockets were read.

That one turn of patience is what coalesces at high rates; at low rates it costs microseconds. A batch that the batcher holds for more is
looked at again when it says so. One loop owns all of it: no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue, Ticket
from server.lanes.arbiter import Share
from server.lanes.base import Lane


class Scheduler:
    """Hands cuts to free lanes: `start(cut, lane)` begins a run, `drop(cut)` answers those that a cut gave up."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: RequestQueue,
        batcher: Batcher,
        lanes: list[Lane],
        start: Callable[[Cut, Lane], None],
        drop: Callable[[Cut], None],
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._batcher = batcher
        self._free = list(lanes)
        self._busy: dict[Lane, float] = {}  # when each will be free again, as far as the costs can tell
        self._soonest = 0.0  # when the first of the busy ones will be
        self._start = start
        self._drop = drop
        self._armed = False
        self._timer: asyncio.TimerHandle | None = None
        self.share: Share | None = None  # of a device that other models run on, too

    @property
    def free_lanes(self) -> int:
        return len(self._free)

    def arm(self) -> None:
        """Cut at the end of this turn, once however many asked for it; without a free lane the next release will."""
        if not self._armed and self._free:
            self._armed = True
            self._loop.call_soon(self._turn)

    def hopeless(self, ticket: Ticket, now: float) -> bool:
        """Whether a request that comes now would be answered too late however it's scheduled."""
        start = now if self._free else max(now, self._soonest)
        return self._batcher.hopeless(ticket, self._queue, start)

    def release(self, lane: Lane, heir: Lane) -> None:
        """A lane's run is over; `heir` takes its place, mostly itself."""
        self._busy.pop(lane, None)
        self._free.append(heir)
        if self._queue.lines:
            self.arm()

    def withdraw(self, lane: Lane) -> None:
        """A lane is gone, free or not."""
        self._busy.pop(lane, None)
        if lane in self._free:
            self._free.remove(lane)

    def _turn(self) -> None:
        """One cut for each lane that was free when the turn began: an inline run frees its lane at once, and sockets go first."""
        self._armed = False
        self._wake_no_more()
        for _ in range(len(self._free)):
            if self.share is not None and not self.share.take(monotonic()):
                return
            if not self._cut():
                self.over(0.0)
                return

    def _cut(self) -> bool:
        """Start one run; False where there's nothing to run, or it's held back for more."""
        now = monotonic()
        cut = self._batcher.cut(self._queue, now, self._others(now) if self._busy or len(self._free) > 1 else ())
        if cut.wake is not None:
            self._timer = self._loop.call_at(self._loop.time() + cut.wake - now, self.arm)
        if cut.tickets:
            lane = self._free.pop()
            self._busy[lane] = now + self._batcher.costs.mean(cut.rows, cut.length)
            self._soonest = min(self._busy.values())
            self._start(cut, lane)
        if cut.dropped:
            self._drop(cut)
        return bool(cut.tickets)

    def _others(self, now: float) -> tuple[float, ...]:
        """When each lane but the one at hand is free."""
        return (*self._busy.values(), *(now for _ in self._free[1:]))

    def granted(self) -> bool:
        """The device is ours for one run: start it. False where there's nothing to run, or no lane free."""
        self._wake_no_more()
        started = bool(self._free) and self._cut()
        if self._queue.lines and self._timer is None:
            self.arm()
        return started

    def over(self, seconds: float) -> None:
        """A run is over, after `seconds`: the device may be another's turn. After `release`, so that it may be ours."""
        if self.share is not None:
            self.share.give(seconds, monotonic(), more=bool(self._free and self._queue.lines and self._timer is None))

    def unasked(self) -> None:
        """A run is started that didn't wait for its turn."""
        if self.share is not None:
            self.share.running += 1

    def _wake_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
