"""One HTTP/2 connection, the server's side: bytes and calls in, events and bytes out. It knows no gRPC.

Rules: a fault of one stream resets it and the others go on; a fault of the connection sends GOAWAY, and nothing more is read. Memory is
bounded by the limits: streams, a header block, what may be received before it's given back. What is sent (`sending`) waits with whoever
sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.protocol.http2 import frames
from server.protocol.http2.codes import (
    DEFAULT_WINDOW,
    LEAST_FRAME,
    MAX_STREAM,
    MAX_WINDOW,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    Flag,
    FrameType,
    Setting,
    StreamFault,
)
from server.protocol.http2.events import (
    ClientLeaves,
    DataReceived,
    Ended,
    Event,
    RequestBegun,
    StreamReset,
    TrailersReceived,
    WindowOpened,
)
from server.protocol.http2.fields import FieldDecoder, check_request, check_trailers, content_length
from server.protocol.http2.floods import Costly, Floods
from server.protocol.http2.frames import HEAD, Frame
from server.protocol.http2.sending import Sender
from server.protocol.http2.streams import Input, ReceiveWindow, State, Stream

REMEMBERED = 256  # streams that this side reset, whose late frames are passed over


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask for. Bytes; `window` is what a stream may send before it's given back, `connection_window` all of them."""

    streams: int = 1024
    frame: int = LEAST_FRAME
    header_list: int = 16_384
    header_block: int = 65_536
    window: int = 1 << 20
    connection_window: int = 16 << 20


class Connection:
    """`receive` what came, send what `sender.take()` gives. `over` once nothing more is read."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.over = False
        self.sender = Sender(self.streams)
        self._window = ReceiveWindow(limits.connection_window)
        self._initial_window = DEFAULT_WINDOW
        self._fields = FieldDecoder(limits.header_list)
        self._floods = Floods(now)
        self._buffer = b""
        self._prefaced = self._begun = False  # whether the preface came, and the first SETTINGS
        self._highest = 0
        self._last_taken = MAX_STREAM  # no stream above it is taken, once this side leaves
        self._reset: dict[int, None] = {}
        self._block: tuple[Frame, bytearray] | None = None
        self._events: list[Event] = []
        self.sender.out.append(self._greeting())
        self._handlers: Mapping[int, Callable[[Frame, float], None]] = {
            FrameType.DATA: self._data,
            FrameType.HEADERS: self._headers,
            FrameType.PRIORITY: self._priority,
            FrameType.RST_STREAM: self._rst_stream,
            FrameType.SETTINGS: self._settings,
            FrameType.PUSH_PROMISE: self._refuse,
            FrameType.PING: self._ping,
            FrameType.GOAWAY: self._goaway,
            FrameType.WINDOW_UPDATE: self._window_update,
            FrameType.CONTINUATION: self._refuse,
        }

    def _greeting(self) -> bytes:
        limits = self.limits
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            Setting.INITIAL_WINDOW_SIZE: limits.window,
            Setting.MAX_FRAME_SIZE: limits.frame,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list,
        }
        return frames.settings(settings) + frames.window_update(0, limits.connection_window - DEFAULT_WINDOW)

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What the bytes meant, in order. Nothing is raised: a fault is an event, and what answers it lies in `take`."""
        self._events = []
        if not self.over:
            try:
                self._read(self._buffer + data if self._buffer else data, now)
            except ConnectionFault as fault:
                self._end(fault.code, fault.why)
        return self._events

    def _read(self, data: bytes, now: float) -> None:
        at = 0
        if not self._prefaced:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not HTTP/2: the connection preface is missing")
            if len(data) < len(PREFACE):
                self._buffer = data
                return
            self._prefaced, at = True, len(PREFACE)
        view = memoryview(data)
        while len(data) - at >= HEAD:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > self.limits.frame:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, at most {self.limits.frame} are taken")
            if len(data) - at - HEAD < length:
                break
            stream = int.from_bytes(data[at + 5 : at + HEAD]) & MAX_STREAM
            self._frame(Frame(data[at + 3], data[at + 4], stream, view[at + HEAD : at + HEAD + length], length), now)
            at += HEAD + length
        self._buffer = data[at:]

    def _frame(self, frame: Frame, now: float) -> None:
        if not self._begun:
            if frame.kind != FrameType.SETTINGS or frame.flags & Flag.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._begun = True
        if self._block is not None:
            self._continuation(frame)
            return
        frames.check_place(frame)
        handler = self._handlers.get(frame.kind)
        if handler is None:  # an extension, which is passed over
            self._floods.count(Costly.UNKNOWN, now)
            return
        try:
            handler(frame, now)
        except StreamFault as fault:
            self._fail(fault)

    def _fail(self, fault: StreamFault) -> None:
        """Reset a stream for its own fault."""
        self.reset(fault.stream, fault.code)
        self._events.append(StreamReset(fault.stream, fault.code, fault.why))

    def reset(self, number: int, code: ErrorCode) -> None:
        """End a stream at once; what of it is still on its way is passed over."""
        self.sender.reset(number, code)
        self._remember(number)

    def _remember(self, number: int) -> None:
        self._reset[number] = None
        if len(self._reset) > REMEMBERED:
            del self._reset[next(iter(self._reset))]

    def acknowledge(self, number: int, size: int) -> None:
        """Bytes of DATA (`flow`) are used, and as many may come again."""
        self._give_back(size)
        stream = self.streams.get(number)
        if stream is not None and stream.state in (State.OPEN, State.HALF_CLOSED_LOCAL) and (increment := stream.window.use(size)):
            self.sender.out.append(frames.window_update(number, increment))

    def _give_back(self, size: int) -> None:
        if increment := self._window.use(size):
            self.sender.out.append(frames.window_update(0, increment))

    def leave(self, *, now_final: bool) -> None:
        """Take no new streams (section 6.8): first say so, then, once what crossed it has arrived, name the last that is taken."""
        self.sender.out.append(frames.goaway(self._highest if now_final else MAX_STREAM, ErrorCode.NO_ERROR))
        if now_final:
            self._last_taken = self._highest

    def _end(self, code: ErrorCode, why: str) -> None:
        """The connection is over."""
        self.over = True
        self._buffer, self._block = b"", None
        self.streams.clear()
        self.sender.out.append(frames.goaway(self._highest, code, why))
        self._events.append(Ended(code, why))

    def _close_if_over(self, stream: Stream) -> None:
        if stream.state is State.CLOSED:
            self.streams.pop(stream.number, None)

    def _data(self, frame: Frame, now: float) -> None:
        if not self._window.take(frame.length):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        data = frames.unpadded(frame)
        ended = bool(frame.flags & Flag.END_STREAM)
        if not len(data) and not ended:
            self._floods.count(Costly.EMPTY, now)
        try:
            stream = self._known(frame)
            if stream is None:
                self._give_back(frame.length)
                return
            if not stream.window.take(frame.length):
                raise StreamFault(stream.number, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
            stream.step(Input.RECEIVE_END if ended else Input.RECEIVE)
            stream.count(len(data), ended=ended)
        except StreamFault:
            self._give_back(frame.length)
            raise
        self._events.append(DataReceived(stream.number, data, frame.length, ended))
        self._close_if_over(stream)

    def _known(self, frame: Frame) -> Stream | None:
        """The stream of a frame, None for one that this side has reset or that was never taken. Raises ConnectionFault for one that was
        never begun, StreamFault for one that is closed."""
        stream = self.streams.get(frame.stream)
        if stream is not None or frame.stream in self._reset or frame.stream > self._last_taken:
            return stream
        if frame.stream > self._highest or not frame.stream % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{FrameType(frame.kind).name} on stream {frame.stream}, which is idle")
        raise StreamFault(frame.stream, ErrorCode.STREAM_CLOSED, f"{FrameType(frame.kind).name} on a closed stream")

    def _headers(self, frame: Frame, now: float) -> None:
        block = bytearray(frames.header_block(frame))
        if frame.flags & Flag.END_HEADERS:
            self._whole(frame, bytes(block))
        else:
            self._block = frame, block

    def _continuation(self, frame: Frame) -> None:
        assert self._block is not None
        begun, block = self._block
        if frame.kind != FrameType.CONTINUATION or frame.stream != begun.stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a header block of stream {begun.stream} isn't continued")
        if not frame.length and not frame.flags & Flag.END_HEADERS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "an empty CONTINUATION")
        block += frame.payload
        if len(block) > self.limits.header_block:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {self.limits.header_block} bytes")
        if frame.flags & Flag.END_HEADERS:
            self._block = None
            try:
                self._whole(begun, bytes(block))
            except StreamFault as fault:
                self._fail(fault)

    def _whole(self, frame: Frame, block: bytes) -> None:
        """A header block is whole: a request begins, or ends by trailers. It's decoded in any case, since others hang on its table."""
        fields = self._fields.decode(block)
        number, ended = frame.stream, bool(frame.flags & Flag.END_STREAM)
        if number > self._highest and number % 2:
            self._begin(number, ended, fields)
            return
        stream = self._known(frame)
        if stream is None:
            return
        if not ended:
            raise StreamFault(number, ErrorCode.PROTOCOL_ERROR, "trailers that don't end the stream")
        stream.step(Input.RECEIVE_END)
        stream.count(0, ended=True)
        check_trailers(number, fields)
        self._events.append(TrailersReceived(number, fields))
        self._close_if_over(stream)

    def _begin(self, number: int, ended: bool, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        self._highest = number
        if number > self._last_taken:  # it crossed this side's GOAWAY
            return
        if len(self.streams) >= self.limits.streams:
            raise StreamFault(number, ErrorCode.REFUSED_STREAM, f"more than {self.limits.streams} streams at a time")
        check_request(number, fields)
        stream = Stream(number, self._initial_window, self.limits.window)
        stream.expected = content_length(number, fields)
        if ended:
            stream.step(Input.RECEIVE_END)
            stream.count(0, ended=True)
        self.streams[number] = stream
        self._events.append(RequestBegun(number, fields, ended))

    def _priority(self, frame: Frame, now: float) -> None:
        if frame.length != 5:
            raise StreamFault(frame.stream, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY takes 5 bytes, got {frame.length}")
        self._floods.count(Costly.UNKNOWN, now)

    def _rst_stream(self, frame: Frame, now: float) -> None:
        code = frames.read_u32(frame)
        if frame.stream > self._highest or not frame.stream % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {frame.stream}, which is idle")
        self._floods.count(Costly.RESET, now)
        if self.streams.pop(frame.stream, None) is not None:
            self._remember(frame.stream)
            self._events.append(StreamReset(frame.stream, code, "the client reset it"))

    def _settings(self, frame: Frame, now: float) -> None:
        if frame.flags & Flag.ACK:
            if frame.length:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with ACK takes no bytes, got {frame.length}")
            return
        self._floods.count(Costly.SETTINGS, now)
        for name, value in frames.read_settings(frame):
            if name is Setting.INITIAL_WINDOW_SIZE:
                self._resize(value)
            elif name is Setting.MAX_FRAME_SIZE:
                self.sender.most_frame = value
        self.sender.out.append(frames.write(FrameType.SETTINGS, Flag.ACK, 0))

    def _resize(self, window: int) -> None:
        """Section 6.9.2: the windows of open streams move by the difference, below 0 if need be."""
        change = window - self._initial_window
        self._initial_window = window
        for stream in self.streams.values():
            if stream.send_window + change > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a stream's window too large")
            stream.send_window += change
        if change > 0 and self.streams:
            self._events.append(WindowOpened(0))

    def _ping(self, frame: Frame, now: float) -> None:
        if frame.length != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING takes 8 bytes, got {frame.length}")
        if not frame.flags & Flag.ACK:
            self._floods.count(Costly.PING, now)
            self.sender.out.append(frames.write(FrameType.PING, Flag.ACK, 0, bytes(frame.payload)))

    def _goaway(self, frame: Frame, now: float) -> None:
        _, code = frames.read_goaway(frame)
        self._events.append(ClientLeaves(code))

    def _window_update(self, frame: Frame, now: float) -> None:
        self._floods.count(Costly.WINDOW, now)
        increment = frames.read_increment(frame)
        if not frame.stream:
            if self.sender.window + increment > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"the window would be {self.sender.window + increment}")
            self.sender.window += increment
        else:
            if frame.stream > self._highest or not frame.stream % 2:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {frame.stream}, which is idle")
            stream = self.streams.get(frame.stream)
            if stream is None:  # it was on its way when the stream ended
                return
            stream.widen(increment)
        self._events.append(WindowOpened(frame.stream))

    def _refuse(self, frame: Frame, now: float) -> None:
        """What no client may send, or not here."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{FrameType(frame.kind).name} from a client, or out of its place")
