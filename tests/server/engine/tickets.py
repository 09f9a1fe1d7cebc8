"""Tickets and queues for tests of what is pure: no engine, no loop."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.request_queue import RequestQueue, Ticket
from server.messages import InferRequest, InferResponse, Layout

NO_LAYOUT = Layout(())
LOWEST = 4


def ticket(
    rows: int = 1,
    group: str = "a",
    queued: float = 0.0,
    deadline: float | None = None,
    length: int = 1,
    priority: int = 0,
    tenant: str = "",
    patience: float = 1.0,
) -> Ticket:
    request = InferRequest("m", {}, NO_LAYOUT, rows=rows, queued=queued, deadline=deadline, length=length, priority=priority, tenant=tenant)
    return Ticket(request, ignore, group, LOWEST, patience)


def ignore(response: InferResponse, final: bool) -> None:
    """Nobody waits for these answers."""


def queue_of(tickets: Sequence[Ticket], boundaries: Sequence[int] = ()) -> RequestQueue:
    queue = RequestQueue(boundaries)
    for one in tickets:
        queue.push(one)
    return queue


def waiting(queue: RequestQueue) -> int:
    """Tickets in the queue, tombstones too."""
    return sum(len(line.tickets) for line in queue.lines.values())
