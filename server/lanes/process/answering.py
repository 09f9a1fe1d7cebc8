"""The child's side of a decoupled run: one answer after the other, no more ahead of the parent than it allows, until it says stop."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from time import monotonic

from server.backends.base import Backend, Streaming
from server.errors import BackendFailure, TidegateError
from server.lanes.process.messages import WINDOW, Done, Run, as_steer, receive, send
from server.lanes.process.segments import OutputBlocks
from server.tensors import Tensor


class Answers:
    """Is run as a backend; each run gives the next answer to the first one's inputs, nothing once it's `over`."""

    def __init__(self, backend: Backend) -> None:
        self.over = False
        self._backend = backend
        self._answers: Iterator[dict[str, Tensor]] | None = None

    def run(self, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The next answer. Raises BackendFailure for a backend that has only one."""
        if self._answers is None:
            if not isinstance(self._backend, Streaming):
                raise BackendFailure(f"backend {self._backend.version} gives one answer only, so its model can't be decoupled")
            self._answers = self._backend.stream(inputs, rows)
        answer = next(self._answers, None)
        self.over = answer is None
        return answer or {}

    def close(self) -> None:
        """End what gives the answers."""
        close = getattr(self._answers, "close", None)
        if close is not None:
            with suppress(TidegateError):  # nobody waits for it
                close()


def answer_all(channel: socket.socket, run: Run, answers: Answers, blocks: OutputBlocks, next_done: Callable[[], Done]) -> None:
    """Send each answer as soon as it's there, then the final word. Raises OSError where the parent is gone."""
    begun, allowed = monotonic(), WINDOW
    while (more := _steered(channel, run.number, blocks, wait=allowed == 0)) is not None:
        allowed += more
        if not allowed:
            continue
        done = next_done()
        if done.error or answers.over:
            _send(channel, done._replace(started=begun), blocks)
            return
        if not _send(channel, done._replace(final=False), blocks):
            break
        allowed -= 1
    answers.close()
    _send(channel, Done(run.number, begun, monotonic()), blocks)


def _steered(channel: socket.socket, number: int, blocks: OutputBlocks, *, wait: bool) -> int | None:
    """How many more answers the parent allows, None where it says stop; `wait` for a word where there's none."""
    more = 0
    while select.select([channel], [], [], None if wait and not more else 0)[0]:
        message, _ = receive(channel)
        if message is None:
            raise ConnectionError("the parent hung up in a decoupled run")
        steer = as_steer(message)
        blocks.give(steer.returned)
        if steer.number == number and not steer.more:
            return None
        more += steer.more if steer.number == number else 0
    return more


def _send(channel: socket.socket, done: Done, blocks: OutputBlocks) -> bool:
    """False where the answer can't be sent, and was replaced by an error which is the last."""
    try:
        send(channel, done, blocks.fds)
    except ValueError as error:
        send(channel, Done(done.number, done.started, done.finished, error="BackendFailure", text=f"the outputs: {error}"), [])
        return False
    blocks.sent()
    return True
