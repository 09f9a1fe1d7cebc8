"""The learned cost as the batcher asks for it, by bucket of lengths: whole curves, the size that an objective allows, the size at which
rows/s gain nothing more. Computed when asked for, forgotten when the cost model has moved. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from server.engine.cost_model import CostModel
from server.engine.decide.lengths import ceiling

MOST_PLANNED = 1024  # rows of a run that deadlines are planned for
KEPT = 1024  # answers

T = TypeVar("T")


class Curves:
    """`boundaries` are those of the buckets. A bucket's curve is that of the longest length that falls into it."""

    __slots__ = ("_boundaries", "_costs", "_kept", "_max_rows", "_version")

    def __init__(self, costs: CostModel, max_rows: int, boundaries: Sequence[int] = ()) -> None:
        self._costs = costs
        self._max_rows = max_rows
        self._boundaries = boundaries
        self._kept: dict[tuple[object, ...], object] = {}
        self._version = -1

    def of(self, bucket: int) -> list[float]:
        """Seconds within which a run of 0, 1, … rows ends."""
        most = min(self._max_rows, MOST_PLANNED)
        return self._keep(("curve", bucket), lambda: self._costs.estimates(most, ceiling(bucket, self._boundaries)))

    def target(self, bucket: int, lead: float) -> int:
        """b*: rows of a run that keeps a deadline `lead` seconds after arrival without a miss."""
        curve = self.of(bucket)
        return self._keep(
            ("target", bucket, lead), lambda: max((b for b in range(1, len(curve)) if curve[b] * (2 - 1 / b) <= lead), default=1)
        )

    def preferred(self, bucket: int, worth: float) -> int:
        """The smallest run that reaches a share of the best rows/s."""
        length = ceiling(bucket, self._boundaries)
        return self._keep(("preferred", bucket, worth), lambda: self._costs.preferred(self._max_rows, length, worth))

    def _keep(self, key: tuple[object, ...], compute: Callable[[], T]) -> T:
        if self._version != self._costs.version or len(self._kept) > KEPT:
            self._version = self._costs.version
            self._kept.clear()
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = compute()
        return found  # type: ignore[return-value]
