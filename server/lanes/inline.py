"""The inline lane runs in the event loop itself: for trusted CPU models whose run is shorter than a hop to a thread and back.

It times itself: a model that turns out slow (a larger shape than warm-up tried) gets a thread lane as its successor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from server.backends.base import Backend
from server.lanes.base import Lane, OnLoss, OnResult
from server.lanes.buffers import Buffers
from server.lanes.run import timed_run
from server.lanes.thread import ThreadLane
from server.tensors import Tensor

INLINE_LIMIT = 200e-6  # seconds: a thread hop costs 50 to 100 µs under the GIL, and the loop serves nobody while an inline run lasts
MEMORY = 0.02  # weight of the newest run in the running mean
OUTLIER = 4 * INLINE_LIMIT  # a run counts as at most this: being preempted now and then says nothing about the model
TOO_SLOW = 2.0  # times the limit: the mean must pass this before the model is moved


class InlineLane:
    kind = "inline"
    depth = 1

    def __init__(self, name: str, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self._loop = loop
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._backend = backend
        self._buffers = Buffers(backend.inputs)
        self._mean = 0.0
        self.buffer = self._buffers.view

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        result = timed_run(self._backend, inputs, rows)
        self._mean += MEMORY * (min(result.finished - result.started, OUTLIER) - self._mean)
        on_result(result)

    def successor(self) -> Lane | None:
        """The same backend in a lane of its own thread, once the mean run has passed the limit for good."""
        if self._mean <= TOO_SLOW * INLINE_LIMIT:
            return None
        return ThreadLane(self.name, self._backend, self._loop)

    def watch(self, on_loss: OnLoss) -> None:
        """Nothing is told: this lane is lost only with the server."""

    def renew(self, wanted: Callable[[], bool]) -> Lane:
        return self

    def close(self) -> None:
        self._backend.close()
