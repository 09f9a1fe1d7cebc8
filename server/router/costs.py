"""What the runs of a version take, as those see it who report on it: the engine's cost model, or what warm-up measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol


class Capacity(NamedTuple):
    """`rows` a run with which the objective is kept without a miss (b*), and the rows/s that one lane serves then (μ*)."""

    rows: int
    rate: float


class Measured(Protocol):
    """A capacity, whoever computed it."""

    @property
    def rows(self) -> int: ...

    @property
    def rate(self) -> float: ...


class Costs(Protocol):
    """Seconds of a run by its rows and by the length that they are padded to."""

    def mean(self, rows: int, length: int = 1) -> float:
        """Seconds of a run, about half of the time."""
        ...

    def capacity(self, objective: float | None, max_rows: int, length: int = 1) -> Measured:
        """b* and μ*; without an objective, of the smallest run that is worth it."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Plain data for people: points {rows: seconds}, length, fit {a, c1, c2}, margin, runs, changes."""
        ...


class WarmUpCosts:
    """Costs as warm-up measured them, straight between its points; nothing is learned."""

    def __init__(self, points: Mapping[int, float]) -> None:
        self.points = dict(sorted(points.items()))

    def mean(self, rows: int, length: int = 1) -> float:
        """Seconds of a run of `rows` rows, whatever their length; beyond the last point as steep as before it."""
        known = list(self.points.items())
        if not known:
            return 0.0
        if rows <= known[0][0] or len(known) == 1:
            return known[0][1] * max(1.0, rows / known[0][0])
        (low, seconds), (high, more) = next((pair for pair in pairwise(known) if rows <= pair[1][0]), (known[-2], known[-1]))
        return seconds + (more - seconds) * (rows - low) / (high - low)

    def capacity(self, objective: float | None, max_rows: int, length: int = 1) -> Capacity:
        """b* and μ*, by T(b)·(2 − 1/b) ≤ objective; one row where none keeps it, and no rate where nothing was measured."""
        if not self.points:
            return Capacity(max_rows, 0.0)
        if objective is None:
            rows = max((size for size in self.points if size <= max_rows), key=lambda size: size / self.mean(size), default=1)
        else:
            rows = max(1, bisect_right(range(1, max_rows + 1), objective, key=lambda size: self.mean(size) * (2 - 1 / size)))
        return Capacity(rows, rows / self.mean(rows))

    def snapshot(self) -> dict[str, Any]:
        """The points, and that nothing was learned from them."""
        return {"points": self.points, "length": 1, "fit": None, "margin": None, "runs": 0, "changes": 0}
