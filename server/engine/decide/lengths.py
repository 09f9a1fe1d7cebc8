"""Which requests of unlike lengths share a run. A run is padded to its longest, so that a neighbour in length is worth taking only where
that costs less than it would cost alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from operator import attrgetter

from server.engine.cost_model import CostModel
from server.engine.request_queue import Line, Ticket

REACH = 2  # buckets to either side that are looked into
LOOKED_AT = 64  # tickets of a line that are looked at: the most urgent
ENDLESS = float("inf")


def ceiling(bucket: int, boundaries: Sequence[int]) -> int:
    """The longest length that falls into a bucket; 1 for the bucket of what isn't padded."""
    if boundaries:
        return boundaries[min(bucket, len(boundaries)) - 1] if bucket else 1
    return max(1, ceil(2 ** ((bucket + 1) / 2)) - 1)


def like(head: Ticket, lines: Iterable[Line], bucket: int) -> list[Ticket]:
    """Live tickets from buckets near to `bucket`, nearest to the head in length first, the more urgent of two as near."""
    found = [
        ticket
        for line in lines
        if abs(line.bucket - bucket) <= REACH
        for ticket, _ in zip(line.tickets, range(LOOKED_AT), strict=False)
        if not ticket.cancelled and ticket is not head
    ]
    found.sort(key=attrgetter("due"))
    length = head.length
    found.sort(key=lambda ticket: abs(ticket.length - length))
    return found


def grow(head: Ticket, candidates: Iterable[Ticket], costs: CostModel, most: int, now: float) -> tuple[list[Ticket], int, int]:
    """The run that begins with `head`: its tickets, rows, length. A candidate joins where that makes nobody late and the run longer by less
    than the candidate would take alone."""
    taken, rows, length = [head], head.rows, head.length
    spent = costs.mean(rows, length)
    until = ENDLESS if head.deadline is None else head.deadline
    for ticket in candidates:
        more, longest = rows + ticket.rows, max(length, ticket.length)
        if more > most:
            continue
        joint = costs.mean(more, longest)
        soonest = until if ticket.deadline is None else min(until, ticket.deadline)
        if joint - spent < costs.mean(ticket.rows, ticket.length) and now + costs.estimate(more, longest) <= soonest:
            taken.append(ticket)
            rows, length, spent, until = more, longest, joint, soonest
    return taken, rows, length
