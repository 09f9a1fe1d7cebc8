"""What a variant's runs cost as the ladder reckons with them: over all lanes, scaled from what others measured, or mixed with another's.

Pure. Each is a Cost of server.precision.ladder: `mean` seconds of device time that a run takes, `estimate` seconds within which it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.engine.cost_model import CostModel
from server.precision.ladder import Cost


@dataclass(frozen=True, slots=True)
class OnLanes:
    """The learned cost of runs of rows of `length` cells, on so many lanes side by side: each row takes that much less of their time."""

    cost: CostModel
    length: int = 1
    lanes: int = 1

    def mean(self, rows: int) -> float:
        return self.cost.mean(rows, self.length) / self.lanes

    def estimate(self, rows: int) -> float:
        return self.cost.estimate(rows, self.length)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A cost so many times another's."""

    cost: Cost
    factor: float

    def mean(self, rows: int) -> float:
        return self.cost.mean(rows) * self.factor

    def estimate(self, rows: int) -> float:
        return self.cost.estimate(rows) * self.factor


@dataclass(frozen=True, slots=True)
class Mixed:
    """A share of the rows goes to another variant on the same device, whatever answers the rest."""

    rest: Cost
    other: Cost
    share: float

    def mean(self, rows: int) -> float:
        return self.share * self.other.mean(rows) + (1 - self.share) * self.rest.mean(rows)

    def estimate(self, rows: int) -> float:
        return max(self.other.estimate(rows), self.rest.estimate(rows)) if self.share else self.rest.estimate(rows)


def foreseen(known: Cost, of: Mapping[int, float], wanted: Mapping[int, float]) -> Cost | None:
    """What a variant costs that hasn't run here, from what both took elsewhere (`of`, `wanted`: seconds by rows) and what the one that runs
    takes here: their ratio at a size carries over, the time doesn't. None where there's nothing to reckon with."""
    if not any(of.values()) or not any(wanted.values()):
        return None
    return _Foreseen(known, CostModel(of), CostModel(wanted))


@dataclass(frozen=True, slots=True)
class _Foreseen:
    known: Cost
    of: CostModel
    wanted: CostModel

    def _ratio(self, rows: int) -> float:
        return self.wanted.mean(rows) / self.of.mean(rows)

    def mean(self, rows: int) -> float:
        return self.known.mean(rows) * self._ratio(rows)

    def estimate(self, rows: int) -> float:
        return self.known.estimate(rows) * self._ratio(rows)
