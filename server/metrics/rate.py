"""How fast a count rises, from what it was when it was last read: counting costs nothing more, and readers don't disturb each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from time import monotonic

WINDOW = 60.0  # seconds: older readings are forgotten
SPACING = 5.0  # seconds between readings that are kept; also the shortest time that a rate is taken over, once there is that much
KEPT = int(WINDOW / SPACING)


class Rate:
    """The rate of `count`, which only rises, over the time since the oldest reading of the last minute."""

    def __init__(self, count: Callable[[], float], now: Callable[[], float] = monotonic) -> None:
        self._count = count
        self._now = now
        self._lock = Lock()
        self._readings: deque[tuple[float, float]] = deque([(now(), count())], maxlen=KEPT)

    def read(self) -> float:
        """Counts a second. Any thread."""
        with self._lock:
            now, count = self._now(), self._count()
            while len(self._readings) > 1 and self._readings[0][0] < now - WINDOW:
                self._readings.popleft()
            since, before = self._readings[0]
            if now - self._readings[-1][0] >= SPACING:
                self._readings.append((now, count))
        return max(0.0, count - before) / (now - since) if now > since else 0.0
