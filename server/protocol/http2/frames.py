"""Frames as bytes: written, and their payloads read with every rule of RFC 9113 that looks at one frame alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from server.protocol.http2.codes import (
    LEAST_FRAME,
    MAX_WINDOW,
    MOST_FRAME,
    ConnectionFault,
    ErrorCode,
    Flag,
    FrameType,
    Setting,
    StreamFault,
)

HEAD = 9  # bytes before a payload
KNOWN_SETTINGS = frozenset(map(int, Setting))
_U32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_GOAWAY = struct.Struct(">II")


class Frame(NamedTuple):
    """`payload` is a view of what was received. `length` is on the wire, padding included."""

    kind: int
    flags: int
    stream: int
    payload: memoryview
    length: int


def write(kind: FrameType, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_head(kind, flags, stream, len(payload)) + payload


def frame_head(kind: FrameType, flags: int, stream: int, length: int) -> bytes:
    """The nine bytes before a payload."""
    return _U32.pack(length << 8 | kind) + _U32.pack(flags << 24 | stream >> 8)[0:1] + _U32.pack(stream)


def window_update(stream: int, increment: int) -> bytes:
    return write(FrameType.WINDOW_UPDATE, 0, stream, _U32.pack(increment))


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    return write(FrameType.RST_STREAM, 0, stream, _U32.pack(code))


def goaway(last: int, code: ErrorCode, why: str = "") -> bytes:
    return write(FrameType.GOAWAY, 0, 0, _GOAWAY.pack(last, code) + why.encode()[:128])


def settings(values: dict[Setting, int]) -> bytes:
    return write(FrameType.SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def unpadded(frame: Frame) -> memoryview:
    """The payload of DATA or HEADERS without its padding. Raises ConnectionFault."""
    payload = frame.payload
    if not frame.flags & Flag.PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"padding of {padding} bytes in a payload of {len(payload)}")
    return payload[1 : len(payload) - padding]


def header_block(frame: Frame) -> memoryview:
    """The fragment in a HEADERS frame. Raises ConnectionFault, and StreamFault for a stream that depends on itself."""
    block = unpadded(frame)
    if frame.flags & Flag.PRIORITY:
        if len(block) < 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS with a priority is shorter than one")
        block = block[5:]
    return block


def read_settings(frame: Frame) -> Iterator[tuple[Setting, int]]:
    """The settings in a frame that this side knows, in order. Raises ConnectionFault."""
    if len(frame.payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(frame.payload)} bytes, which isn't a multiple of 6")
    for name, value in _SETTING.iter_unpack(frame.payload):
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is 0 or 1, got {value}")
        if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is at most {MAX_WINDOW}, got {value}")
        if name == Setting.MAX_FRAME_SIZE and not LEAST_FRAME <= value <= MOST_FRAME:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {LEAST_FRAME} to {MOST_FRAME}, got {value}")
        if name in KNOWN_SETTINGS:
            yield Setting(name), value


def read_u32(frame: Frame) -> int:
    """The four bytes of RST_STREAM or WINDOW_UPDATE. Raises ConnectionFault."""
    if len(frame.payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{FrameType(frame.kind).name} takes 4 bytes, got {len(frame.payload)}")
    found: int = _U32.unpack(frame.payload)[0]
    return found


def read_increment(frame: Frame) -> int:
    """Of WINDOW_UPDATE. Raises ConnectionFault, and StreamFault for a stream's increment of 0."""
    increment = read_u32(frame) & MAX_WINDOW
    if not increment:
        if frame.stream:
            raise StreamFault(frame.stream, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
    return increment


def read_goaway(frame: Frame) -> tuple[int, int]:
    """The last stream and the code. Raises ConnectionFault."""
    if len(frame.payload) < 8:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY takes 8 bytes or more, got {len(frame.payload)}")
    last, code = _GOAWAY.unpack(frame.payload[:8])
    return last & MAX_WINDOW, code


ON_CONNECTION = frozenset({FrameType.SETTINGS, FrameType.PING, FrameType.GOAWAY})
ON_STREAM = frozenset({FrameType.DATA, FrameType.HEADERS, FrameType.PRIORITY, FrameType.RST_STREAM, FrameType.CONTINUATION})


def check_place(frame: Frame) -> None:
    """Raises ConnectionFault for a frame of a stream that belongs to the connection, or the other way round."""
    if frame.stream and frame.kind in ON_CONNECTION:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{FrameType(frame.kind).name} on stream {frame.stream}, it takes stream 0")
    if not frame.stream and frame.kind in ON_STREAM:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{FrameType(frame.kind).name} on stream 0")
