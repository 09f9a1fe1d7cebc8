"""The HTTP hot path: uvicorn's httptools protocol that answers POST …/infer in the parser's callbacks, without ASGI, task or future.

Any other request goes on to uvicorn and the ASGI app. One queue per connection holds hot and cold exchanges in the order they came and
answers leave in that order; a cold one starts only at the queue's head. The rules of a connection:

- reading pauses while too many answers are owed, the client doesn't read, or too many bytes are in flight over all connections;
- a request whose head is the last one's, but for its Content-Length, isn't parsed again;
- the rest of a large body is received by an Intake in the connection's place, and rests between its pieces while others are served;
- time-outs are judged by `tick`, called about once a second for every connection: no timer is armed per request;
- while the server drains, a connection that never asked still may, once; the last answer owed says `connection: close`; then the socket is
  half-closed, and what comes is dropped for a moment: closing with unread bytes would reset the connection and could destroy that answer.

Of uvicorn 0.54's internals it uses: cycle, flow, pipeline (never filled), server_state, _start_asgi_task, on_response_complete,
send_400_response. A test asserts each of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import monotonic
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.edges.body import head_size
from server.edges.exchange import ColdExchange, HotExchange, KnownHead
from server.edges.flow import UNRESTED, Flow
from server.edges.infer_edge import InferEdge, Target
from server.edges.intake import Intake
from server.errors import BodyTimeout, BodyTooLarge, InvalidRequest, Overloaded, TidegateError

QUIET = 0.1  # seconds without an answer to anyone else, after which a large body needn't leave room for others
LINGER = 1.0  # seconds of reading and dropping after a connection's last answer, and in a drain of waiting for its first request
DROPPED_BODIES = 2  # times limits.max_body that are read and dropped after a refusal, so that the client sees its answer
INFLIGHT_PATIENCE = 1 / 6  # of the body time-out: how long a body may wait for room among the bytes in flight


class InferProtocol(HttpToolsProtocol):
    """One connection. `edge` is shared by all of them."""

    flow: Flow

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], edge: InferEdge) -> None:
        super().__init__(config, server_state, app_state, edge.loop)
        self._edge = edge
        self._queue: deque[HotExchange | ColdExchange] = deque()
        self._message: HotExchange | None = None  # the hot message that is being received
        self.known: KnownHead | None = None  # the last request's head, where it may come again
        self._last: HotExchange | None = None  # the hot message that was completed last
        self._decided = True  # whether the message that is being received is known to be hot or cold
        self._receiving = self._in_headers = False  # inside a message, and in its headers
        self._header_bytes = self._body_bytes = 0
        self._first = self._counts = True  # whether a message that begins now begins the piece read, and whether all of it is headers
        self._since = 0.0  # when the message that is being received began
        self._active = monotonic()  # when bytes last came or an answer last left
        self._answered = 0.0  # when an answer last left
        self._stalled = 0.0  # since when the client has not read its answers
        self._owed = 0  # bytes of answers that wait for their turn
        self.closing = False  # the server drains
        self._deaf = 0.0  # since when what comes is dropped: 0 while we listen

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._message = self.known = None
        self._abandon()
        self._receiving = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._active = monotonic()
        begins = self._first = not self._receiving
        self._counts, known = True, self.known
        if known is not None and begins and (again := known.exchange(data, self, self._edge)) is not None:
            self._completed(again, new=True)
            return
        most, so_far = self._edge.limits.max_header_bytes, 0 if begins else self._header_bytes
        if so_far + len(data) > most and (begins or self._in_headers) and so_far + head_size(data, begins=begins) > most:
            self._refuse(BodyTooLarge(f"request headers take at most {most} bytes"), 431)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(InvalidRequest("protocol upgrades aren't supported here"))
        except httptools.HttpParserError as error:
            self._malformed(error)
        if self._in_headers and self._receiving:
            self._header_bytes += len(data) if self._counts else 0
        elif self._last is not None:
            self.known, self._last = KnownHead.of(data, self._last) if begins else None, None
        elif (message := self._message) is not None and (missing := message.body.missing) and self.scheme == "http":
            self.transport.set_protocol(Intake(self, message.body, missing))

    def received_in_place(self, size: int, *, last: bool) -> None:
        """The intake wrote `size` bytes of the body; the `last` of them ends it."""
        self._active = monotonic()
        self._body_bytes += size
        if (message := self._message) is not None:  # None: refused in the middle
            self._piece(message, size, message.filled(size))
            if last:
                self.on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = monotonic()
        self.flow.hold("write")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = 0.0
        self.flow.release("write")

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self._decided = False
        self._receiving = self._in_headers = True
        self._counts, self._first = self._first, False
        self._header_bytes = self._body_bytes = 0
        self._since = self._active

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._decided:
            self._decide()
        if self._message is None:
            if not self._deaf:
                super().on_header(name, value)
        elif (key := name.lower()) in self._edge.wanted:
            self._message.fields[key] = value

    def on_headers_complete(self) -> None:
        if not self._decided:
            self._decide()
        self._in_headers = False
        if self._deaf:
            return
        message = self._message
        if message is None:
            self.cycle = None  # type: ignore[assignment] # so that uvicorn starts it, which _start_asgi_task defers to its turn
            super().on_headers_complete()
            return
        message.close = not self.parser.should_keep_alive()
        self._queue.append(message)
        message.begin()
        if message.expects_continue and self._queue[0] is message:
            self._flush()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        message = self._message
        if message is None:
            if not self._deaf:
                super().on_body(body)
        else:
            self._piece(message, len(body), message.receive(body))

    def _piece(self, message: HotExchange, size: int, within: bool) -> None:
        """A piece of a hot body has come; `within` says whether the bytes in flight keep to their limit."""
        if not within:
            self.flow.hold("inflight")
            self._edge.inflight.wait(partial(self.flow.release, "inflight"))
        elif message.parts is not None and self._body_bytes > DROPPED_BODIES * self._edge.limits.max_body:
            self._end()
        else:
            others = self._edge.answered
            crowded = others != self._answered and self._active - others < QUIET
            self.flow.pace(self.loop, size, rests=crowded and (message.body.sink is not None or self._body_bytes > UNRESTED))

    def on_message_complete(self) -> None:
        self._receiving = False
        message = self._message
        if message is None:
            if not self._deaf:
                super().on_message_complete()
                if not self.parser.should_keep_alive():
                    self._deaf = self._active
            return
        self._message, self._last = None, message
        self._completed(message)
        if message.close:
            self._deaf = self._active

    def _completed(self, message: HotExchange, *, new: bool = False) -> None:
        """A hot message is whole; a `new` one isn't in the queue yet."""
        if new:
            self._queue.append(message)
        message.complete()
        if len(self._queue) >= self._edge.limits.pipeline_depth:
            self.flow.hold("depth")

    def _decide(self) -> None:
        """Hot or cold: the whole URL has come."""
        self._decided = True
        if self._deaf:
            return
        target = self._edge.target(self.url)
        if target is not None and self.parser.get_method() == b"POST":
            self._message = HotExchange(self, self._edge, target)
        else:
            url = self.url
            super().on_message_begin()
            super().on_url(url)

    # Cold exchanges

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        exchange = ColdExchange(cycle, partial(super()._start_asgi_task, cycle, app))
        self._queue.append(exchange)
        if self._queue[0] is exchange:
            exchange.begin()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._active = monotonic()
        if self._queue:
            self._queue.popleft()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._flush()

    # Answers

    def answered(self, exchange: HotExchange) -> None:
        """An exchange has its answer: it leaves when all before it have left."""
        if self._queue and self._queue[0] is exchange:
            self._flush()
            return
        self._owed += exchange.answer_bytes
        if self._owed > self._edge.limits.pipeline_bytes:
            self.flow.hold("owed")

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            head = queue[0]
            if isinstance(head, ColdExchange):
                head.begin()
                return
            if head.parts is None:
                if head.expects_continue:
                    head.expects_continue = False
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            queue.popleft()
            self._write(head)
            if head.close:
                self._end()
                return
        self._active = self._answered = self._edge.answered = monotonic()
        self._owed = 0
        self.flow.release("owed")
        self.flow.release("depth")
        if self.closing and not self._receiving:
            self._end()

    def _write(self, exchange: HotExchange) -> None:
        self.server_state.total_requests += 1
        if exchange.close or (self.closing and not self._queue and not self._receiving):
            exchange.announce_close()
        exchange.write(self.transport)

    # Ends

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__ or error
            self.loop.call_exception_handler({"message": "a connection's callback failed", "exception": cause})
        self._refuse(InvalidRequest(f"invalid HTTP request: {error}"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg))

    def _refuse(self, error: TidegateError, status: int | None = None) -> None:
        """The bytes make no sense from here on: answer what is owed, then this error, then close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = monotonic()
        message, self._message = self._message, None
        in_body = self._receiving and not self._in_headers
        self._receiving = self._in_headers = False
        if in_body and message is None:
            self.transport.close()  # a cold request lost in the middle of its body: uvicorn is told by the disconnect
        elif in_body and message is not None:
            message.close = True
            if message.parts is None:
                message.fail(error)
            elif message not in self._queue:
                self._end()
        else:
            ending = HotExchange(self, self._edge, Target("", ""))
            ending.close = True
            self._queue.append(ending)
            ending.fail(error, status)

    def _end(self) -> None:
        """The last answer has been written: half-close and linger, or close where the transport can't half-close (TLS)."""
        self._deaf = monotonic()
        self._abandon()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.flow.release_all()
            self.transport.write_eof()
        else:
            self.transport.close()

    def _abandon(self) -> None:
        for exchange in self._queue:
            exchange.abandon()
        self._queue.clear()

    def shutdown(self) -> None:
        """The server drains: finish what has begun, accept nothing new but a first request."""
        self.closing = True
        if self._since and not self._queue and not self._receiving:
            self._end()

    def tick(self, now: float) -> None:
        """Judge this connection's time-outs."""
        limits = self._edge.limits
        if self.transport.is_closing():
            return
        if self._deaf and not self._queue:
            if now - self._deaf > LINGER:
                self.transport.close()
        elif self._stalled and now - self._stalled > limits.body_timeout:
            self.transport.abort()
        elif self._receiving and self.flow.held_by("inflight"):
            if now - self._active > INFLIGHT_PATIENCE * limits.body_timeout:
                self._refuse(Overloaded("too many bytes of requests are in flight", "limits.inflight_bytes"))
        elif self._receiving and not self.flow.read_paused:
            if now - self._since > limits.body_timeout + self._body_bytes / limits.min_rate:
                self._refuse(BodyTimeout(f"the request took longer than {limits.body_timeout:g} s to arrive (limits.body_timeout)"))
        elif not self._receiving and not self._queue and now - self._active > (LINGER if self.closing else limits.keep_alive):
            self.transport.close()
