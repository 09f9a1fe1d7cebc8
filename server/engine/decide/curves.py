"""The learned cost as the batcher asks for it, by bucket of lengths: whole curves, the size that an objective allows, the size at which
rows/s gain nothing more. Computed when asked for, forgotten when the cost model has moved. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cost_model import CostModel
from server.engine.decide.lengths import ceiling

MOST_PLANNED = 1024  # rows of a run that deadlines are planned for
KEPT = 1024  # targets, by deadline


class Curves:
    """`boundaries` are those of the buckets. A bucket's curve is that of the longest length that falls into it."""

    __slots__ = ("_boundaries", "_costs", "_curves", "_max_rows", "_preferred", "_targets", "_version")

    def __init__(self, costs: CostModel, max_rows: int, boundaries: Sequence[int] = ()) -> None:
        self._costs = costs
        self._max_rows = max_rows
        self._boundaries = boundaries
        self._version = -1
        self._curves: dict[int, list[float]] = {}
        self._targets: dict[tuple[int, float], int] = {}
        self._preferred: dict[tuple[int, float], int] = {}

    def of(self, bucket: int) -> list[float]:
        """Seconds within which a run of 0, 1, … rows ends."""
        if self._version != self._costs.version:
            self._forget()
        curve = self._curves.get(bucket)
        if curve is None:
            most = min(self._max_rows, MOST_PLANNED)
            curve = self._curves[bucket] = self._costs.estimates(most, ceiling(bucket, self._boundaries))
        return curve

    def target(self, bucket: int, lead: float) -> int:
        """b*: rows of a run that keeps a deadline `lead` seconds after arrival without a miss."""
        curve = self.of(bucket)
        rows = self._targets.get((bucket, lead))
        if rows is None:
            if len(self._targets) >= KEPT:
                self._targets.clear()
            rows = max((b for b in range(1, len(curve)) if curve[b] * (2 - 1 / b) <= lead), default=1)
            self._targets[bucket, lead] = rows
        return rows

    def preferred(self, bucket: int, worth: float) -> int:
        """The smallest run that reaches a share of the best rows/s."""
        if self._version != self._costs.version:
            self._forget()
        rows = self._preferred.get((bucket, worth))
        if rows is None:
            length = ceiling(bucket, self._boundaries)
            rows = self._preferred[bucket, worth] = self._costs.preferred(self._max_rows, length, worth)
        return rows

    def _forget(self) -> None:
        """The curve has moved."""
        self._version = self._costs.version
        self._curves.clear()
        self._targets.clear()
        self._preferred.clear()
