"""Requests that wait for a run, grouped by what may share one: a deque per group, first come first served inside.

Rows are counted, never requests. A cancelled request stays in its deque as a tombstone until its turn comes or tombstones prevail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

from server.messages import InferRequest, OnResponse

COMPACT_AT = 64  # tombstones that are kept before the deques are swept


class Ticket:
    """One waiting request: the handle that `Engine.submit` gives back."""

    __slots__ = ("bytes", "cancelled", "group", "on_response", "queue", "request", "rows")

    def __init__(self, request: InferRequest, on_response: OnResponse, group: Hashable, size: int = 0) -> None:
        self.request = request
        self.on_response = on_response
        self.group = group
        self.rows = request.rows
        self.bytes = size
        self.cancelled = False
        self.queue: RequestQueue | None = None

    def cancel(self) -> None:
        """Fall out of the queue; in a run already, the answer is dropped."""
        if not self.cancelled:
            self.cancelled = True
            if self.queue is not None:
                self.queue.forget(self)


class RequestQueue:
    """`rows` and `bytes` waiting are those of live requests; `groups` maps what may share a run to its deque, never an empty one."""

    __slots__ = ("_tombstones", "bytes", "groups", "rows")

    def __init__(self) -> None:
        self.groups: dict[Hashable, deque[Ticket]] = {}
        self.rows = 0
        self.bytes = 0
        self._tombstones = 0

    def push(self, ticket: Ticket) -> None:
        waiting = self.groups.get(ticket.group)
        if waiting is None:
            waiting = self.groups[ticket.group] = deque()
        waiting.append(ticket)
        ticket.queue = self
        self.rows += ticket.rows
        self.bytes += ticket.bytes

    def pop(self, group: Hashable) -> Ticket:
        """The head of a group, tombstone or not; its group goes with its last ticket."""
        waiting = self.groups[group]
        ticket = waiting.popleft()
        if not waiting:
            del self.groups[group]
        ticket.queue = None
        if ticket.cancelled:
            self._tombstones -= 1
        else:
            self.rows -= ticket.rows
            self.bytes -= ticket.bytes
        return ticket

    def oldest(self) -> Hashable:
        """The group whose head has waited longest. The queue must not be empty."""
        groups = self.groups
        if len(groups) == 1:
            return next(iter(groups))
        return min(groups, key=lambda group: groups[group][0].request.queued)

    def forget(self, ticket: Ticket) -> None:
        """A waiting ticket was cancelled: stop counting it."""
        self.rows -= ticket.rows
        self.bytes -= ticket.bytes
        self._tombstones += 1
        if self._tombstones > COMPACT_AT and self._tombstones > sum(map(len, self.groups.values())) // 2:
            self._sweep()

    def _sweep(self) -> None:
        for group, waiting in list(self.groups.items()):
            live = deque(ticket for ticket in waiting if not ticket.cancelled)
            if live:
                self.groups[group] = live
            else:
                del self.groups[group]
        self._tombstones = 0

    def clear(self) -> Iterator[Ticket]:
        """Every live ticket, each taken out."""
        while self.groups:
            ticket = self.pop(next(iter(self.groups)))
            if not ticket.cancelled:
                yield ticket
