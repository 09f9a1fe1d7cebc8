"""The process lane: a batch runs in a supervised child, so that a native crash takes nothing else with it.

Batches are gathered straight into memory that the child maps, and answers are views of memory that it wrote; one small message goes
each way. A child that dies, that runs far longer than it should, or that answers no pings is lost: the batch in hand comes back with
`loss` in its result, for the engine to try again in the lane that `renew` opens. This one then runs nothing any more.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import ClassVar, Self

from server.errors import BackendFailure
from server.lanes.base import Loss, LossReason, OnLoss, OnResult, RunResult
from server.lanes.process.launch import IDLE, Child, launch
from server.lanes.process.messages import Done, Job, Run, as_done, error_of, receive, send
from server.lanes.process.segments import AnswerBlocks, InputSegments
from server.lanes.warmup import input_bytes
from server.tensors import Tensor

CLOSE_TIMEOUT = 30.0  # seconds that close() waits for the run in hand


@dataclass(frozen=True, slots=True)
class Patience:
    """When a child counts as hung, in seconds: a run longer than `run` and `times` its estimate, or no pong for `silence` while it lasts.
    It's looked at every `tick`. While it opens its model it hangs when it has done nothing for `idle`."""

    run: float = 10.0
    times: float = 20.0
    silence: float = 10.0
    tick: float = 1.0
    idle: float = IDLE


PATIENCE = Patience()


class ProcessLane:
    kind = "process"
    streams: ClassVar[bool] = False
    depth = 1

    def __init__(self, name: str, job: Job, child: Child, loop: asyncio.AbstractEventLoop, patience: Patience = PATIENCE) -> None:
        """A lane over an open child: call it off the loop, `watch` in it."""
        self.name = name
        self.ready = child.ready
        self.inputs, self.outputs = child.ready.inputs, child.ready.outputs
        # Warm-up and sweep have been made: another child needs one run to take the first run's cost.
        spec = replace(job.spec, threads=child.ready.shape.threads)
        self._job = replace(job, spec=spec, rows=(1,) if job.rows else (), trust_batch_axis=True, shapes=(child.ready.shape,))
        self._cores: tuple[int, ...] = ()
        self._child = child
        self._loop = loop
        self._patience = patience
        self._segments = InputSegments(self.inputs)
        self.buffer = self._segments.view
        self._answers = AnswerBlocks()
        self._number = 0
        self._on_result: OnResult | None = None
        self._on_loss: OnLoss | None = None
        self._slowest = _slowest(child)
        self._run: tuple[float, int] = (0.0, 0)  # when the run in hand was submitted, and its bytes
        self._ticking = False
        self._ponged = 0.0
        self._verdict = LossReason.DIED
        self._how = ""
        self._closing = False
        self._over = threading.Event()
        loop.call_soon_threadsafe(self._listen)

    @classmethod
    def open(
        cls,
        name: str,
        job: Job,
        loop: asyncio.AbstractEventLoop,
        patience: Patience = PATIENCE,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Self:
        """Start a child and wait until its model is open. Blocks. Raises ModelDefect."""
        return cls(name, job, launch(job, wanted, patience.idle), loop, patience)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.process.pid

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        self._on_result = on_result
        self._number += 1
        begun = monotonic()
        segments, returned = self._segments, self._answers.returned
        try:
            parts = segments.place(inputs)
            back = [returned.popleft() for _ in range(len(returned))]
            message = Run(self._number, rows, parts, segments.opened, segments.closed, back, self.streams)
            send(self._child.channel, message, segments.fds)
        except (MemoryError, KeyError, ValueError) as error:
            failure = BackendFailure(f"lane {self.name}: the batch can't be handed to its process: {error}")
            self._loop.call_soon(self._finish, RunResult({}, begun, begun, failure))
            return
        except OSError:
            segments.clear()
            if self._over.is_set():
                self._loop.call_soon(self._report)
            else:
                self._child.process.kill()  # its end is noticed as any other
            return
        if segments.fds or segments.closed:
            segments.sent()
        self._run = (begun, sum(part.size for part in parts))
        if not self._ticking:
            self._ticking = True
            self._ponged = begun
            self._loop.call_later(self._patience.tick, self._tick)

    def successor(self) -> None:
        return None

    def watch(self, on_loss: OnLoss) -> None:
        """`on_loss` is called in the loop when the lane is lost while it's idle, at once if it is already."""
        self._on_loss = on_loss
        if self._over.is_set() and self._on_result is None:
            self._loop.call_soon(self._report)

    def sibling(self, name: str) -> Self:
        """Another lane of the same model over a child of its own. Blocks. Raises ModelDefect."""
        return self.open(name, self._job, self._loop, self._patience)

    def renew(self, wanted: Callable[[], bool]) -> Self:
        fresh = self.open(self.name, replace(self._job, urgent=True), self._loop, self._patience, wanted)
        fresh._slowest = max(fresh._slowest, self._slowest)
        fresh.pin(self._cores)
        return fresh

    def pin(self, cores: tuple[int, ...]) -> None:
        """Have the child run on these cores only: all its threads, and those that they start."""
        self._cores = cores
        for task in Path(f"/proc/{self.pid}/task").iterdir() if cores else ():
            with suppress(OSError):  # a thread that has ended
                os.sched_setaffinity(int(task.name), cores)

    def close(self) -> None:
        """Wait for the run in hand, CLOSE_TIMEOUT at most, and for the child's end. Blocks; call it off the loop."""
        self._closing = True
        if self._over.is_set():
            return
        with suppress(OSError):
            self._child.channel.shutdown(socket.SHUT_WR)
        try:
            self._child.process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._child.process.kill()
            self._child.process.wait()
        try:
            self._loop.call_soon_threadsafe(self._ended)
        except RuntimeError:  # the loop was closed before its lanes
            self._clear()
            return
        self._over.wait(1.0)

    def _listen(self) -> None:
        self._loop.add_reader(self._child.channel.fileno(), self._readable)
        self._loop.add_reader(self._child.pulse.fileno(), self._pong)
        if self._child.pidfd >= 0:
            # A grandchild may hold the sockets open: the process's own end is what counts.
            self._loop.add_reader(self._child.pidfd, self._ended)

    def _readable(self) -> None:
        try:
            message, fds = receive(self._child.channel)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is not None:
            self._done(as_done(message), fds)
            return
        self._loop.remove_reader(self._child.channel.fileno())
        self._child.process.kill()
        if self._child.pidfd < 0:  # else its end is told, and waiting for it here would hold the loop
            self._ended()

    def _done(self, done: Done, fds: list[int]) -> None:
        try:
            self._answers.open(done.opened, fds)
            outputs = self._answers.tensors(done.parts)
            error = error_of(done) if done.error else None
        except (OSError, ValueError, KeyError, TypeError) as failure:
            outputs, error = {}, BackendFailure(f"lane {self.name}: its process's answer can't be read: {failure}")
        self._answers.close(done.closed)
        if done.number != self._number:
            return
        self._deliver(done, RunResult(outputs, done.started, done.finished, error, final=done.final))

    def _deliver(self, done: Done, result: RunResult) -> None:
        """The run in hand is over."""
        (_, size), self._run = self._run, (0.0, 0)
        if size and result.error is None:
            self._slowest = max(self._slowest, (done.finished - done.started) / size)
        self._finish(result)

    def _finish(self, result: RunResult) -> None:
        on_result, self._on_result = self._on_result, None
        if on_result is not None:
            on_result(result)

    def _tick(self) -> None:
        """While a run lasts: is it too long, does its process live?"""
        begun, size = self._run
        if not begun or self._over.is_set():
            self._ticking = False
            return
        now, patience = monotonic(), self._patience
        self._ponged = max(self._ponged, begun)
        if now - begun > max(patience.run, patience.times * self._slowest * size) or now - self._ponged > patience.silence:
            self._verdict = LossReason.HUNG
            self._child.process.kill()
            self._ticking = False
            return
        with suppress(OSError):
            self._child.pulse.send(b"?")
        self._loop.call_later(patience.tick, self._tick)

    def _pong(self) -> None:
        try:
            alive = self._child.pulse.recv(16)
        except BlockingIOError:
            return
        except OSError:
            alive = b""
        if alive:
            self._ponged = monotonic()
        else:
            self._loop.remove_reader(self._child.pulse.fileno())  # its channel says the same, in order

    def _ended(self) -> None:
        """The child is dead: take its last answer, if there's one, then report."""
        if self._over.is_set():
            return
        with suppress(OSError):
            while (received := receive(self._child.channel))[0] is not None:
                self._done(as_done(received[0]), received[1])
        self._how = self._clear()
        self._report()

    def _report(self) -> None:
        """The batch in hand comes back; without one, whoever watches is told."""
        how = "hung and was killed" if self._verdict is LossReason.HUNG else self._how
        loss = Loss(self._verdict, f"its process {how}")
        if self._on_result is not None:
            now = monotonic()
            failure = BackendFailure(f"lane {self.name}: {loss.text} during the run")
            self._finish(RunResult({}, self._run[0] or now, now, failure, loss))
        elif self._on_loss is not None and not self._closing:
            on_loss, self._on_loss = self._on_loss, None
            on_loss(loss)

    def _clear(self) -> str:
        with suppress(RuntimeError):
            for fd in (self._child.channel.fileno(), self._child.pulse.fileno(), self._child.pidfd):
                if fd >= 0:
                    self._loop.remove_reader(fd)
        how = self._child.end()
        self._segments.clear()
        self._answers.clear()
        self._over.set()
        return how


def _slowest(child: Child) -> float:
    """Seconds a byte of the slowest run at warm-up: few rows have the most overhead, which makes for patience."""
    warmup, inputs = child.ready.warmup, child.ready.inputs
    return max((seconds / max(1, input_bytes(inputs, rows, warmup.free_axis)) for rows, seconds in warmup.latency.items()), default=0.0)
