"""What a connection sends: frames, cut to what the client takes, within its windows. Nothing waits here: `room` says how much may go."""

from __future__ import annotations

from server.protocol.http2 import frames
from server.protocol.http2.codes import DEFAULT_WINDOW, LEAST_FRAME, ErrorCode, Flag, FrameType
from server.protocol.http2.streams import Input, State, Stream


class Sender:
    """`streams` are the connection's. `window` is what all streams together may send, `most_frame` what the client takes in one."""

    def __init__(self, streams: dict[int, Stream]) -> None:
        self.streams = streams
        self.window = DEFAULT_WINDOW
        self.most_frame = LEAST_FRAME
        self.out: list[bytes | memoryview] = []

    def take(self) -> bytes:
        """What is to be sent, once."""
        out, self.out = b"".join(self.out), []
        return out

    def room(self, number: int) -> int:
        """Bytes of DATA that a stream may send now, 0 for one that's over."""
        stream = self.streams.get(number)
        return 0 if stream is None else max(0, min(self.window, stream.send_window))

    def headers(self, number: int, block: bytes, *, end: bool) -> None:
        """Send a header block; nothing where the stream is over. Raises StreamFault after its end."""
        stream = self.streams.get(number)
        if stream is None:
            return
        stream.step(Input.SEND_END if end else Input.SEND)
        flags, most = Flag.END_STREAM if end else Flag.NONE, self.most_frame
        kind, rest = FrameType.HEADERS, block
        while len(rest) > most:
            self.out.append(frames.write(kind, flags, number, rest[:most]))
            kind, flags, rest = FrameType.CONTINUATION, Flag.NONE, rest[most:]
        self.out.append(frames.write(kind, flags | Flag.END_HEADERS, number, rest))
        self._close_if_over(stream)

    def data(self, number: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send DATA that there is room for; nothing where the stream is over. Raises ValueError for more, StreamFault after its end."""
        stream = self.streams.get(number)
        if stream is None:
            return
        size = len(data)
        if size > self.room(number):
            raise ValueError(f"{size} bytes for stream {number}, which has room for {self.room(number)}")
        stream.step(Input.SEND_END if end else Input.SEND)
        self.window -= size
        stream.send_window -= size
        for start in range(0, size or 1, self.most_frame):
            piece = data[start : start + self.most_frame]
            last = end and start + self.most_frame >= size
            self.out += (frames.frame_head(FrameType.DATA, Flag.END_STREAM if last else Flag.NONE, number, len(piece)), piece)
        self._close_if_over(stream)

    def reset(self, number: int, code: ErrorCode) -> None:
        """End a stream at once."""
        self.streams.pop(number, None)
        self.out.append(frames.rst_stream(number, code))

    def _close_if_over(self, stream: Stream) -> None:
        if stream.state is State.CLOSED:
            self.streams.pop(stream.number, None)
