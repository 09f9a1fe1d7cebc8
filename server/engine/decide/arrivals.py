"""How fast rows come, from a count that is looked at now and then. Pure."""

from __future__ import annotations

from math import exp

LEAST_SPAN = 0.02  # seconds: a rate isn't told from less


class ArrivalRate:
    """Rows/s that came lately: older ones fade within `span` seconds. Told of the count so far, as often or seldom as one likes."""

    __slots__ = ("_count", "_rows", "_seconds", "_span", "_when")

    def __init__(self, span: float) -> None:
        self._span = span
        self._count = 0
        self._rows = self._seconds = 0.0
        self._when: float | None = None

    def update(self, count: int, now: float) -> None:
        """`count` rows came since the start."""
        if self._when is None:
            self._when, self._count = now, 0
        passed = now - self._when
        keep = exp(-passed / self._span)
        self._rows = self._rows * keep + count - self._count
        self._seconds = self._seconds * keep + passed
        self._count, self._when = count, now

    @property
    def per_second(self) -> float:
        return self._rows / max(self._seconds, LEAST_SPAN)
