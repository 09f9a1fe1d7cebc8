"""How much arrives and how much will: counts of rows at times go in, a rate and where it's headed come out. Pure: it sees no clock.

Rules: a rate is taken over the shortest time that holds enough rows to tell it, so that a busy model's is seconds old and a quiet one's
isn't noise; a trend counts only where it stands out from what the arrivals scatter by.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import inf, sqrt

SHORTEST, LONGEST = 3.0, 30.0  # seconds that a rate is taken over
ENOUGH = 100  # rows: a Poisson rate is then known to a tenth
TREND = 10  # seconds that a trend is taken over
LEAST = 5  # intervals that show one
CHANCE = 3.0  # in deviations of a count
SURE = 3.0  # of a trend's own standard error
STEEPEST = 2.0  # times the rate now: the most that is foreseen


class Load:
    """What one model is offered. `note` it at about equal times."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque()

    def note(self, now: float, rows: float) -> None:
        """So many rows came until now, in all; it never falls."""
        self._readings.append((now, rows))
        while self._readings[1][0] <= now - LONGEST if len(self._readings) > 2 else False:
            self._readings.popleft()

    @property
    def rate(self) -> float:
        """Rows a second now; 0 before there are two readings."""
        now, rows = self._readings[-1] if self._readings else (0.0, 0.0)
        least, most, rate = 0.0, inf, 0.0
        for then, before in reversed(self._readings):
            if then >= now:
                continue
            seconds, count = now - then, rows - before
            rate = count / seconds
            if seconds >= SHORTEST:
                if count >= ENOUGH:
                    break
                if most == inf:  # what the last seconds alone can be by chance; a longer time mustn't say otherwise
                    scatter = CHANCE * sqrt(count)
                    least, most = (count - scatter) / seconds, (count + scatter + CHANCE) / seconds
        return min(max(rate, least), most)

    def ahead(self, seconds: float) -> float:
        """Rows a second that are foreseen in `seconds`; the rate now where nothing says that it rises."""
        points = self._rates()
        if len(points) < LEAST:
            return self.rate
        slope, error = _line(points)
        if slope <= SURE * error:
            return self.rate
        middle = sum(at for at, _ in points) / len(points)
        level = sum(rate for _, rate in points) / len(points)
        foreseen = level + slope * (self._readings[-1][0] + seconds - middle)
        return max(self.rate, min(foreseen, STEEPEST * self.rate))

    def _rates(self) -> list[tuple[float, float]]:
        """(middle of the time, rows a second) between the readings of the last TREND seconds."""
        if not self._readings:
            return []
        since = self._readings[-1][0] - TREND
        recent = [reading for reading in self._readings if reading[0] >= since]
        return [((a + b) / 2, (after - before) / (b - a)) for (a, before), (b, after) in pairwise(recent) if b > a]


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The slope through the points by least squares, and its standard error."""
    count = len(points)
    x0, y0 = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - x0) ** 2 for x, _ in points)
    if not spread:
        return 0.0, 0.0
    slope = sum((x - x0) * (y - y0) for x, y in points) / spread
    rest = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in points)
    return slope, sqrt(rest / max(1, count - 2) / spread)
