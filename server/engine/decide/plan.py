"""Under pressure, whom to serve: which deadlines the next run keeps and which it gives up, judged by what can be served afterwards.

Pure, in rows. Every start worth trying is played through: give up the rows whose deadline it can't keep, take as many as it can, then go
on for a while with runs of the size that the objective allows, over the rows that wait and over those expected to come at the rate seen.
The best is what serves most for the device time that it takes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

HORIZON = 1.5  # deadlines ahead that are played through


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a plan is made from. `costs` are seconds of a run of 0, 1, … rows with their margin, rising; `target` is the rows of a run that
    the objective allows in the long run; `rate` rows/s are expected, each `lead` seconds before its deadline; `busy` is when the other
    lanes of the model will be free."""

    now: float
    costs: Sequence[float]
    target: int
    rate: float
    lead: float
    busy: tuple[float, ...] = ()


def plan(deadlines: Sequence[float], outlook: Outlook) -> int:
    """Rows of the next run, whose first is the first row that it answers in time. `deadlines` is one for each waiting row, rising.
    0 where no row can be answered in time."""
    now, costs = outlook.now, outlook.costs
    rollout = _Rollout(deadlines, outlook)
    best, best_value, rows = 0, 0.0, 1
    while rows < len(costs):
        first = bisect_left(deadlines, now + costs[rows])
        waiting = len(deadlines) - first
        if waiting < rows:
            break
        rows = min(waiting, fitting(costs, deadlines[first] - now))
        value = rows + rollout.value(first + rows, now + costs[rows])
        if not best or value > best_value:
            best, best_value = rows, value
        rows += 1
    return best


def fitting(costs: Sequence[float], seconds: float) -> int:
    """The most rows whose run ends within `seconds`."""
    return bisect_right(costs, seconds) - 1


class _Rollout:
    """The rows that wait and those to come, as one list of deadlines, and what further runs would serve of them."""

    __slots__ = ("coming", "deadlines", "horizon", "outlook", "price", "waiting")

    def __init__(self, deadlines: Sequence[float], outlook: Outlook) -> None:
        self.outlook = outlook
        self.waiting = len(deadlines)
        ahead = HORIZON * outlook.lead
        self.horizon = outlook.now + ahead
        self.coming = int(outlook.rate * ahead)
        if self.coming:
            gap = 1 / outlook.rate
            first = outlook.now + gap / 2 + outlook.lead
            self.deadlines = [*deadlines, *[first + number * gap for number in range(self.coming)]]
            if deadlines and deadlines[-1] > first:
                self.deadlines.sort()
        else:
            self.deadlines = list(deadlines)
        lanes = 1 + len(outlook.busy)
        full = outlook.target / outlook.costs[outlook.target] if outlook.costs[outlook.target] > 0 else 0.0
        self.price = min(outlook.rate / lanes, full)

    def value(self, index: int, finish: float) -> float:
        """Rows served from `index` on, less the price of the lanes' time; `finish` is when the lane at hand is free."""
        served, free = 0, sorted((finish, *self.outlook.busy))
        while index < len(self.deadlines):
            start = free.pop(0)
            if start < self.horizon:
                start, index, rows = self._run(start, index)
                served += rows
                index += rows
            insort(free, start)
            if free[0] >= self.horizon:
                break
        return served - self.price * sum(free)

    def _run(self, start: float, index: int) -> tuple[float, int, int]:
        """The next run at `start`: when its lane is free again, its first row, its rows."""
        costs, deadlines = self.outlook.costs, self.deadlines
        came = self._come(start)
        if came <= index:
            return self.outlook.now + (index - self.waiting + 0.5) / self.outlook.rate, index, 0
        index = self._first(start, index, came)
        if index == came:
            return start, index, 0
        rows = min(came - index, fitting(costs, deadlines[index] - start))
        return start + costs[rows], index, rows

    def _come(self, time: float) -> int:
        return min(len(self.deadlines), self.waiting + int((time - self.outlook.now) * self.outlook.rate + 0.5 + 1e-6))

    def _first(self, start: float, index: int, came: int) -> int:
        """Where a run of the target's size, or of all that came, begins: past the rows that it can't answer in time."""
        costs, deadlines, target = self.outlook.costs, self.deadlines, self.outlook.target
        last = came - target
        if last >= index:
            index = bisect_left(deadlines, start + costs[target], index, last + 1)
            if index <= last:
                return index
        low, high = index, came
        while low < high:
            middle = (low + high) // 2
            if deadlines[middle] < start + costs[came - middle]:
                low = middle + 1
            else:
                high = middle
        return low
