"""ModelStreamInfer: one stream's requests, answered in their order; errors are answers and don't end the stream.

Reading pauses while too many answers are owed, the client doesn't read them, or too many bytes are in flight over all connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from server.edges.grpc.call import Call
from server.edges.grpc.inference import GrpcEdge, Inference
from server.errors import Draining, TidegateError, Unavailable


class Duplex(Protocol):
    """What a stream asks of its transport. `read` answers None at the end of the requests."""

    async def read(self) -> bytes | None: ...

    async def write(self, message: bytes) -> None: ...


class _Place:
    """One request's place in the order of answers."""

    __slots__ = ("answers", "inference", "stream")

    def __init__(self, stream: InferStream, call: Call) -> None:
        self.stream = stream
        self.answers: deque[bytes] = deque()
        self.inference = Inference(stream.edge, call, self.answered, streamed=True)

    def answered(self, answer: bytes | TidegateError, final: bool) -> None:
        assert isinstance(answer, bytes)
        if answer:
            self.answers.append(answer)
            self.stream.unsent += len(answer)
            if not final and self.stream.unsent >= self.stream.edge.shared.limits.pipeline_bytes:
                self.inference.hold(held=True)
                self.stream.held = True
        self.stream.news.set()


class InferStream:
    """`run` lasts as long as the stream.

    `unsent` are bytes of answers that wait; `held`: models wait with more; `news` is set by whatever `run` should look at."""

    def __init__(self, edge: GrpcEdge, call: Call, duplex: Duplex, draining: asyncio.Event) -> None:
        self.edge = edge
        self.unsent = 0
        self.held = False
        self.news = asyncio.Event()
        self._call = call
        self._duplex = duplex
        self._draining = draining
        self._room = asyncio.Event()
        self._places: deque[_Place] = deque()

    async def run(self) -> None:
        """Read, answer, and end when the client has ended and all is answered. Raises Draining, where the server goes down, once what was
        read is answered, and Unavailable for a client that doesn't read."""
        receiving = asyncio.ensure_future(self._receive())
        stopping = asyncio.ensure_future(self._draining.wait())
        for task in (receiving, stopping):
            task.add_done_callback(lambda _: self.news.set())
        try:
            while await self._send_one(receiving, stopping):
                pass
        finally:
            for task in (receiving, stopping):
                task.cancel()
            for place in self._places:
                place.inference.abandon()
        if not receiving.done() or receiving.cancelled():
            raise Draining("the server is going down; what came on this stream is answered")
        receiving.result()

    async def _send_one(self, receiving: asyncio.Future[Any], stopping: asyncio.Future[Any]) -> bool:
        """Send the next answer in order, or wait for news. False at the end."""
        self.news.clear()
        if not self._places:
            if receiving.done() or stopping.done():
                return False
            await self.news.wait()
            return True
        first = self._places[0]
        if first.answers:
            message = first.answers.popleft()
            await self._write(message)
            self.unsent -= len(message)
            if self.held and self.unsent < self.edge.shared.limits.pipeline_bytes:
                self.held = False
                for place in self._places:
                    place.inference.hold(held=False)
        elif first.inference.ended:
            self._places.popleft()
        else:
            await self.news.wait()
        self._room.set()
        return True

    async def _write(self, message: bytes) -> None:
        patience = self.edge.shared.limits.body_timeout
        try:
            async with asyncio.timeout(patience):
                await self._duplex.write(message)
        except TimeoutError:
            raise Unavailable(f"the client hasn't read its answers for {patience:g} s (limits.body_timeout)") from None

    async def _receive(self) -> None:
        while (body := await self._duplex.read()) is not None:
            place = _Place(self, self._call)
            self._places.append(place)
            place.inference.begin(body)
            self.news.set()
            while self._full():
                self._room.clear()
                await self._room.wait()

    def _full(self) -> bool:
        limits, inflight = self.edge.shared.limits, self.edge.shared.inflight
        if inflight.used > inflight.limit:
            inflight.wait(self._room.set)
            return True
        return len(self._places) >= limits.pipeline_depth or self.unsent >= limits.pipeline_bytes
