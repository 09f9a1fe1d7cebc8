"""The batcher decides which waiting requests make the next run. Pure: `now` is an argument, and nothing here waits or runs.

First cut: work-conserving. With a lane free it takes what waits at the end of the loop turn, oldest shape first, up to the size that
warm-up found worth it; a busy lane makes the batches by itself, with no timer to tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.engine.request_queue import RequestQueue, Ticket

WORTH_IT = 0.95  # a smaller batch that reaches this share of the best rows/s is preferred: same rate, less waiting


class CloseReason(StrEnum):
    """Why a batch was closed; also the label of tidegate_batches_total."""

    IDLE = "idle"  # all that waited
    FULL = "full"  # reached max_rows, or the next request would not fit
    PREFERRED = "preferred"  # reached the size beyond which rows/s gain nothing
    SHAPE = "shape"  # what waits further has another shape


@dataclass(slots=True)
class Cut:
    """One batch to run: its requests in order, their rows, and why it was closed. `expired` can't be answered in time any more."""

    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0
    reason: CloseReason = CloseReason.IDLE
    expired: list[Ticket] = field(default_factory=list)


def preferred_rows(latency: Mapping[int, float], max_rows: int) -> int:
    """The smallest measured size that reaches 95 % of the best rows/s, max_rows where nothing was measured.

    `latency` is seconds of a run by rows.
    """
    rates = {rows: rows / seconds for rows, seconds in latency.items() if rows <= max_rows and seconds > 0}
    if not rates:
        return max_rows
    chosen = min(rows for rows, rate in rates.items() if rate >= WORTH_IT * max(rates.values()))
    return max_rows if chosen == max(rates) else chosen


class Batcher:
    """`max_rows` is the most rows in a run; `preferred` the size at which a batch is closed although more would fit."""

    __slots__ = ("max_rows", "preferred")

    def __init__(self, max_rows: int, preferred: int | None = None) -> None:
        self.max_rows = max_rows
        self.preferred = min(preferred or max_rows, max_rows)

    def cut(self, queue: RequestQueue, now: float) -> Cut:
        """Take the next batch out of `queue`: no tickets where nothing that may run is waiting."""
        cut = Cut()
        while queue.groups and not cut.tickets:
            group = queue.oldest()
            self._fill(cut, queue, group, now)
        return cut

    def _fill(self, cut: Cut, queue: RequestQueue, group: object, now: float) -> None:
        waiting = queue.groups[group]
        tickets, rows = cut.tickets, 0
        while waiting:
            head = waiting[0]
            if tickets and rows + head.rows > self.preferred and not head.cancelled:
                cut.reason = CloseReason.FULL if self.preferred == self.max_rows else CloseReason.PREFERRED
                break
            queue.pop(group)
            if head.cancelled:
                continue
            deadline = head.request.deadline
            if deadline is not None and deadline <= now:
                cut.expired.append(head)
                continue
            tickets.append(head)
            rows += head.rows
        else:
            cut.reason = CloseReason.SHAPE if queue.groups else CloseReason.IDLE
        cut.rows = rows
