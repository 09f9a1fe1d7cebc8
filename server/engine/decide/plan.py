"""Under pressure, whom to serve: which deadlines the next run keeps and which it gives up, judged by what can be served afterwards.

Pure, in rows. Every start worth trying is played through: give up the rows whose deadline it can't keep, take as many as it can, then go
on for a while with runs of the size that the objective allows, over the rows that wait and over those that come. What comes isn't known:
first it's taken to come evenly, and the best few starts are then played against what came in each of the last spans of time, which has the
bursts in it. The best is what serves most for the device time that it takes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

AHEAD = 1.25  # deadlines that are played through
REPLAYS = 12  # spans of the past that are replayed
LEAST_SPAN = 0.02  # seconds: a rate isn't told from less
FINALISTS = 3  # starts that are


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a plan is made from. `costs` are seconds of a run of 0, 1, … rows with their margin, rising; `target` is the rows of a run that
    the objective allows in the long run; `rate` rows/s come, each `lead` seconds before its deadline; `history` is when the last of them
    came, rising; `busy` is when the other lanes of the model will be free."""

    now: float
    costs: Sequence[float]
    target: int
    rate: float
    lead: float
    history: Sequence[float] = ()
    busy: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Start:
    """A first run: how many of the waiting rows are given up or taken by it, and how many it takes."""

    index: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Future:
    """Rows that come at `times[low:high]`, moved by `shift`."""

    times: Sequence[float]
    low: int
    high: int
    shift: float


def plan(deadlines: Sequence[float], outlook: Outlook) -> int:
    """Rows of the next run, whose first is the first row that it answers in time. `deadlines` is one for each waiting row, rising.
    0 where no row can be answered in time."""
    starts = list(_starts(deadlines, outlook))
    if len(starts) > 1:
        rollout = _Rollout(deadlines, outlook)
        evenly = _evenly(outlook)
        starts.sort(key=lambda start: rollout.value(start, evenly), reverse=True)
        futures = list(_replays(outlook))
        if futures:
            return max(starts[:FINALISTS], key=lambda start: sum(rollout.value(start, future) for future in futures)).rows
    return starts[0].rows if starts else 0


def rate_of(history: Sequence[float], now: float, lately: int) -> float:
    """Rows/s of the last `lately` that came; `history` is when, rising."""
    count = min(lately, len(history))
    return count / max(now - history[-count], LEAST_SPAN) if count else 0.0


def fitting(costs: Sequence[float], seconds: float) -> int:
    """The most rows whose run ends within `seconds`."""
    return bisect_right(costs, seconds) - 1


def _starts(deadlines: Sequence[float], outlook: Outlook) -> Iterator[_Start]:
    """From the one that gives up fewest to the one that takes most: for each first row, as many as make it."""
    now, costs, rows = outlook.now, outlook.costs, 1
    while rows < len(costs):
        first = bisect_left(deadlines, now + costs[rows])
        waiting = len(deadlines) - first
        if waiting < rows:
            return
        rows = min(waiting, fitting(costs, deadlines[first] - now))
        yield _Start(first + rows, rows)
        rows += 1


def _evenly(outlook: Outlook) -> _Future:
    count = int(outlook.rate * AHEAD * outlook.lead)
    return _Future([(number + 0.5) / outlook.rate for number in range(count)], 0, count, outlook.now)


def _replays(outlook: Outlook) -> Iterator[_Future]:
    """The last spans of the past, the latest first."""
    now, history, span = outlook.now, outlook.history, AHEAD * outlook.lead
    high = len(history)
    for number in range(1, REPLAYS + 1):
        begun = now - number * span
        if not history or begun < history[0]:
            return
        low = bisect_left(history, begun, 0, high)
        yield _Future(history, low, high, now - begun)
        high = low


class _Rollout:
    """What further runs would serve of the rows that wait and of those that come."""

    __slots__ = ("_busy", "_costs", "_deadlines", "_end", "_lead", "_now", "_price", "_target", "_waiting")

    def __init__(self, deadlines: Sequence[float], outlook: Outlook) -> None:
        self._deadlines = deadlines
        self._waiting = len(deadlines)
        self._now, self._costs, self._target, self._lead = outlook.now, outlook.costs, outlook.target, outlook.lead
        self._busy = outlook.busy
        self._end = outlook.now + AHEAD * outlook.lead
        full = outlook.costs[outlook.target]
        self._price = min(outlook.rate / (1 + len(outlook.busy)), outlook.target / full if full > 0 else outlook.rate)

    def value(self, start: _Start, future: _Future) -> float:
        """Rows that are served, less the price of the lanes' time."""
        free = [self._now + self._costs[start.rows], *self._busy]
        free.sort()
        index, served, end = start.index, start.rows, self._end
        rows = self._waiting + future.high - future.low
        while index < rows and free[0] < end:
            begin, index, taken = self._run(free.pop(0), index, future)
            served += taken
            index += taken
            insort(free, begin)
        return served - self._price * sum(free)

    def _run(self, begin: float, index: int, future: _Future) -> tuple[float, int, int]:
        """The next run at `begin`: when its lane is free again, its first row, its rows; none, and when to look again, where none waits."""
        waiting, costs = self._waiting, self._costs
        came = waiting + bisect_right(future.times, begin - future.shift, future.low, future.high) - future.low
        if came <= index:
            return max(begin, future.times[future.low + index - waiting] + future.shift) + 1e-9, index, 0
        index = self._first(begin, index, came, future)
        if index == came:
            return begin, index, 0
        taken = min(came - index, bisect_right(costs, self._due(index, future) - begin) - 1)
        return begin + costs[taken], index, taken

    def _due(self, index: int, future: _Future) -> float:
        later = index - self._waiting
        return self._deadlines[index] if later < 0 else future.times[future.low + later] + future.shift + self._lead

    def _first(self, begin: float, index: int, came: int, future: _Future) -> int:
        """Where a run of the target's size, or of all that came, starts: past the rows that it can't answer in time."""
        costs, target = self._costs, self._target
        last = came - target
        if last >= index:
            index = self._due_from(begin + costs[target], index, last + 1, future)
            if index <= last:
                return index
        low, high = index, came
        while low < high:
            middle = (low + high) // 2
            if self._due(middle, future) < begin + costs[came - middle]:
                low = middle + 1
            else:
                high = middle
        return low

    def _due_from(self, moment: float, low: int, high: int, future: _Future) -> int:
        """The first row of low … high that is due at `moment` or later, `high` where none is."""
        waiting = self._waiting
        if low < waiting:
            found = bisect_left(self._deadlines, moment, low, min(high, waiting))
            if found < waiting or high <= waiting:
                return found
            low = waiting
        base = future.low - waiting
        return bisect_left(future.times, moment - future.shift - self._lead, base + low, base + high) - base
