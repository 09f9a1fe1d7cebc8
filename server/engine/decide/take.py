"""Who is in a run whose size is decided: tickets leave the queue for the cut, in turn or by likeness in length. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cost_model import CostModel
from server.engine.decide.cut import BatchPolicy, CloseReason, Cut, DropReason, Size
from server.engine.decide.lengths import grow, like
from server.engine.decide.turns import Turns
from server.engine.request_queue import Line, RequestQueue, Ticket


class Take:
    __slots__ = ("_costs", "_policy", "_turns")

    def __init__(self, policy: BatchPolicy, costs: CostModel, turns: Turns) -> None:
        self._policy = policy
        self._costs = costs
        self._turns = turns

    def in_turn(self, cut: Cut, queue: RequestQueue, lines: Sequence[Line], size: Size, now: float) -> None:
        """Move tickets from `lines`, all of one length, into `cut`, in the order of their turns, until the next doesn't fit."""
        tickets, rows, line, skipped = cut.tickets, 0, lines[0], list[tuple[Line, Ticket]]()
        cut.reason = size.reason
        while True:
            if len(lines) > 1 or not line.tickets:
                lines = [one for one in lines if one.tickets]
                if not lines:
                    break
                line = self._turns.pick(lines, now) if len(lines) > 1 else lines[0]
            head = line.tickets[0]
            if head.cancelled:
                queue.pop(line)
            elif head.deadline is not None and self._misses(head, head.deadline, size, now):
                skipped.append((line, queue.pop(line)))
            elif tickets and rows + head.rows > size.rows:
                break
            else:
                tickets.append(queue.pop(line))
                rows += head.rows
                self._turns.spend(line.tenant, head.rows)
        if not tickets and skipped:  # no such run is in time for any: the first head was found to be, alone
            tickets.append(skipped.pop(0)[1])
            rows = tickets[0].rows
        cut.rows, cut.length = rows, tickets[0].length if tickets else 1
        self._leave(cut, queue, skipped, size)
        if not lines:
            self._emptied(cut, queue)

    def _misses(self, ticket: Ticket, deadline: float, size: Size, now: float) -> bool:
        """Whether a run that ends by the size's finish is too late for a ticket, or it's too large for the size and for its deadline."""
        return deadline < size.finish or (ticket.rows > size.rows and now + self._costs.estimate(ticket.rows, ticket.length) > deadline)

    def _leave(self, cut: Cut, queue: RequestQueue, skipped: Sequence[tuple[Line, Ticket]], size: Size) -> None:
        """What the run passes over: given up by a plan for a single lane, whose next run would be later still; else it waits on."""
        if size.reason is CloseReason.PLANNED and self._policy.lanes == 1:
            cut.dropped.extend((ticket, DropReason.GIVEN_UP) for _, ticket in skipped)
        else:
            for line, ticket in reversed(skipped):
                queue.restore(line, ticket)

    def _emptied(self, cut: Cut, queue: RequestQueue) -> None:
        """All that may share the run is in it: say so, unless a plan chose it or it's full."""
        if cut.rows >= self._policy.max_rows:
            cut.reason = CloseReason.FULL
        elif cut.reason is not CloseReason.PLANNED:
            cut.reason = CloseReason.SHAPE if queue.lines else CloseReason.IDLE

    def like(self, cut: Cut, queue: RequestQueue, line: Line, lines: Sequence[Line], size: Size, now: float) -> None:
        """Move tickets like the head in length into `cut`, neighbours where that's cheaper than running them alone."""
        head = line.tickets[0]
        if size.reason is CloseReason.PLANNED:
            made = (one for one in line.tickets if not one.cancelled)
            head = next((one for one in made if one.deadline is None or not self._misses(one, one.deadline, size, now)), head)
            if self._policy.lanes == 1:
                self.give_up(cut, queue, [line], head.due)
        cut.reason = size.reason
        cut.tickets, cut.rows, cut.length = grow(head, like(head, lines, line.bucket), self._costs, size.rows, now)
        for ticket in cut.tickets:
            queue.remove(ticket)
            self._turns.spend(ticket.tenant, ticket.rows)
        if cut.rows < size.rows:
            self._emptied(cut, queue)

    def give_up(self, cut: Cut, queue: RequestQueue, lines: Sequence[Line], before: float) -> None:
        """Drop the heads of lines whose deadline is earlier than `before`."""
        for line in lines:
            while line.tickets and (line.tickets[0].cancelled or _due_before(line.tickets[0], before)):
                ticket = queue.pop(line)
                if not ticket.cancelled:
                    cut.dropped.append((ticket, DropReason.GIVEN_UP))


def _due_before(ticket: Ticket, moment: float) -> bool:
    return ticket.deadline is not None and ticket.deadline < moment
