"""One inference request that came by gRPC, and its answers: decoded, submitted, encoded; by callbacks, and without knowing the transport.

What a request means is decided elsewhere, by the same parts as for HTTP. A transport makes an Inference for each message, `begin`s it,
and gets its answers as bytes or as an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

from server.edges.grpc.call import Call, admitted
from server.edges.infer_edge import InferEdge
from server.edges.offload.json_worker import BodySink
from server.engine.streams.engine import Stream
from server.errors import Cancelled, Overloaded, TidegateError, Unavailable
from server.gate import Operation
from server.messages import CancelHandle, InferRequest, InferResponse, Layout, TraceContext
from server.protocol.proto_codec import ProtoDecoder, named
from server.protocol.proto_encode import FINAL_WANTED, ProtoEncoder, streamed_error
from server.protocol.reply import Reply

Answered: TypeAlias = Callable[[bytes | TidegateError, bool], None]
"""Gets an answer or the error, and whether it was the last. An empty one needn't be sent."""

INFLIGHT_PATIENCE = 1 / 6  # of the body time-out: how long a message may wait for room among the bytes in flight, as with HTTP
NO_LAYOUT = Layout(())


class GrpcEdge:
    """What all calls share: the parts of HTTP's edge, and the codecs of this one."""

    __slots__ = ("decoder", "encoder", "shared")

    def __init__(self, shared: InferEdge) -> None:
        self.shared = shared
        self.decoder = ProtoDecoder(shared.limits.max_json_body, shared.layouts)
        self.encoder = ProtoEncoder()


class Inference:
    """One request, made when its message is there. `streamed` says that its answers go into a stream, where errors are answers too."""

    __slots__ = ("_answered", "_call", "_edge", "_handle", "_received", "_request", "_size", "_timer", "ended", "streamed")

    def __init__(self, edge: GrpcEdge, call: Call, answered: Answered, *, streamed: bool = False) -> None:
        self.streamed = streamed
        self.ended = False
        self._edge = edge
        self._call = call
        self._answered = answered
        self._received = monotonic()
        self._size = 0
        self._request: InferRequest | None = None
        self._handle: CancelHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, body: bytes) -> None:
        """Have the message answered, once there's room among the bytes in flight; not at all after abandon."""
        shared = self._edge.shared
        if self.ended:
            return
        self._size = len(body)
        if shared.inflight.take(self._size):
            self._submit(body)
            return
        self._timer = shared.loop.call_later(shared.limits.body_timeout * INFLIGHT_PATIENCE, self._refuse_crowded)
        shared.inflight.wait(lambda: self._resume(body))

    def _resume(self, body: bytes) -> None:
        if not self.ended and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._submit(body)

    def _refuse_crowded(self) -> None:
        limit = self._edge.shared.limits.inflight_bytes
        self._fail(Overloaded(f"requests in flight hold all of {limit} bytes", "limits.inflight_bytes"))

    def _submit(self, body: bytes) -> None:
        decoder, large = self._edge.decoder, self._edge.shared.limits.json_offload
        begun = monotonic()
        try:
            if len(body) > large and decoder.typed_bytes(body) > large:
                self._offload(body)
                return
            request = decoder.decode(body)
        except TidegateError as error:
            self._account(body)
            self._fail(error)
            return
        self._ask(request, begun)

    def _account(self, body: bytes) -> None:
        """Have the request counted as one for whom it names, until it's decoded."""
        model, version = named(body)
        self._request = InferRequest(model, {}, NO_LAYOUT, version, received=self._received)

    def _offload(self, body: bytes) -> None:
        """Have the helper process decode typed contents of many bytes: it would keep the loop for some 10 ms a megabyte."""
        self._account(body)
        shared = self._edge.shared

        def kept(writing: asyncio.Future[BodySink]) -> None:
            try:
                sink = writing.result()
                if not self.ended:
                    self._handle = shared.json_worker.decode_typed(sink, self._decoded)
            except (OSError, TidegateError) as error:
                self._decoded(error if isinstance(error, TidegateError) else Unavailable(f"the message can't be kept: {error.strerror}"))

        shared.loop.run_in_executor(None, BodySink, (body,)).add_done_callback(kept)

    def _decoded(self, result: tuple[InferRequest, Reply] | TidegateError) -> None:
        self._handle = None
        if self.ended:
            return
        if isinstance(result, TidegateError):
            self._fail(result)
        else:
            self._ask(result[0], self._received)

    def _ask(self, request: InferRequest, begun: float) -> None:
        edge, call, gate = self._edge, self._call, self._edge.shared.gate
        self._request = request
        request.received = self._received
        try:
            request.principal = admitted(gate, call, Operation.INFER)
            if request.parameters and request.parameters.get("explain"):
                gate.check(request.principal, Operation.EXPLAIN)
        except TidegateError as error:
            self._fail(error)
            return
        request.tenant = gate.tenant(request.principal, call.metadata("x-tidegate-tenant"))
        traceparent = call.metadata("traceparent")
        if traceparent is not None:
            request.trace = TraceContext(traceparent)
        if edge.shared.sticky and (header := edge.shared.sticky.get(request.model)) is not None:
            request.sticky = call.metadata(header.decode("latin-1")) or ""
        request.deadline = call.deadline
        request.decode_seconds = monotonic() - begun
        handle = edge.shared.dataplane.infer(request, self._respond, streamed=self.streamed)
        if not self.ended:
            self._handle = handle

    def _respond(self, response: InferResponse, final: bool) -> None:
        if self.ended or self._request is None:
            return
        begun = monotonic()
        answer: bytes | TidegateError
        try:
            answer = response.error or self._encode(response, final)
        except TidegateError as error:
            response.error = answer = error
        self._answer(answer, response, begun, final or response.error is not None)

    def _encode(self, response: InferResponse, final: bool) -> bytes:
        if not self.streamed:
            return self._edge.encoder.encode(response)
        assert self._request is not None
        if final and not response.outputs and not self._request.parameters.get(FINAL_WANTED):
            return b""  # only says that it was the last, which this client didn't ask to be told
        return self._edge.encoder.encode_streamed(response, final)

    def _answer(self, answer: bytes | TidegateError, response: InferResponse, begun: float, final: bool) -> None:
        shared, request = self._edge.shared, self._request
        assert request is not None
        if final:
            shared.answered = begun
            shared.dataplane.done(request, response, monotonic() - begun)
            self._forget()
        if self.streamed and isinstance(answer, TidegateError):
            answer = streamed_error(request.id, str(answer))
        self._answered(answer, final)

    def _fail(self, error: TidegateError) -> None:
        """Answer with an error that arose in the edge itself."""
        request = self._request
        if request is None:
            request = self._request = InferRequest("", {}, NO_LAYOUT, received=self._received)
        self._answer(error, InferResponse(request.model, request.version, request.id, error=error), monotonic(), True)

    def hold(self, *, held: bool) -> None:
        """Have a decoupled model wait with its next answers, or go on."""
        if isinstance(self._handle, Stream):
            self._handle.hold(held=held)

    def abandon(self) -> None:
        """The client is gone: fall out of the queue, drop what was held."""
        if self.ended:
            return
        if self._handle is not None:
            self._handle.cancel()
        request = self._request
        if request is not None:
            error = Cancelled("the client cancelled the call, or its deadline passed")
            response = InferResponse(request.model, request.version, request.id, error=error)
            self._edge.shared.dataplane.done(request, response, 0.0)
        self._forget()

    def _forget(self) -> None:
        """Give back what only an unanswered request needs."""
        self.ended = True
        self._edge.shared.inflight.give(self._size)
        self._request = self._handle = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
