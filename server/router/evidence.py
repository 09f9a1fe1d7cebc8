"""What was seen of two arms, as sums that add up in any order: over replicas, over time, over what came late. Pure.

A value of a metric lies in 0 … 1 (an error is 1, a latency its share of where it's truncated) and is counted in whole units of 2⁻²⁰, so
that sums are exact: adding is associative and commutative to the last bit, and fits the 64-bit counters of a store that many share.
Sums are kept by stratum (the canary's share in percent, since only within one did chance alone choose the arm) and by block of time,
because requests that ran together fared together: how far blocks scatter says how much a request is worth as evidence.

A judge looks far more often than there are new blocks: what it needs of them is kept up to date, and only what changed is gone through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

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

    @classmethod
    def of(cls, values: Iterable[float]) -> Sums:
        """Of values, each held to 0 … 1. One that isn't a number counts as 1."""
        n = total = squares = 0
        for value in values:
            units = round(value * UNIT) if 0.0 <= value <= 1.0 else 0 if value < 0 else UNIT
            n += 1
            total += units
            squares += units * units
        return cls(n, total, squares)

    @classmethod
    def of_events(cls, n: int, happened: int) -> Sums:
        """Of `n` values, so many of which are 1 and the others 0."""
        return cls(n, happened * UNIT, happened * UNIT * UNIT)

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def minus(self, other: Sums) -> Sums:
        """Without what was added before."""
        return Sums(self.n - other.n, self.total - other.total, self.squares - other.squares)

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
NONE_YET = (NOTHING, NOTHING)
Columns: TypeAlias = "NDArray[np.float64]"
Row: TypeAlias = tuple[str, float, int, str, int, int, int]


class Cell(NamedTuple):
    """Where a value is counted. `stratum` is the canary's share in percent, `block` the time over BLOCK, rounded down."""

    metric: str
    stratum: float
    block: int
    arm: Arm


class Stratum(Mapping[int, tuple[Sums, Sums]]):
    """(baseline, canary) of one metric at one share, by block, rising; and both of all blocks together."""

    __slots__ = ("_blocks", "_changed", "_columns", "_rows", "baseline", "canary")

    def __init__(self) -> None:
        self.baseline = self.canary = NOTHING
        self._blocks: dict[int, tuple[Sums, Sums]] = {}
        self._columns: Columns = np.zeros((4, 0))
        self._rows: dict[int, int] = {}
        self._changed: set[int] = set()

    def __getitem__(self, block: int) -> tuple[Sums, Sums]:
        return self._blocks[block]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._blocks))

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, block: int, arm: Arm, sums: Sums) -> None:
        """Add to a block."""
        baseline, canary = self._blocks.get(block, NONE_YET)
        if arm is Arm.BASELINE:
            self._blocks[block] = (baseline.plus(sums), canary)
            self.baseline = self.baseline.plus(sums)
        else:
            self._blocks[block] = (baseline, canary.plus(sums))
            self.canary = self.canary.plus(sums)
        self._changed.add(block)

    def since(self, first: int, arm: Arm) -> Sums:
        """One arm from a block on."""
        late = range(first, max(self._blocks, default=first) + 1)
        blocks = late if len(late) < len(self._blocks) else self._blocks
        return add_up(self._blocks[block][arm is Arm.CANARY] for block in blocks if block >= first and block in self._blocks)

    def columns(self) -> Columns:
        """The baseline's counts and sums, the canary's counts and sums, a column a block, in no order. Not to be changed."""
        for block in self._changed:
            self._rows.setdefault(block, len(self._rows))
        if len(self._rows) > self._columns.shape[1]:
            wider = np.zeros((4, 2 * len(self._rows)))
            wider[:, : self._columns.shape[1]] = self._columns
            self._columns = wider
        for block in self._changed:
            baseline, canary = self._blocks[block]
            self._columns[:, self._rows[block]] = (baseline.n, baseline.sum, canary.n, canary.sum)
        self._changed.clear()
        return self._columns[:, : len(self._rows)]


class Evidence:
    """Sums by cell. `width` is how many blocks of BLOCK seconds one of its blocks holds."""

    __slots__ = ("_strata", "width")

    def __init__(self, cells: Mapping[Cell, Sums] = MappingProxyType({}), width: int = 1) -> None:
        self.width = width
        self._strata: dict[str, dict[float, Stratum]] = {}
        for cell, sums in cells.items():
            self._put(cell, sums)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Evidence) and (self.width, self.cells) == (other.width, other.cells)

    def __bool__(self) -> bool:
        return bool(self._strata)

    def __repr__(self) -> str:
        return f"Evidence({dict(self.cells)!r}, {self.width})"

    @property
    def cells(self) -> Mapping[Cell, Sums]:
        """All that was counted, of now."""
        return MappingProxyType(dict(self._each()))

    def add(self, metric: str, stratum: float, arm: Arm, value: float, now: float) -> None:
        """Count one value, held to 0 … 1, at a time in seconds that all replicas share. A value that isn't a number counts as 1."""
        self.count(metric, stratum, arm, Sums.of((value,)), now)

    def count(self, metric: str, stratum: float, arm: Arm, sums: Sums, now: float) -> None:
        """Count many values at once: what a run brought of a metric. Where nothing is in them, nothing happens."""
        if sums.n:
            at = self._put(Cell(metric, stratum, int(now // (BLOCK * self.width)), arm), sums)
            if len(at) > MOST_BLOCKS:
                self._bound()

    def merge(self, other: Evidence) -> None:
        """Count what another counted."""
        if other.width > self.width:
            self._strata, self.width = self._at(other.width), other.width
        factor = self.width // other.width
        for cell, sums in other._each():
            self._put(cell._replace(block=cell.block // factor), sums)
        self._bound()

    def merged(self, other: Evidence) -> Evidence:
        """Both together; neither is changed."""
        whole = self.widened(self.width)
        whole.merge(other)
        return whole

    def strata(self, metric: str) -> Mapping[float, Stratum]:
        """(baseline, canary) of a metric, by stratum and block, both rising. It goes on changing as the evidence does."""
        return dict(sorted(self._strata.get(metric, {}).items()))

    def total(self, metric: str, arm: Arm, since: float | None = None) -> Sums:
        """All of one arm, from the block of a time on where one is given."""
        strata = self._strata.get(metric, {}).values()
        if since is None:
            return add_up(stratum.canary if arm is Arm.CANARY else stratum.baseline for stratum in strata)
        first = int(since // (BLOCK * self.width))
        return add_up(stratum.since(first, arm) for stratum in strata)

    def widened(self, width: int) -> Evidence:
        """As it is with blocks at least so wide, a power of two."""
        wider = Evidence({}, max(width, self.width))
        wider._strata = self._at(wider.width)
        return wider

    def _put(self, cell: Cell, sums: Sums) -> Stratum:
        strata = self._strata.get(cell.metric)
        if strata is None:
            strata = self._strata[cell.metric] = {}
        stratum = strata.get(cell.stratum)
        if stratum is None:
            stratum = strata[cell.stratum] = Stratum()
        stratum.put(cell.block, cell.arm, sums)
        return stratum

    def _each(self) -> Iterator[tuple[Cell, Sums]]:
        for metric, strata in self._strata.items():
            for share, stratum in strata.items():
                for block, pair in stratum.items():
                    yield from ((Cell(metric, share, block, arm), sums) for arm, sums in zip(Arm, pair, strict=True) if sums.n)

    def _at(self, width: int) -> dict[str, dict[float, Stratum]]:
        """As it is with blocks as wide or wider. Widths are powers of two."""
        factor, wider = width // self.width, Evidence({}, width)
        for cell, sums in self._each():
            wider._put(cell._replace(block=cell.block // factor), sums)
        return wider._strata

    def _bound(self) -> None:
        """Widen the blocks until they're few enough, by how long the evidence is and not by how it came, so that any order ends alike."""
        while any(len(stratum) > MOST_BLOCKS for strata in self._strata.values() for stratum in strata.values()):
            self._strata, self.width = self._at(2 * self.width), 2 * self.width


def add_up(several: Iterable[Sums]) -> Sums:
    """All together."""
    n = total = squares = 0
    for sums in several:
        n += sums.n
        total += sums.total
        squares += sums.squares
    return Sums(n, total, squares)


def as_rows(evidence: Evidence) -> Iterator[Row]:
    """(metric, stratum, block, arm, count, total, squares) of each cell, in order: for a store or a log."""
    cells = evidence.cells
    for cell in sorted(cells):
        sums = cells[cell]
        yield (cell.metric, cell.stratum, cell.block, cell.arm.value, sums.n, sums.total, sums.squares)


def from_rows(rows: Iterable[Iterable[object]], width: int) -> Evidence:
    """What `as_rows` gave of evidence of this width. Raises ValueError for what it can't have given."""
    cells: dict[Cell, Sums] = {}
    for row in rows:
        match tuple(row):
            case str(metric), int() | float() as stratum, int(block), str(arm), int(n), int(total), int(squares) if (
                n > 0 and 0 <= total <= n * UNIT and 0 <= squares <= total * UNIT
            ):
                cells[Cell(metric, float(stratum), block, Arm(arm))] = Sums(n, total, squares)
            case other:
                raise ValueError(f"expected metric, stratum, block, arm, count, total and squares, got {str(other)[:200]}")
    if width < 1 or width & (width - 1):
        raise ValueError(f"width: expected a power of two, got {str(width)[:20]}")
    return Evidence(cells, width)
