"""The batcher decides which waiting requests make the next run. Pure: `now` is an argument, and nothing here waits or runs.

Work-conserving: with a lane free it takes what waits, as much as the most urgent request's deadline allows by the learned cost. Where that
isn't all, the plan says whom to give up. It holds a batch back only where that can't cause a miss, on several lanes or where max_wait asks
for it. Whose turn it is: the highest priority (waiting raises it), among its tenants by deficit round robin, then the most urgent line.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

from server.engine.cost_model import CostModel
from server.engine.decide.curves import Curves
from server.engine.decide.cut import BatchPolicy, CloseReason, Cut, DropReason, Size
from server.engine.decide.plan import Outlook, fitting, plan, rate_of
from server.engine.decide.take import Take
from server.engine.decide.turns import Turns, rank
from server.engine.request_queue import Line, RequestQueue, Ticket

__all__ = ["BatchPolicy", "Batcher", "CloseReason", "Cut", "DropReason"]

SPAN = 16.0  # deadlines: how far back a plan looks for the rate of arrivals
LATELY = 64  # rows that say how fast they come now
LEAST_HOLD = 1e-3  # seconds: the loop's timers are whole milliseconds
HEADROOM = 1.1  # of the rate seen, in the size that keeps up with it
HOLD_SHARE = 0.5  # of the run that's waited for: the longest hold where max_wait says nothing
PLAN_EVERY = 2e-3  # seconds of device time: in between, the last plan's size is aimed at
WORTH, URGENT_WORTH = 0.95, 0.99  # share of the best rows/s at which a run is large enough, without and with deadlines
ENDLESS = float("inf")


class Batcher:
    """Cuts batches out of a queue by `policy` and what `costs` has learned. It keeps no time: whoever asks says what time it is."""

    __slots__ = ("_curves", "_held", "_plain", "_planned", "_take", "_turns", "costs", "policy")

    def __init__(self, policy: BatchPolicy, costs: CostModel | None = None) -> None:
        self.policy = policy
        self.costs = costs or CostModel({})
        self._turns = Turns(policy.tenants)
        self._take = Take(policy, self.costs, self._turns)
        self._plain = policy.max_wait is None and not policy.preferred_rows
        self._planned = (-ENDLESS, 0)
        self._held = False
        self._curves = Curves(self.costs, policy.max_rows, policy.length_buckets)

    def cut(self, queue: RequestQueue, now: float, busy: Sequence[float] = ()) -> Cut:
        """Take the next batch for a lane that is free now. `busy` says when each of the model's other lanes will be. No tickets where
        nothing that may run is waiting, or where more is waited for (`wake`)."""
        cut, lines = Cut(), queue.lines
        if len(lines) == 1 and self._plain and self._all(cut, queue, next(iter(lines.values())), now, busy):
            return cut
        while lines and not cut.tickets and cut.wake is None:
            line = self._turns.pick(lines.values(), now) if len(lines) > 1 else next(iter(lines.values()))
            if self._purge(cut, queue, line, now):
                self._fill(cut, queue, line, now, busy)
        return cut

    def _all(self, cut: Cut, queue: RequestQueue, line: Line, now: float, busy: Sequence[float]) -> bool:
        """The fast path: one line waits, of one length, and all of it makes a run in time. False, and nothing done, where that isn't so."""
        rows, policy, head = line.rows, self.policy, line.tickets[0]
        if rows > policy.max_rows or line.bucket or queue.tombstones:
            return False
        urgent = line.dated or policy.latency_objective is not None
        if line.dated and head.deadline is None:
            return False
        if policy.lanes > 1 and (urgent or min(busy, default=now) <= now):
            return False
        if rows > 1 and rows >= 2 * self._curves.preferred(0, URGENT_WORTH if urgent else WORTH):
            return False
        if urgent:
            curve = self._curves.of(0)
            if rows >= len(curve) or now + curve[rows] > head.due or (head.deadline is not None and head.deadline <= now):
                return False
        cut.tickets, cut.rows = queue.take(line), rows
        if rows == policy.max_rows:
            cut.reason = CloseReason.FULL
        return True

    def hopeless(self, ticket: Ticket, queue: RequestQueue, start: float) -> bool:
        """Whether a request that comes now can't be answered by its deadline, with a lane free at `start`: what outranks it goes first."""
        deadline, rows = ticket.deadline, ticket.rows
        if deadline is None:
            return False
        if self.policy.priorities > 1:
            start += self._ahead(ticket, queue)
        curve = self._curves.of(0)
        if ticket.length > 1 or rows >= len(curve):
            return start + self.costs.estimate(rows, ticket.length) > deadline
        return start + curve[rows] > deadline

    def _ahead(self, ticket: Ticket, queue: RequestQueue) -> float:
        rows = sum(line.rows for line in queue.lines.values() if line.priority < ticket.priority)
        full = self.policy.max_rows
        return rows * self.costs.mean(full, ticket.length) / full / self.policy.lanes if rows else 0.0

    def _purge(self, cut: Cut, queue: RequestQueue, line: Line, now: float) -> bool:
        """Drop a line's cancelled heads and those that can't be answered in time any more; whether one is left."""
        tickets = line.tickets
        while tickets:
            head = tickets[0]
            if not head.cancelled:
                if head.deadline is None or now < head.deadline >= now + self.costs.estimate(head.rows, head.length):
                    return True
                cut.dropped.append((head, DropReason.EXPIRED if head.deadline <= now else DropReason.HOPELESS))
            queue.pop(line)
        return False

    def _fill(self, cut: Cut, queue: RequestQueue, line: Line, now: float, busy: Sequence[float]) -> None:
        """Put the next run into `cut`, from `line` and those that may share a run with it."""
        if len(queue.lines) == 1:
            lines = [line]
        else:
            same = [other for other in queue.lines.values() if other.group == line.group]
            lines = [other for other in same if other is line or self._purge(cut, queue, other, now)]
        size = self._size(queue, line, lines, now, busy)
        if size.hold is not None:
            cut.wake, self._held = size.hold, True
            return
        if line.bucket or len({other.bucket for other in lines}) > 1:
            self._take.like(cut, queue, line, lines, size, now)
        else:
            self._take.in_turn(cut, queue, lines, size, now)
        if size.reason is CloseReason.PLANNED and self.policy.lanes == 1:
            again = now + self.costs.mean(cut.rows, cut.length) + self.costs.mean(1, cut.length)
            self._take.give_up(cut, queue, [one for one in lines if one.tickets], again)
        if self._held and cut.reason in (CloseReason.IDLE, CloseReason.SHAPE):
            cut.reason = CloseReason.HOLD
        self._held = False

    def _size(self, queue: RequestQueue, line: Line, lines: Sequence[Line], now: float, busy: Sequence[float]) -> Size:
        """How large the next run may be, and why."""
        policy, head, curve = self.policy, line.tickets[0], self._curves.of(line.bucket)
        waiting = line.rows if len(lines) == 1 else sum(one.rows for one in lines)
        urgent = head.deadline is not None or policy.latency_objective is not None
        fits = fitting(curve, head.due - now) if urgent else policy.max_rows
        if fits >= min(waiting, len(curve) - 1):
            most = self._curves.preferred(line.bucket, URGENT_WORTH if urgent else WORTH)
            size = self._worth(waiting, most, sum(free <= now for free in busy))
            size.finish = now + curve[min(size.rows, waiting, len(curve) - 1)]
            size.hold = self._hold(queue, line, waiting, most, now)
            return size
        if head.deadline is None:
            rows = max(fits, self._curves.target(line.bucket, policy.patience))
            return Size(rows, CloseReason.DEADLINE, now + curve[rows])
        return self._plan(queue, line, lines, max(1, fits), now, busy)

    def _worth(self, waiting: int, most: int, idle: int) -> Size:
        """With no pressure: what waits in as few like runs as don't pass twice `most`, the size beyond which little is gained; `idle` other
        lanes take their share. Or a size that's asked for."""
        asked = max((rows for rows in self.policy.preferred_rows if rows <= min(waiting, self.policy.max_rows)), default=0)
        if asked:
            return Size(asked, CloseReason.PREFERRED)
        runs = max(1, waiting // most, min(idle + 1, ceil(waiting / most)))
        rows = min(ceil(waiting / runs), self.policy.max_rows)
        return Size(rows, CloseReason.FULL if rows == self.policy.max_rows else CloseReason.PREFERRED)

    def _hold(self, queue: RequestQueue, line: Line, rows: int, most: int, now: float) -> float | None:
        """Until when to wait for more than `rows` rows; None to run now. Never so long that the most urgent request could be late."""
        policy, head = self.policy, line.tickets[0]
        if policy.max_wait is not None:
            enough = min(policy.preferred_rows, default=most)
            until = head.queued + policy.max_wait
        elif policy.lanes > 1 and (head.deadline is not None or policy.latency_objective is not None):
            enough = min(most, self._keeps_up(queue, line, now))
            until = head.queued + HOLD_SHARE * self.costs.mean(enough, line.tickets[0].length)
        else:
            return None
        if head.deadline is not None or policy.latency_objective is not None:
            until = min(until, head.due - self.costs.estimate(rows + 1, head.length))
        return until if rows < enough and until - now >= LEAST_HOLD else None

    def _keeps_up(self, queue: RequestQueue, line: Line, now: float) -> int:
        """The smallest run with which one lane keeps up with its share of what comes."""
        each = HEADROOM * rate_of(queue.recent, now, LATELY) / self.policy.lanes
        curve, target = self._curves.of(line.bucket), self._curves.target(line.bucket, self._lead(line))
        return next((rows for rows in range(1, target) if rows >= each * curve[rows]), target)

    def _plan(self, queue: RequestQueue, line: Line, lines: Sequence[Line], fits: int, now: float, busy: Sequence[float]) -> Size:
        """Not all can be answered in time: the run that serves most."""
        curve = self._curves.of(line.bucket)
        when, rows = self._planned
        if now - when >= PLAN_EVERY / self.policy.lanes:
            lead = self._lead(line)
            history = list(queue.recent)
            lately = len(history) - bisect_left(history, now - SPAN * lead)
            share = sum(one.rows for one in lines) / max(1, queue.rows)
            rate = rate_of(history, now, lately) * share
            outlook = Outlook(now, curve, self._curves.target(line.bucket, lead), rate, lead, history, tuple(busy))
            rows = plan(self._deadlines(line, lines, now), outlook)
            self._planned = (now, rows)
        elif rows >= len(curve) or line.tickets[-1].due < now + curve[rows]:
            rows = fits
        return Size(max(1, rows), CloseReason.PLANNED, now + curve[max(1, rows)])

    def _deadlines(self, line: Line, lines: Sequence[Line], now: float) -> list[float]:
        """Of each row that competes for the next run, rising: those of lines that don't outrank `line`'s own are left out."""
        curve, own, found = self._curves.of(line.bucket), rank(line, now), list[float]()
        for one in lines:
            if len(lines) > 1 and (one.bucket != line.bucket or rank(one, now) > own):
                continue
            for ticket in one.tickets:
                if not ticket.cancelled:
                    due = ticket.due if ticket.deadline is not None else max(ticket.due, now + curve[-1])
                    if ticket.rows == 1:
                        found.append(due)
                    else:
                        found.extend([due] * ticket.rows)
        found.sort()
        return found

    def _lead(self, line: Line) -> float:
        """Seconds from arrival to deadline, of the last that came."""
        last = line.tickets[-1]
        return self.policy.patience if last.deadline is None else last.deadline - last.queued
