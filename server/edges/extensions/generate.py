"""The generate extension: inference by plain JSON objects, whose members are inputs by name and parameters, and answers of the same kind;
one for POST …/generate, as many as the model gives for POST …/generate_stream, as server-sent events.

Small things are asked so: the body is read and written in the loop, and a large tensor belongs into …/infer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from time import monotonic
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.dataplane import SETTLED
from server.edges.extensions.generate_codec import asked, written
from server.edges.http_errors import body_of
from server.edges.infer_edge import InferEdge
from server.engine.streams.engine import Stream
from server.errors import BodyTooLarge, Cancelled, InvalidRequest, TidegateError
from server.gate import Operation
from server.messages import CancelHandle, InferRequest, InferResponse, Layout, TraceContext
from server.protocol.head import parse_json

T = TypeVar("T")
MOST_WAITING = 8  # answers of a stream that wait for their reader, before the model does
EVENTS = "text/event-stream"
ONE_ONLY = "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"


def add_generate(app: FastAPI, edge: InferEdge) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""

    @app.post("/v2/models/{model}/versions/{version}/generate", tags=["inference"], summary="Infer by a plain JSON object")
    @app.post("/v2/models/{model}/generate", tags=["inference"], summary="Infer by a plain JSON object")
    async def generate(request: Request, model: str, version: str = "") -> Response:
        answers = Answers(edge, await _read(request, edge, model, version))
        try:
            only = await _unless_gone(request, answers.only())
        finally:
            answers.abandon()
        return Response(written(only), media_type="application/json")

    @app.post("/v2/models/{model}/versions/{version}/generate_stream", tags=["inference"], summary="The same, as server-sent events")
    @app.post("/v2/models/{model}/generate_stream", tags=["inference"], summary="The same, as server-sent events")
    async def generate_stream(request: Request, model: str, version: str = "") -> Response:
        answers = Answers(edge, await _read(request, edge, model, version))
        try:
            first = await _unless_gone(request, answers.next())  # an error that comes first has a status of its own
            if first is not None and first.error is not None:
                raise first.error
            return EventStream(answers, first)
        except (TidegateError, asyncio.CancelledError):
            answers.abandon()
            raise


class Answers:
    """One request and its answers, as they come."""

    def __init__(self, edge: InferEdge, request: InferRequest) -> None:
        self._edge = edge
        self._request = request
        self._come: asyncio.Queue[InferResponse | None] = asyncio.Queue()  # None: that was all
        self._ended = False
        self._held = False
        self._handle: CancelHandle = SETTLED
        self._handle = edge.dataplane.infer(request, self._respond, streamed=True)

    def _respond(self, response: InferResponse, final: bool) -> None:
        if self._ended:
            return
        if response.outputs or response.error is not None:
            self._come.put_nowait(response)
            self._hold(held=self._come.qsize() >= MOST_WAITING)
        if final or response.error is not None:
            self._ended = True
            self._come.put_nowait(None)
            self._edge.answered = monotonic()
            self._edge.dataplane.done(self._request, response, 0.0)

    async def next(self) -> InferResponse | None:
        """The next answer, None after the last."""
        answer = await self._come.get()
        self._hold(held=False)
        return answer

    def _hold(self, *, held: bool) -> None:
        """A model that may give many answers waits while enough of them haven't been read."""
        if held != self._held and not self._ended and isinstance(self._handle, Stream):
            self._held = held
            self._handle.hold(held=held)

    async def only(self) -> InferResponse:
        """The answer of a model that gives one. Raises its error, and InvalidRequest where there are none or several."""
        first = await self.next()
        if first is not None and first.error is not None:
            raise first.error
        if first is None or await self.next() is not None:
            raise InvalidRequest(ONE_ONLY)
        return first

    def abandon(self) -> None:
        """Nobody waits for the rest. Does nothing once the last answer has come."""
        if not self._ended:
            self._ended = True
            self._handle.cancel()
            request = self._request
            error = Cancelled("the client closed the connection")
            self._edge.dataplane.done(request, InferResponse(request.model, request.version, request.id, error=error), 0.0)


class EventStream(StreamingResponse):
    """Answers as server-sent events. Ends with the last answer, or with the client."""

    def __init__(self, answers: Answers, first: InferResponse | None) -> None:
        super().__init__(self._events(first), media_type=EVENTS)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.abandon()

    async def _events(self, response: InferResponse | None) -> AsyncIterator[bytes]:
        while response is not None:
            try:
                text = written(response) if response.error is None else body_of(response.error)
            except TidegateError as error:
                text = body_of(error)
            yield b"data: %b\n\n" % text
            response = await self._answers.next()


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """What `answer` gives. Raises Cancelled where the client goes first."""
    waiting, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Cancelled("the client closed the connection")
        return waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, edge: InferEdge, model: str, version: str) -> InferRequest:
    """The request that a body spells, from whoever sends it. Raises TidegateError, once that is accounted."""
    begun = monotonic()
    try:
        return await _understood(request, edge, model, version)
    except TidegateError as error:
        refused = InferRequest(model, {}, Layout(()), version, received=begun)
        edge.dataplane.done(refused, InferResponse(model, version, error=error), 0.0)
        raise


async def _understood(request: Request, edge: InferEdge, model: str, version: str) -> InferRequest:
    caller = edge.admitted(dict(request.headers.raw))
    document = parse_json(await _body(request, edge.limits.json_offload))
    received = monotonic()
    inference = asked(document, edge.dataplane.takes(model, version), model, edge.layouts)
    if inference.parameters.get("explain"):
        edge.gate.check(caller.principal, Operation.EXPLAIN)
    inference.principal, inference.tenant = caller
    inference.received = received
    traceparent = request.headers.get("traceparent")
    inference.trace = None if traceparent is None else TraceContext(traceparent)
    if (header := edge.sticky.get(model)) is not None:
        inference.sticky = request.headers.get(header.decode("latin-1"), "")
    inference.decode_seconds = monotonic() - received
    return inference


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise BodyTooLarge(f"a generate request takes at most {most} bytes (limits.json_offload); large tensors go to …/infer")
    return bytes(body)
