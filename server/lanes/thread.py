"""The thread lane: a batch crosses to the lane's own thread once, and its completion crosses back to the loop once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from server import timeslice
from server.backends.base import Backend
from server.lanes.base import Lane, OnLoss, OnResult
from server.lanes.buffers import Buffers
from server.lanes.run import timed_run
from server.tensors import Tensor

_Job: TypeAlias = tuple[Mapping[str, Tensor], int, OnResult]


class ThreadLane:
    kind = "thread"

    def __init__(self, name: str, backend: Backend, loop: asyncio.AbstractEventLoop, depth: int = 1, turns: float = timeslice.LONG) -> None:
        """`turns`: how long those of its thread are, see timeslice."""
        self.name = name
        self.depth = depth
        self._turns = turns
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._backend = backend
        self._loop = loop
        self._buffers = [Buffers(backend.inputs) for _ in range(depth)]
        self.buffer = self._buffers[0].view
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        self._jobs.put((inputs, rows, on_result))
        if self.depth > 1:  # the next batch is gathered while this one runs
            self._buffers.append(self._buffers.pop(0))
            self.buffer = self._buffers[0].view

    def _work(self) -> None:
        timeslice.take_turns(self._turns)
        while (job := self._jobs.get()) is not None:
            inputs, rows, on_result = job
            result = timed_run(self._backend, inputs, rows)
            with contextlib.suppress(RuntimeError):  # the loop was closed while the last run lasted: nobody is left to tell
                self._loop.call_soon_threadsafe(on_result, result)
            del job, inputs, result, on_result  # hold no batch's memory while waiting for the next
        self._backend.close()

    def successor(self) -> None:
        return None

    def watch(self, on_loss: OnLoss) -> None:
        """Nothing is told: this lane is lost only with the server."""

    def renew(self, wanted: Callable[[], bool]) -> Lane:
        return self

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
