"""What was seen of two arms, as sums that add up in any order: over replicas, over time, over what came late. Pure.

A value of a metric lies in 0 … 1 (an error is 1, a latency its share of where it's truncated) and is counted in whole units of 2⁻²⁰, so
that sums are exact: adding is associative and commutative to the last bit, and fits the 64-bit counters of a store that many share.
Sums are kept by stratum (the canary's share in percent, since only within one did chance alone choose the arm) and by block of time,
because requests that ran together fared together: how far blocks scatter says how much a request is worth as evidence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

UNIT = 1 << 20
"""Parts that 1 is counted in."""
BLOCK = 1.0
"""Seconds of a block at first."""
MOST_BLOCKS = 512
"""Of one stratum: beyond them neighbours are put together, two and two."""


class Arm(StrEnum):
    """Who answered."""

    BASELINE = "baseline"
    CANARY = "canary"


class Sums(NamedTuple):
    """Count, sum in units and sum of squares in squared units, of one arm's values."""

    n: int = 0
    total: int = 0
    squares: int = 0

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """0 where nothing was counted."""
        return self.total / (self.n * UNIT) if self.n else 0.0

    @property
    def sum(self) -> float:
        return self.total / UNIT

    @property
    def variance(self) -> float:
        """Of one value, about the mean."""
        return max(0.0, self.squares / (self.n * UNIT * UNIT) - self.mean**2) if self.n else 0.0


NOTHING = Sums()


class Cell(NamedTuple):
    """Where a value is counted. `stratum` is the canary's share in percent, `block` the time over BLOCK, rounded down."""

    metric: str
    stratum: float
    block: int
    arm: Arm


@dataclass(slots=True)
class Evidence:
    """Sums by cell. `width` is how many blocks of BLOCK seconds one of its blocks holds."""

    cells: dict[Cell, Sums] = field(default_factory=dict)
    width: int = 1

    def add(self, metric: str, stratum: float, arm: Arm, value: float, now: float) -> None:
        """Count one value, held to 0 … 1, at a time in seconds that all replicas share. A value that isn't a number counts as 1."""
        units = round(min(max(value, 0.0), 1.0) * UNIT) if value == value else UNIT
        cells = len(self.cells)
        self._put(Cell(metric, stratum, int(now // (BLOCK * self.width)), arm), Sums(1, units, units * units))
        if len(self.cells) > cells:
            self._bound()

    def merged(self, other: Evidence) -> Evidence:
        """Both together; neither is changed."""
        width = max(self.width, other.width)
        whole = Evidence(dict(self._at(width)), width)
        for cell, sums in other._at(width).items():
            whole._put(cell, sums)
        whole._bound()
        return whole

    def strata(self, metric: str) -> Mapping[float, Mapping[int, tuple[Sums, Sums]]]:
        """(baseline, canary) of a metric, by stratum and block, both rising."""
        found: dict[float, dict[int, tuple[Sums, Sums]]] = defaultdict(dict)
        for cell in sorted(cell for cell in self.cells if cell.metric == metric):
            base, canary = found[cell.stratum].get(cell.block, (NOTHING, NOTHING))
            sums = self.cells[cell]
            found[cell.stratum][cell.block] = (sums, canary) if cell.arm is Arm.BASELINE else (base, sums)
        return found

    def total(self, metric: str, arm: Arm, since: float = 0.0) -> Sums:
        """All of one arm, from the block of a time on."""
        first = int(since // (BLOCK * self.width))
        return add_up(sums for cell, sums in self.cells.items() if cell.metric == metric and cell.arm is arm and cell.block >= first)

    def _put(self, cell: Cell, sums: Sums) -> None:
        before = self.cells.get(cell)
        self.cells[cell] = sums if before is None else before.plus(sums)

    def _at(self, width: int) -> dict[Cell, Sums]:
        """As it is with wider blocks. Widths are powers of two."""
        factor = width // self.width
        if factor == 1:
            return self.cells
        wider = Evidence({}, width)
        for cell, sums in self.cells.items():
            wider._put(cell._replace(block=cell.block // factor), sums)
        return wider.cells

    def _bound(self) -> None:
        """Widen the blocks until they're few enough, by how long the evidence is and not by how it came, so that any order ends alike."""
        while len(self.cells) > MOST_BLOCKS and self._most() > MOST_BLOCKS:
            self.cells, self.width = self._at(2 * self.width), 2 * self.width

    def _most(self) -> int:
        spans: dict[tuple[str, float], set[int]] = defaultdict(set)
        for cell in self.cells:
            spans[cell.metric, cell.stratum].add(cell.block)
        return max(len(blocks) for blocks in spans.values())


def add_up(several: Iterable[Sums]) -> Sums:
    """All together."""
    whole = NOTHING
    for sums in several:
        whole = whole.plus(sums)
    return whole


def as_rows(evidence: Evidence) -> Iterator[tuple[str, float, int, str, int, int, int]]:
    """(metric, stratum, block, arm, count, total, squares) of each cell, in order: for a store or a log."""
    for cell in sorted(evidence.cells):
        sums = evidence.cells[cell]
        yield (cell.metric, cell.stratum, cell.block, cell.arm.value, sums.n, sums.total, sums.squares)
