"""When a batch is cut: an arrival or a freed lane arms one cut for the end of the loop turn, after all ready sockets were read.

That one turn of patience is what coalesces at high rates; at low rates it costs microseconds. A batch that the batcher holds for more is
looked at again when it says so. A lane that takes two batches (Lane.depth) gets the second shortly before the first is expected to end, so
that it doesn't stand still while answers are written and sockets are read: no earlier, and only where enough waits already, because a batch
that was cut takes nobody in any more. One loop owns all of it: no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue, Ticket
from server.lanes.arbiter import Share
from server.lanes.base import Lane

AHEAD = 2e-3  # seconds before a run's end that the next batch is cut: to gather it, and for timers that are whole milliseconds
WORTH_STAGING = 2 * AHEAD  # seconds of a run: a shorter one would be cut too early by most of itself


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
        self._inside: dict[Lane, list[float]] = {}  # the batches in each busy lane: seconds that each is expected to take
        self._start = start
        self._drop = drop
        self._armed = False
        self._timer: asyncio.TimerHandle | None = None
        self.share: Share | None = None  # of a device that other models run on, too

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
        inside = self._inside.get(lane)
        if inside is not None and len(inside) > 1:  # the staged batch runs from now on, whenever its start was expected
            del inside[0]
            self._busy[lane] = monotonic() + inside[0]
            self._soonest = min(self._busy.values())
            self._stage_in_time(lane)
        else:
            if inside is not None:
                del self._busy[lane], self._inside[lane]
            if lane in self._free:
                self._free.remove(lane)
            self._free.append(heir)
        if self._queue.lines:
            self.arm()

    def _stage_in_time(self, lane: Lane) -> None:
        """Let a lane take a second batch when its first is about to end. Whole lanes go before."""
        now, ends = monotonic(), self._busy[lane]
        if lane.depth > 1 and ends - now > WORTH_STAGING:
            self._loop.call_at(self._loop.time() + ends - AHEAD - now, self._stage, lane, ends)

    def _stage(self, lane: Lane, ends: float) -> None:
        still = self._busy.get(lane) == ends and len(self._inside[lane]) == 1 and lane not in self._free
        if still and self._queue.lines and self._queue.rows >= self._batcher.enough(self._queue):
            self._free.insert(0, lane)
            self.arm()

    def withdraw(self, lane: Lane) -> None:
        """A lane is gone, free or not."""
        self._busy.pop(lane, None)
        self._inside.pop(lane, None)
        if lane in self._free:
            self._free.remove(lane)

    def _turn(self) -> None:
        """One cut for each lane that was free when the turn began: an inline run frees its lane at once, and sockets go first."""
        self._armed = False
        self._wake_no_more()
        for _ in range(len(self._free)):
            if self.share is not None and not self._granted_now(self.share):
                return
            if not self._cut():
                self.over(0.0)
                return

    def _cut(self) -> bool:
        """Start one run; False where there's nothing to run, or it's held back for more."""
        now, lane = monotonic(), self._free[-1]
        begins = max(now, self._busy[lane]) if lane in self._busy else now
        cut = self._batcher.cut(self._queue, begins, self._others(lane, now) if self._busy or len(self._free) > 1 else ())
        if cut.wake is not None:
            self._timer = self._loop.call_at(self._loop.time() + cut.wake - now, self.arm)
        if cut.tickets:
            self._free.pop()
            if lane.kind != "inline":  # which is free again before anyone could ask when
                self._expect(lane, begins, self._batcher.costs.mean(cut.rows, cut.length))
            self._start(cut, lane)
        if cut.dropped:
            self._drop(cut)
        return bool(cut.tickets)

    def _expect(self, lane: Lane, begins: float, seconds: float) -> None:
        """A lane is to take so long for the batch that it's given now."""
        self._busy[lane] = begins + seconds
        self._soonest = min(self._busy.values())
        inside = self._inside.setdefault(lane, [])
        inside.append(seconds)
        if lane.depth > len(inside):
            self._stage_in_time(lane)

    def _others(self, lane: Lane, now: float) -> tuple[float, ...]:
        """When each lane but the one at hand is free."""
        busy = [free for other, free in self._busy.items() if other is not lane]
        return (*busy, *(now for other in self._free if other is not lane and other not in self._busy))

    def _granted_now(self, share: Share) -> bool:
        """Whether the device lets the next lane run now, or after its run in hand."""
        return share.stage(monotonic()) if self._free[-1] in self._busy else share.take(monotonic())

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
