"""Big JSON in a helper process: orjson holds the GIL for 10 ms on 3 MB, and every other request would wait for it.

Bodies go to the helper and come back as memfds; in this process they are written, mapped and viewed, and only small messages are
exchanged. The helper has one job at a time, others wait in order. When it dies or takes too long, the job it had fails and a new
helper takes the next; the job isn't tried again, since it may be what killed it. All methods are called in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import orjson

import server
from server.edges.offload.json_child import MAX_MESSAGE, Answer, Job, new_memfd, send, write_all
from server.edges.offload.mappings import Mappings
from server.errors import BackendFailure, BodyTooLarge, Draining, InvalidRequest, Overloaded, TidegateError, Unavailable, Unsupported
from server.messages import CancelHandle, InferRequest, InferResponse, Placed
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.encode import Encoded, Encoder, with_placed
from server.protocol.head import MAX_NAME, Layouts
from server.protocol.reply import Reply

OnDecoded: TypeAlias = Callable[[tuple[InferRequest, Reply] | TidegateError], None]
OnEncoded: TypeAlias = Callable[[Encoded | TidegateError], None]
_Finish: TypeAlias = Callable[[memoryview, Answer], Any]

_ERRORS: Mapping[str, type[TidegateError]] = {
    kind.__name__: kind for kind in (InvalidRequest, BodyTooLarge, Unsupported, BackendFailure, Unavailable)
}
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from server.edges.offload.json_child import main; main(int(sys.argv[1]))"
_ROOT = str(Path(server.__path__[0]).parent)


class BodySink:
    """A body as it arrives, kept outside the heap. Whoever makes it closes it, unless JsonWorker.decode was given it."""

    def __init__(self, parts: Iterable[bytes | bytearray | memoryview] = ()) -> None:
        self.size = 0
        self._fd = new_memfd()
        for part in parts:
            self.write(part)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add a chunk. Raises Unavailable where the machine is out of memory."""
        try:
            write_all(self._fd, (chunk,))
        except OSError as error:
            raise Unavailable(f"the body can't be kept: {error.strerror}") from error
        self.size += len(chunk)

    def detach(self) -> int:
        """The descriptor, which is the caller's now; the sink is as if closed."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Give the memory back. Does nothing the second time."""
        fd = self.detach()
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class _Task:
    """A job from submission to its end; what the caller gets as its handle."""

    __slots__ = ("_finish", "_forget", "_on_done", "fd", "job")

    def __init__(self, job: Job, fd: int, finish: _Finish, on_done: Callable[[Any], None], forget: Callable[[_Task], None]) -> None:
        self.job = job
        self.fd = fd
        self._finish = finish
        self._on_done: Callable[[Any], None] | None = on_done
        self._forget = forget

    def cancel(self) -> None:
        """`on_done` isn't called any more. A job that waits is dropped; one that runs ends, and its result is thrown away."""
        self._on_done = None
        self._forget(self)

    def release(self) -> None:
        """Close this process's descriptor of the body; the helper has its own by then, or won't need one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def fail(self, error: TidegateError) -> None:
        """End with an error."""
        self.release()
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(error)

    @property
    def wanted(self) -> bool:
        """False once it's cancelled or has ended."""
        return self._on_done is not None

    def complete(self, answer: Answer, body: memoryview | None) -> None:
        """End with the helper's answer: `body` is its result, None where it found the request wrong."""
        on_done, self._on_done = self._on_done, None
        if on_done is None:
            return
        if body is None:
            on_done(_ERRORS.get(answer.error, BackendFailure)(answer.text))
            return
        try:
            result = self._finish(body, answer)
        except TidegateError as error:
            result = error
        on_done(result)


class _Helper:
    """One helper process and the socket to it. `on_answer` gets each answer with its memfd (-1: none), `on_death` comes once."""

    def __init__(self, on_answer: Callable[[Answer, int], None], on_death: Callable[[_Helper], None]) -> None:
        """Start it. Raises OSError."""
        self._on_answer, self._on_death = on_answer, on_death
        self._loop = asyncio.get_running_loop()
        self.ready = False
        self.settled = asyncio.Event()  # it's ready, or it died before
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps([_ROOT, *sys.path])]
            try:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            except OSError:
                self._channel.close()
                raise
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel.fileno(), self._readable)

    def send(self, job: Job, fd: int) -> None:
        """Hand it a job. Raises OSError where it's dead."""
        send(self._channel, job, fd)

    def stop(self) -> None:
        """Kill it, if it isn't dead, and reap it. `on_death` isn't called."""
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self.process.kill()
        self.process.wait()
        self.settled.set()

    def _readable(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        if not message:
            self._on_death(self)
            return
        answer = Answer(*orjson.loads(message))
        if answer.number:
            self._on_answer(answer, fds[0] if fds else -1)
        else:
            self.ready = True
            self.settled.set()


class JsonWorker:
    """The helper process and the queue before it. `timeout` is seconds for one job, `max_waiting` how many may wait."""

    def __init__(self, layouts: Layouts | None = None, timeout: float = 30.0, max_waiting: int = 64) -> None:
        self._decoder = BinaryDecoder(layouts)
        self._encoder = Encoder()
        self._mappings = Mappings()
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._helper: _Helper | None = None
        self._numbers = count(1)
        self._closed = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The helper's process id, None while there's none."""
        return self._helper.process.pid if self._helper is not None else None

    async def start(self) -> None:
        """Start the helper and wait until it's ready, so that the first big body doesn't wait for its imports; without this it
        starts with the first job. Raises Unavailable."""
        try:
            helper = self._helper = self._helper or _Helper(self._answered, self._died)
            await asyncio.wait_for(helper.settled.wait(), self._timeout)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the JSON helper process didn't start: {error or f'not ready within {self._timeout} s'}") from error
        if not helper.ready:
            raise Unavailable("the JSON helper process ended at its start; stderr has its last words")

    def decode(self, body: BodySink, model: str, version: str, on_done: OnDecoded, head_length: int | None = None) -> CancelHandle:
        """Decode a body that is JSON, wholly or in its first `head_length` bytes. `body` is the worker's from now on. `on_done` gets
        the request and the reply, or the error. Tensors are views of memory that goes with them. Raises Overloaded or Draining."""

        def finish(result: memoryview, answer: Answer) -> tuple[InferRequest, Reply]:
            return self._decoder.decode(result, answer.head, model, version)

        job = Job(next(self._numbers), "decode", body.size, head_length, model[:MAX_NAME])
        return self._submit(_Task(job, body.detach(), finish, on_done, self._forget))

    def decode_typed(self, body: BodySink, on_done: OnDecoded) -> CancelHandle:
        """As `decode`, for a gRPC message whose values are typed contents."""
        return self._submit(_Task(Job(next(self._numbers), "typed", body.size, None), body.detach(), self._typed, on_done, self._forget))

    def _typed(self, result: memoryview, answer: Answer) -> tuple[InferRequest, Reply]:
        model, version = orjson.loads(answer.text)
        return self._decoder.decode(result, answer.head, model, version)

    def encode(self, response: InferResponse, reply: Reply, on_done: OnEncoded) -> CancelHandle:
        """Encode an answer as Encoder does. Its outputs are copied before this returns. `on_done` gets the Encoded, whose parts are
        views of memory that goes with them, or the error. Raises Overloaded, Draining, and what Encoder.encode raises."""
        placed, response = response.placed, replace(response, placed=())
        raw = self._encoder.encode(response, Reply(reply.id, True))
        binary = tuple(reply.binary.get(name, reply.binary_default) for name in response.outputs)
        body = BodySink((raw.head, *raw.blobs))
        job = Job(next(self._numbers), "encode", body.size, len(raw.head), binary=binary)
        return self._submit(_Task(job, body.detach(), partial(_encoded, placed), on_done, self._forget))

    def close(self) -> None:
        """End the helper. Jobs that aren't done fail with Draining."""
        self._closed = True
        unfinished = self._stop_helper() + list(self._waiting)
        self._waiting.clear()
        _fail(unfinished, Draining("the server is going down"))
        self._mappings.close()

    def _submit(self, task: _Task) -> _Task:
        if self._closed:
            task.release()
            raise Draining("the server is going down")
        if len(self._waiting) >= self._max_waiting:
            task.release()
            raise Overloaded("big JSON bodies wait already; binary tensors needn't", "json_worker.max_waiting")
        self._waiting.append(task)
        self._next()
        return task

    def _forget(self, task: _Task) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
            task.release()

    def _next(self) -> None:
        """Give the helper the next job, if it's free: a new helper where there's none or where it turns out to be dead."""
        if self._running is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        task = self._waiting.popleft()
        for _ in range(2):
            try:
                if self._helper is None:
                    self._helper = _Helper(self._answered, self._died)
                self._helper.send(task.job, task.fd)
            except OSError as error:
                failure = Unavailable(f"the JSON helper process can't be started: {error.strerror}")
                self._stop_helper()
            else:
                task.release()
                self._running = task
                self._timer = loop.call_later(self._timeout, self._timed_out)
                return
        loop.call_soon(_fail, [task, *self._waiting], failure)
        self._waiting.clear()

    def _answered(self, answer: Answer, fd: int) -> None:
        task = self._end_run()
        try:
            body = self._mappings.view(fd, answer.size) if task is not None and task.wanted and not answer.error else None
        except OSError as error:
            answer, body = Answer(answer.number, error="Unavailable", text=f"the JSON helper's result can't be mapped: {error}"), None
        finally:
            if fd >= 0:
                os.close(fd)
        self._next()
        if task is not None:
            task.complete(answer, body)

    def _timed_out(self) -> None:
        self._replace(Unavailable(f"the JSON helper process took longer than {self._timeout} s for this body"))

    def _died(self, helper: _Helper) -> None:
        self._replace(Unavailable("the JSON helper process ended while it had this body; binary tensors don't need it"))

    def _replace(self, error: Unavailable) -> None:
        """Fail what ran. A helper that never got ready would fail again, so what waits fails with it; otherwise another one starts."""
        was_ready = self._helper is not None and self._helper.ready
        unfinished = self._stop_helper()
        if was_ready:
            self.restarts += 1
            self._next()
            if self._helper is None:
                with suppress(OSError):  # the next job tries again
                    self._helper = _Helper(self._answered, self._died)
        else:
            unfinished += self._waiting
            self._waiting.clear()
        _fail(unfinished, error)

    def _end_run(self) -> _Task | None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._running = self._running, None
        return task

    def _stop_helper(self) -> list[_Task]:
        """Kill the helper; what it had in hand."""
        if self._helper is not None:
            self._helper.stop()
            self._helper = None
        task = self._end_run()
        return [] if task is None else [task]


def _fail(tasks: list[_Task], error: TidegateError) -> None:
    for task in tasks:
        task.fail(error)


def _encoded(placed: tuple[Placed, ...], body: memoryview, answer: Answer) -> Encoded:
    blobs: list[bytes | memoryview] = [body[answer.head :]] if answer.head < answer.size else []
    encoded = Encoded(body[: answer.head], blobs, answer.binary, answer.size)
    return with_placed(encoded, placed) if placed else encoded
