"""How busy the event loop is: the CPU time of its thread over wall time, looked at ten times a second."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic, thread_time

from server.metrics.catalogue import LOOP_BUSY
from server.metrics.recorder import Recorder

INTERVAL = 0.1
LOOKS = 10


class LoopProbe:
    """Registers tidegate_loop_busy_ratio, over the last LOOKS * INTERVAL seconds. `start` and `stop` in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, recorder: Recorder) -> None:
        self._loop = loop
        self._looks: deque[tuple[float, float]] = deque(maxlen=LOOKS + 1)
        self._timer: asyncio.TimerHandle | None = None
        recorder.gauge(LOOP_BUSY.name, {}, self.ratio)

    def start(self) -> None:
        self._looks.append((monotonic(), thread_time()))
        self._timer = self._loop.call_later(INTERVAL, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks.clear()

    def ratio(self) -> float:
        """From 0 to 1, from any thread. A loop that didn't come round for a second is stuck, whatever its thread does: 1."""
        looks = list(self._looks)
        if len(looks) < 2:
            return 0.0
        (begun, begun_cpu), (seen, seen_cpu) = looks[0], looks[-1]
        if monotonic() - seen > LOOKS * INTERVAL:
            return 1.0
        return min(1.0, (seen_cpu - begun_cpu) / (seen - begun))
