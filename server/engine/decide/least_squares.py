"""A small least squares fit by relative error that can be added to for ever: seconds ≈ a + c1·cells + c2·cells·length, none negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

SINGULAR = 1e-9  # of a column's own weight: what is left of it below this says nothing that the others don't

_ALL = (0, 1, 2)
_FEWER = ((0, 1), (0, 2), (1, 2), (1,), (2,), (0,))
"""Which parameters are fitted together where all give a negative one; of equals the first is taken."""


@dataclass(slots=True)
class Sums:
    """The normal equations: the products of a run's terms by one another and by its seconds, each over seconds squared."""

    aa: float = 0.0
    ac: float = 0.0
    ad: float = 0.0
    cc: float = 0.0
    cd: float = 0.0
    dd: float = 0.0
    ya: float = 0.0
    yc: float = 0.0
    yd: float = 0.0

    def add(self, cells: int, length: int, seconds: float, weight: float) -> None:
        """A run took `seconds`; it counts `weight` runs."""
        one = 1.0 / seconds
        linear = cells * one
        square = linear * length
        heavy = weight * one
        self.aa += heavy * one
        self.ac += heavy * linear
        self.ad += heavy * square
        self.ya += heavy
        heavy = weight * linear
        self.cc += heavy * linear
        self.cd += heavy * square
        self.yc += heavy
        heavy = weight * square
        self.dd += heavy * square
        self.yd += heavy

    def scale(self, keep: float) -> None:
        """Let all that was added count `keep` times."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) * keep)

    def rescale(self, factor: float) -> None:
        """As if every run had taken `factor` times as long."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) / (factor if name[0] == "y" else factor * factor))

    def plus(self, other: Sums) -> Sums:
        """The sums of both."""
        return Sums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def solve(self) -> list[float]:
        """[a, c1, c2]; zeros where nothing was added."""
        matrix = ((self.aa, self.ac, self.ad), (self.ac, self.cc, self.cd), (self.ad, self.cd, self.dd))
        right = (self.ya, self.yc, self.yd)
        whole = _solve(matrix, right, _ALL)
        if whole is not None and min(whole) >= 0:
            return whole
        fewer = [found for used in _FEWER if (found := _solve(matrix, right, used)) is not None and min(found) >= 0]
        return max(fewer, key=lambda found: sum(map(mul, found, right)), default=[0.0, 0.0, 0.0])  # which leaves the least error


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float], used: Sequence[int]) -> list[float] | None:
    """Gauss, on columns scaled to one: they differ by orders of magnitude. Parameters that aren't used are 0. None where columns say the
    same."""
    if any(matrix[i][i] <= 0 for i in used):
        return None
    scale = {i: matrix[i][i] ** -0.5 for i in used}
    rows = {i: {j: matrix[i][j] * scale[i] * scale[j] for j in used} | {-1: right[i] * scale[i]} for i in used}
    for i in used:
        pivot = rows[i][i]
        if pivot <= SINGULAR:
            return None
        ours = rows[i] = {j: value / pivot for j, value in rows[i].items()}
        for j in used:
            if j != i:
                factor = rows[j][i]
                rows[j] = {k: value - factor * ours[k] for k, value in rows[j].items()}
    return [rows[i][-1] * scale[i] if i in used else 0.0 for i in _ALL]
