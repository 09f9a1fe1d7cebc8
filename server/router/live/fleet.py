"""What the replicas that roll out one version share: the evidence that all of them gather, and which of them acts on it.

Where there's one server, it's this as well: evidence is in the state then, and outlives a restart. A replica sends what it counted since
the last time; the store adds it up exactly once, also where a call has to be repeated (StateStore.count).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from server.errors import NotFound
from server.router.evidence import MOST_BLOCKS, Arm, Cell, Evidence, Sums
from server.state.base import Counted, Counts, Fence
from server.state.events import Events

BETWEEN = "/"
"""Between the parts of a cell's name in the store."""


class Fleet(Protocol):
    """All that reach the store raise Unavailable where it can't be reached. One experiment's calls may overlap."""

    on_change: Callable[[bool], None]
    """Called in the event loop when another replica may have changed a document, and when `reachable` or `leads` changed: with whether the
    state lost what it had, or the latest of it. What went on then is over."""

    @property
    def reachable(self) -> bool:
        """Whether what the others decide is heard. Where it isn't, the baseline answers everything."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this replica is the one that judges and steps."""
        ...

    @property
    def fence(self) -> Fence | None:
        """What a step's swap is to be fenced by, so that a leader that was cut off changes nothing after the next one has begun."""
        ...

    def start(self) -> None:
        """Listen to the others from now on."""
        ...

    async def close(self) -> None:
        """Leave: another may act at once. Twice is once."""
        ...

    async def begin(self, experiment: str) -> None:
        """Gather evidence under this id, which nobody used before."""
        ...

    async def publish(self, experiment: str, seen: Evidence) -> None:
        """Add what was seen here since the last time, which also is tried again after it failed. Raises NotFound where the experiment is
        over, or the store was emptied: the baseline answers then."""
        ...

    async def gathered(self, experiment: str) -> Evidence:
        """What all have published, as of now: it's changed by the next call, and by nobody else. Raises NotFound."""
        ...

    async def end(self, experiment: str) -> None:
        """Forget the evidence."""
        ...


@dataclass(slots=True)
class _Ours:
    """What is on its way from here: `number` and `sent` were tried and may have arrived, `waiting` wasn't. `first` is the first block."""

    number: int = 0
    sent: Counts | None = None
    waiting: Evidence = field(default_factory=Evidence)
    first: int | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def next(self) -> Counts:
        """All that waits, to be sent. The longer this lasts the wider its blocks are, so that the store has few of them."""
        blocks = [cell.block * self.waiting.width for cell in self.waiting.cells]
        self.first = min(blocks) if self.first is None else self.first
        width = self.waiting.width
        while max(blocks) - self.first >= MOST_BLOCKS * width:
            width *= 2
        self.sent, self.waiting, self.number = as_counts(self.waiting.widened(width)), Evidence(), self.number + 1
        return self.sent


@dataclass(slots=True)
class _Gathered:
    """What was read so far: each cell as the store has it, and all of it together."""

    revision: int = 0
    cells: dict[str, Sums] = field(default_factory=dict)
    whole: Evidence = field(default_factory=Evidence)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, counted: Counted) -> None:
        """Bring it up to date."""
        news: dict[int, dict[Cell, Sums]] = defaultdict(dict)
        for name, found in counted.counts.items():
            sums = Sums(*found)
            width, cell = cell_of(name)
            news[width][cell] = sums.minus(self.cells.get(name, Sums()))
            self.cells[name] = sums
        for width, cells in news.items():
            self.whole.merge(Evidence(cells, width))
        self.revision = counted.revision

    def forget(self) -> None:
        """Begin anew: the store has less than was read, as after it was brought back from an older copy."""
        self.revision, self.cells, self.whole = 0, {}, Evidence()


class Alone:
    """As Fleet says, for the only server on its state."""

    def __init__(self, events: Events, source: str = "") -> None:
        self.on_change: Callable[[bool], None] = lambda emptied: None
        self._events = events
        self._source = source or uuid4().hex
        self._ours: dict[str, _Ours] = {}
        self._gathered: dict[str, _Gathered] = {}

    @property
    def reachable(self) -> bool:
        return True

    @property
    def leads(self) -> bool:
        return True

    @property
    def fence(self) -> Fence | None:
        return None

    def start(self) -> None:
        """Nobody else is there."""

    async def close(self) -> None:
        """Nobody else is there."""

    async def begin(self, experiment: str) -> None:
        await self._events.begin(experiment)

    async def publish(self, experiment: str, seen: Evidence) -> None:
        ours = self._ours.setdefault(experiment, _Ours())
        ours.waiting.merge(seen)
        async with ours.lock:
            try:
                await self._send(experiment, ours, ours.sent)
                if ours.waiting:
                    await self._send(experiment, ours, ours.next())
            except NotFound:
                self._forget(experiment)
                raise

    async def gathered(self, experiment: str) -> Evidence:
        kept = self._gathered.setdefault(experiment, _Gathered())
        async with kept.lock:
            try:
                counted = await self._events.counted(experiment, kept.revision)
                if counted.revision < kept.revision:
                    kept.forget()
                    counted = await self._events.counted(experiment)
            except NotFound:
                self._forget(experiment)
                raise
            kept.take(counted)
        return kept.whole

    async def end(self, experiment: str) -> None:
        self._forget(experiment)
        await self._events.end_tally(experiment)

    async def _send(self, experiment: str, ours: _Ours, counts: Counts | None) -> None:
        if counts is not None:
            await self._events.count(experiment, self._source, ours.number, counts)
            ours.sent = None

    def _forget(self, experiment: str) -> None:
        self._ours.pop(experiment, None)
        self._gathered.pop(experiment, None)


def as_counts(evidence: Evidence) -> dict[str, tuple[int, int, int]]:
    """Evidence as a tally's cells. What is counted with blocks of another width are other cells."""
    return {_name(evidence.width, cell): (sums.n, sums.total, sums.squares) for cell, sums in evidence.cells.items()}


def cell_of(name: str) -> tuple[int, Cell]:
    """The width and the cell of a tally's cell."""
    width, metric, stratum, block, arm = name.split(BETWEEN)
    return int(width), Cell(metric, float(stratum), int(block), Arm(arm))


def _name(width: int, cell: Cell) -> str:
    return BETWEEN.join((str(width), cell.metric, repr(float(cell.stratum)), str(cell.block), cell.arm.value))
