"""Requests that wait for a run, in lines: those of one line may share a run, come from one tenant at one priority, and are alike in length.

A line is in order of `due`: the deadline, or where there's none the moment from which it has waited long enough. Equal patience means first
come first served. Rows are counted, never requests. A cancelled request stays as a tombstone until its turn comes or tombstones prevail.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import TypeAlias

from server.messages import InferRequest, OnResponse

COMPACT_AT = 64  # tombstones that are kept before the lines are swept
RECENT = 2048  # rows whose arrival is remembered: bursts of the past say what may come
PATIENCE = 1.0  # seconds after which a request without deadline or objective is as urgent as one at its deadline

ENDLESS = float("inf")

LineKey: TypeAlias = tuple[Hashable, int, str, int]
"""Group, priority, tenant, bucket of lengths."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The most that may wait: rows, and bytes of inputs (None: no bound of its own)."""

    rows: int = 1024
    bytes: int | None = None


class Ticket:
    """One waiting request: the handle that `Engine.submit` gives back.

    `lowest` is the number of priorities, which a request that names none gets; `patience` is how long it may wait where it has no deadline;
    `reserve` seconds of its deadline are for what comes after the run.
    """

    __slots__ = ("cancelled", "deadline", "due", "group", "length", "line", "on_response", "priority", "queued", "request", "rows", "size")

    def __init__(
        self,
        request: InferRequest,
        on_response: OnResponse,
        group: Hashable,
        lowest: int = 1,
        patience: float = PATIENCE,
        reserve: float = 0.0,
    ) -> None:
        self.request = request
        self.on_response = on_response
        self.group = group
        self.rows = request.rows
        self.length = request.length
        self.queued = request.queued
        deadline = request.deadline
        self.deadline = deadline = None if deadline is None or deadline == ENDLESS else deadline - reserve
        self.due = request.queued + patience if deadline is None else deadline
        self.priority = min(request.priority or lowest, lowest)
        self.size = 0
        self.cancelled = False
        self.line: Line | None = None

    @property
    def tenant(self) -> str:
        return self.request.tenant

    def cancel(self) -> None:
        """Fall out of the queue; in a run already, the answer is dropped."""
        if not self.cancelled:
            self.cancelled = True
            if self.line is not None:
                self.line.queue.forget(self)


class Line:
    """Tickets of one key, most urgent first; never empty while it's in the queue. `rows` counts the live ones; `dated` whether any has
    had a deadline."""

    __slots__ = ("bucket", "dated", "group", "key", "priority", "queue", "rows", "tenant", "tickets")

    def __init__(self, key: LineKey, queue: RequestQueue) -> None:
        self.key = key
        self.group, self.priority, self.tenant, self.bucket = key
        self.queue = queue
        self.rows = 0
        self.dated = False
        self.tickets: deque[Ticket] = deque()

    def takes(self, ticket: Ticket) -> bool:
        """Whether a ticket of length 1 belongs here. False where only a look-up can tell: its group may be equal and another object."""
        same = self.group is ticket.group and not self.bucket and self.priority == ticket.priority
        return same and self.tenant == ticket.request.tenant


def _due(ticket: Ticket) -> float:
    return ticket.due


class RequestQueue:
    """`rows` and `bytes` waiting are those of live requests; `arrived` counts all rows that ever came, those refused at the door too;
    `recent` is when the last of them did; `tombstones` are cancelled ones that are still in line. `boundaries` are the longest lengths of
    the buckets; without any they grow by √2."""

    __slots__ = ("_boundaries", "_last", "arrived", "bytes", "lines", "recent", "rows", "tombstones")

    def __init__(self, boundaries: Sequence[int] = ()) -> None:
        self.lines: dict[LineKey, Line] = {}
        self.rows = 0
        self.bytes = 0
        self.arrived = 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self._boundaries = tuple(boundaries)
        self._last: Line | None = None  # that was pushed to; out of the queue where it's empty
        self.tombstones = 0

    def push(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        line = self._last
        if line is None or not line.tickets or ticket.length != 1 or not line.takes(ticket):
            line = self._last = self._line_of(ticket)
        tickets = line.tickets
        if tickets and ticket.due < tickets[-1].due:
            tickets.insert(bisect_right(tickets, ticket.due, key=_due), ticket)  # a deadline that jumps the line
        else:
            tickets.append(ticket)
        ticket.line = line
        line.rows += ticket.rows
        if ticket.deadline is not None:
            line.dated = True
        self.rows += ticket.rows
        self.bytes += ticket.size
        self.arrived += ticket.rows
        if ticket.rows == 1:
            self.recent.append(ticket.queued)
        else:
            self.recent.extend([ticket.queued] * ticket.rows)

    def _line_of(self, ticket: Ticket) -> Line:
        length = ticket.length
        key = (ticket.group, ticket.priority, ticket.request.tenant, 0 if length == 1 else self._bucket(length))
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key, self)
        return line

    def _bucket(self, length: int) -> int:
        return bisect_right(self._boundaries, length - 1) + 1 if self._boundaries else int(2 * log2(length))

    def pop(self, line: Line) -> Ticket:
        """The head of a line, tombstone or not; the line goes with its last ticket."""
        ticket = line.tickets.popleft()
        if not line.tickets:
            del self.lines[line.key]
        self._left(ticket, line)
        return ticket

    def take(self, line: Line) -> list[Ticket]:
        """All of a line. The queue must hold no tombstone."""
        del self.lines[line.key]
        taken = list(line.tickets)
        line.tickets.clear()
        for ticket in taken:
            ticket.line = None
            self.bytes -= ticket.size
        self.rows -= line.rows
        line.rows = 0
        return taken

    def restore(self, line: Line, ticket: Ticket) -> None:
        """Put a live ticket back as the head of the line that it was popped from."""
        self.lines[line.key] = line
        line.tickets.appendleft(ticket)
        ticket.line = line
        line.rows += ticket.rows
        if ticket.deadline is not None:
            line.dated = True
        self.rows += ticket.rows
        self.bytes += ticket.size

    def remove(self, ticket: Ticket) -> None:
        """Take a live ticket out of the middle of its line."""
        line = ticket.line
        assert line is not None
        line.tickets.remove(ticket)
        if not line.tickets:
            del self.lines[line.key]
        self._left(ticket, line)

    def _left(self, ticket: Ticket, line: Line) -> None:
        ticket.line = None
        if ticket.cancelled:
            self.tombstones -= 1
        else:
            line.rows -= ticket.rows
            self.rows -= ticket.rows
            self.bytes -= ticket.size

    def forget(self, ticket: Ticket) -> None:
        """A waiting ticket was cancelled: stop counting it."""
        assert ticket.line is not None
        ticket.line.rows -= ticket.rows
        self.rows -= ticket.rows
        self.bytes -= ticket.size
        self.tombstones += 1
        if self.tombstones > COMPACT_AT and self.tombstones > sum(len(line.tickets) for line in self.lines.values()) // 2:
            self._sweep()

    def _sweep(self) -> None:
        for line in list(self.lines.values()):
            line.tickets = deque(ticket for ticket in line.tickets if not ticket.cancelled)
            if not line.tickets:
                del self.lines[line.key]
        self.tombstones = 0

    def waiting(self) -> int:
        """How many live tickets wait. Any thread: for a scrape, which may be off by what comes and goes meanwhile."""
        return max(0, sum([len(line.tickets) for line in list(self.lines.values())]) - self.tombstones)

    def below(self, priority: int) -> Iterator[Ticket]:
        """Every live ticket of a lower priority than `priority`, each taken out."""
        for line in [line for line in self.lines.values() if line.priority > priority]:
            while line.tickets:
                ticket = self.pop(line)
                if not ticket.cancelled:
                    yield ticket

    def overdue(self, now: float) -> list[Ticket]:
        """Every live ticket whose deadline has passed, each taken out; all of them with `now` infinite."""
        live = [ticket for line in self.lines.values() for ticket in line.tickets if not ticket.cancelled]
        late = [ticket for ticket in live if now == ENDLESS or (ticket.deadline is not None and ticket.deadline <= now)]
        for ticket in late:
            ticket.cancel()
        return late

    def next_deadline(self) -> float | None:
        """The earliest deadline of those that wait, None where none has one."""
        firsts = (
            next((one.deadline for one in line.tickets if not one.cancelled and one.deadline is not None), None)
            for line in self.lines.values()
        )
        return min((deadline for deadline in firsts if deadline is not None), default=None)

    def clear(self) -> Iterator[Ticket]:
        """Every live ticket, each taken out."""
        while self.lines:
            ticket = self.pop(next(iter(self.lines.values())))
            if not ticket.cancelled:
                yield ticket
