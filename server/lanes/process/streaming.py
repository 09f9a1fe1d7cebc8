"""The process lane of a decoupled model: a run gives any number of answers, each a result of its own, the last one final."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import ClassVar

from server.lanes.base import RunResult
from server.lanes.process.lane import ProcessLane
from server.lanes.process.messages import Done, Steer, send


class StreamingLane(ProcessLane):
    """`on_result` is called for each answer. The child is WINDOW answers ahead at most: `go_on` lets it make as many more, `stop` ends its
    run, which is then over with an empty final result. A run is hung when its next answer takes too long, not while it may make none."""

    streams: ClassVar[bool] = True
    _ahead = 0

    def go_on(self, count: int = 1) -> None:
        """So many answers have been taken."""
        self._ahead -= count
        self._steer(count)

    def stop(self) -> None:
        """Nobody wants more answers of the run in hand."""
        self._steer(0)

    def _steer(self, more: int) -> None:
        returned = self._answers.returned
        back = [returned.popleft() for _ in range(len(returned))]
        with suppress(OSError):  # its end is noticed as any other
            send(self._child.channel, Steer(self._number, more, back), [])
        self._touch()

    def _touch(self) -> None:
        """The run's time counts from here."""
        begun, size = self._run
        if begun:
            self._run = monotonic(), size

    def _deliver(self, done: Done, result: RunResult) -> None:
        if done.final:
            self._ahead = 0
            super()._deliver(done, result)
            return
        self._ahead += 1
        self._touch()
        if self._on_result is not None:
            self._on_result(result)

    def _tick(self) -> None:
        if self._ahead > 0:
            self._touch()  # answers wait for a client
        super()._tick()
