"""One request and its answer on an HTTP connection. A hot exchange is an inference; a cold one is anything else and belongs to uvicorn.

A hot exchange collects headers and body, has them decoded, submits, and has the answer encoded: what a request means is decided
elsewhere. It knows its connection only to say that it has an answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.edges.body import ONE_PIECE, Body, Bytes, bad_head_length
from server.edges.http_errors import error_response
from server.edges.infer_edge import Caller, InferEdge, Target
from server.errors import Cancelled, TidegateError
from server.gate import Operation
from server.messages import CancelHandle, InferRequest, InferResponse, Layout, TraceContext
from server.protocol.encode import Encoded, json_bytes
from server.protocol.inflate import accepted, deflate
from server.protocol.reply import Reply

WORTH_DEFLATING = 1024  # answer bytes under which compression gains nothing
DEFLATE_INLINE = 8 * 1024  # answer bytes that are compressed in the loop, more in a thread
SMALL_WRITE = 64 * 1024  # bytes under which the parts of an answer are joined into one write
CLOSE = b"connection: close\r\n\r\n"
JSON_OUT_OFFLOAD = 256 * 1024  # bytes of JSON above which the helper process writes the answer
NO_LAYOUT = Layout(())
MAX_DIGITS = 9  # of a Content-Length that is looked at
_LENGTH_LINE = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)

_BINARY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n%s\r\n"
)
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"


class Connection(Protocol):
    """What an exchange asks of its connection."""

    def answered(self, exchange: HotExchange) -> None: ...


class ColdExchange:
    """A request that uvicorn runs through ASGI as `cycle`; `start` starts it."""

    __slots__ = ("_start", "_started", "cycle")

    def __init__(self, cycle: RequestResponseCycle, start: Callable[[], None]) -> None:
        self.cycle = cycle
        self._start = start
        self._started = False

    def begin(self) -> None:
        """Its turn has come: it's the head of the connection's queue."""
        if not self._started:
            self._started = True
            self._start()

    def abandon(self) -> None:
        """The client is gone."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()


class KnownHead:
    """The head of a connection's last request, as bytes and as what they mean. A client mostly sends the same again, but for the body's
    length: then the parser has nothing to find out. Only for requests in one piece, with a small plain body, on a connection that stays."""

    __slots__ = ("_after", "_before", "_caller", "_digits", "_fields", "_head_length", "_target")

    def __init__(self, head: bytes, digits: tuple[int, int], exchange: HotExchange) -> None:
        start, end = digits
        self._before, self._digits, self._after = head[:start], start, head[end:]
        self._target = exchange.target
        self._fields = exchange.fields
        self._caller = exchange.caller
        self._head_length = exchange.body.head_length

    @classmethod
    def of(cls, data: bytes, exchange: HotExchange) -> KnownHead | None:
        """What is to be known of `exchange`, which came as `data`, if it can come again. None where it's more or less than one request."""
        fields = exchange.fields
        length = fields.get(b"content-length")
        end = data.find(b"\r\n\r\n") + 4
        if exchange.close or exchange.parts is not None or length is None or not fields.keys() <= exchange.edge.repeatable:
            return None
        found = _LENGTH_LINE.search(data, 0, end)
        if found is None or not len(data) - end == int(length) <= ONE_PIECE:
            return None
        return cls(data[:end], found.span(1), exchange)

    def exchange(self, data: bytes, connection: Connection, edge: InferEdge) -> HotExchange | None:
        """The exchange of a request that came as `data`, and not yet completed; None where the head isn't this one."""
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r", self._digits)
        digits, start = data[self._digits : end], end + len(self._after)
        if not data.startswith(self._after, end) or not digits.isdigit() or len(digits) > MAX_DIGITS or len(data) - start != int(digits):
            return None
        if len(data) - start > ONE_PIECE:
            return None
        exchange = HotExchange(connection, edge, self._target)
        exchange.fields = self._fields
        exchange.caller = self._caller
        exchange.body.is_whole(data[start:], self._head_length)
        return exchange


class HotExchange:
    """One inference request. `parts` is its answer once there is one; `close` says that the connection ends with it."""

    __slots__ = (
        *("connection", "edge", "target", "fields", "caller", "body", "parts", "answer_bytes", "close", "expects_continue"),
        *("_received", "_reply", "_request", "_handle"),
    )

    def __init__(self, connection: Connection, edge: InferEdge, target: Target) -> None:
        self.connection: Connection | None = connection
        self.edge = edge
        self.target = target
        self.fields: dict[bytes, bytes] = {}
        self.caller: Caller | None = None
        self.body = Body(edge)
        self.parts: list[bytes | memoryview] | None = None
        self.answer_bytes = 0
        self.close = False
        self.expects_continue = False
        self._received = 0.0
        self._reply: Reply | None = None
        self._request: InferRequest | None = None
        self._handle: CancelHandle | None = None  # whatever works for this exchange now and can be told to stop

    # Receiving

    def begin(self) -> None:
        """All headers are there: refuse what can't be served before its body comes."""
        expects = b"expect" in self.fields and self.fields[b"expect"].lower() == b"100-continue"
        try:
            self.body.begin(self.fields)
            self.expects_continue = expects
        except TidegateError as error:
            self.close = self.close or expects  # the client may or may not send the body now: nothing after it could be told apart
            self.fail(error)

    def receive(self, chunk: bytes) -> bool:
        """A piece of the body; dropped where the request was refused. False where reading should pause."""
        if self.parts is not None:
            return True
        try:
            return self.body.add(chunk)
        except TidegateError as error:
            self.fail(error)
            return True

    def filled(self, count: int) -> bool:
        """A piece of the body was written where the body said. False where reading should pause."""
        if self.parts is not None:
            return True
        try:
            return self.body.filled(count)
        except TidegateError as error:
            self.fail(error)
            return True

    def complete(self) -> None:
        """The body is whole: decode and submit it."""
        self._received = monotonic()
        if self.parts is None:
            self.body.finish(self._whole)

    # Asking

    def _whole(self, body: Bytes | TidegateError) -> None:
        if self.connection is None or self.parts is not None:
            return
        if isinstance(body, TidegateError):
            self.fail(body)
            return
        try:
            decoded = self._decode(body)
        except TidegateError as error:
            self.fail(error)
            return
        if decoded is not None:
            self._submit(*decoded)

    def _decode(self, body: Bytes) -> tuple[InferRequest, Reply] | None:
        """The request, or None where the helper process decodes it."""
        edge, (model, version), head_length = self.edge, self.target, self.body.head_length
        whole = head_length < 0
        if not whole and self.body.sink is None and head_length > len(body):
            raise bad_head_length(str(head_length), len(body))
        sink = self.body.offloaded(body, len(body) if whole else head_length)
        if sink is not None:
            self._handle = edge.json_worker.decode(sink, model, version, self._offloaded, None if whole else head_length)
            return None
        if whole:
            return edge.json_decoder.decode(body, model, version)
        return edge.decoder.decode(body, head_length, model, version)

    def _offloaded(self, result: tuple[InferRequest, Reply] | TidegateError) -> None:
        self._handle = None
        if self.connection is None:
            return
        if isinstance(result, TidegateError):
            self.fail(result)
        else:
            self._submit(*result)

    def _submit(self, request: InferRequest, reply: Reply) -> None:
        fields, edge = self.fields, self.edge
        self._request, self._reply = request, reply
        request.received = self._received
        try:
            caller = self.caller = self.caller or edge.admitted(fields)
            if request.parameters and request.parameters.get("explain"):
                edge.gate.check(caller.principal, Operation.EXPLAIN)
        except TidegateError as error:
            self.fail(error)
            return
        request.principal, request.tenant = caller
        if b"traceparent" in fields:
            request.trace = TraceContext(fields[b"traceparent"].decode("latin-1"))
        if edge.sticky and (header := edge.sticky.get(request.model)) is not None:
            request.sticky = fields.get(header, b"").decode("latin-1")
        request.decode_seconds = monotonic() - self._received
        handle = edge.dataplane.infer(request, self._respond)
        if self.parts is None:
            self._handle = handle

    # Answering

    def _respond(self, response: InferResponse, final: bool) -> None:
        reply = self._reply
        if self.connection is None or reply is None:
            return
        begun = monotonic()
        if response.error is not None:
            self._done(response, [error_response(response.error)], begun)
            return
        try:
            if json_bytes(response, reply) > JSON_OUT_OFFLOAD:
                self._handle = self.edge.json_worker.encode(response, reply, lambda encoded: self._written(response, encoded, begun))
                return
            encoded = self.edge.encoder.encode(response, reply)
        except TidegateError as error:
            self._broken(response, error, begun)
            return
        self._send(response, encoded, begun)

    def _written(self, response: InferResponse, encoded: Encoded | TidegateError, begun: float) -> None:
        """The helper process has written the answer's JSON."""
        if self.connection is None:
            return
        if isinstance(encoded, TidegateError):
            self._broken(response, encoded, begun)
        else:
            self._send(response, encoded, begun)

    def _broken(self, response: InferResponse, error: TidegateError, begun: float) -> None:
        response.error = error
        self._done(response, [error_response(error)], begun)

    def _send(self, response: InferResponse, encoded: Encoded, begun: float) -> None:
        head_length = len(encoded.head) if encoded.binary else -1
        parts: list[bytes | memoryview] = [encoded.head, *encoded.blobs]
        size = encoded.size
        wish = self.fields.get(b"accept-encoding")
        if wish is None or size < WORTH_DEFLATING or (encoding := accepted(wish.decode("latin-1"))) == "identity":
            self._done(response, [_head(head_length, size, b""), *parts], begun)
            return

        def finish(body: bytes) -> None:
            if self.connection is not None:
                self._done(response, [_head(head_length, len(body), b"content-encoding: %s\r\n" % encoding.encode()), body], begun)

        if size <= DEFLATE_INLINE:
            finish(deflate(encoding, parts))
        else:
            self.edge.loop.run_in_executor(None, deflate, encoding, parts).add_done_callback(lambda done: finish(done.result()))

    def _done(self, response: InferResponse, parts: list[bytes | memoryview], begun: float) -> None:
        self.parts = parts
        self.answer_bytes = sum(map(len, parts))
        request, connection = self._request, self.connection
        if request is not None:
            self.edge.dataplane.done(request, response, monotonic() - begun)
        self._forget()
        if connection is not None:
            connection.answered(self)

    def announce_close(self) -> None:
        """Have the answer say that the connection ends with it."""
        assert self.parts is not None
        self.close = True
        self.parts[0] = bytes(self.parts[0]).replace(b"\r\n\r\n", b"\r\n" + CLOSE, 1)

    def write(self, transport: asyncio.Transport) -> None:
        """Send the answer."""
        parts = self.parts
        assert parts is not None
        if len(parts) == 1:
            transport.write(parts[0])
        elif self.answer_bytes <= SMALL_WRITE:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)

    def fail(self, error: TidegateError, status: int | None = None) -> None:
        """Answer with an error that arose in the edge itself; `status` overrides the table's."""
        if self.parts is None:
            if self._request is None:
                model, version = self.target
                self._request = InferRequest(model, {}, NO_LAYOUT, version, received=self._received or monotonic())
            self._done(self._failure(error), [error_response(error, status)], monotonic())

    def abandon(self) -> None:
        """The client is gone: fall out of the queue, drop what was held."""
        self.connection = None
        if self._handle is not None:
            self._handle.cancel()
        if self._request is not None and self.parts is None:
            self.edge.dataplane.done(self._request, self._failure(Cancelled("the client closed the connection")), 0.0)
        self._forget()

    def _failure(self, error: TidegateError) -> InferResponse:
        assert self._request is not None
        return InferResponse(self._request.model, self._request.version, self._request.id, error=error)

    def _forget(self) -> None:
        """Give back what only an unanswered request needs."""
        self._request = self._handle = self._reply = None
        self.body.release()


def _head(head_length: int, size: int, more: bytes) -> bytes:
    if head_length < 0:
        return _JSON_HEAD % (size, more)
    return _BINARY_HEAD % (head_length, size, more)
