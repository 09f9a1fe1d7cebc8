"""RFC 9113's rules for frames, as a table: what is sent on which stream in which state, and what must come of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hpack import Encoder

from server.protocol.http2.codes import PREFACE, ErrorCode, Flag, FrameType
from server.protocol.http2.connection import Connection, Limits
from server.protocol.http2.events import DataReceived, Ended, Event, RequestBegun, StreamReset, TrailersReceived, WindowOpened
from server.protocol.http2.frames import write
from server.protocol.http2.streams import TABLE, Input, State, Stream

F, E = FrameType, ErrorCode
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), ("te", "trailers")]
END, WHOLE, PADDED, PRIORITY = Flag.END_STREAM, Flag.END_HEADERS, Flag.PADDED, Flag.PRIORITY
BLOCK = Encoder().encode(REQUEST)  # a first one: it adds to the table
OK = ("ok", None)


def block(*fields: tuple[str, str], request: Sequence[tuple[str, str]] = REQUEST) -> bytes:
    """A header block that leaves the table unchanged."""
    return bytes(Encoder().encode([(name, value, True) for name, value in (*request, *fields)]))


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def connection(limits: Limits | None = None) -> Connection:
    """After the prefaces."""
    made = Connection(limits or Limits(), 0.0)
    assert made.receive(PREFACE + write(F.SETTINGS, 0, 0), 0.0) == []
    made.sender.take()
    return made


def opened(state: str, limits: Limits | None = None) -> Connection:
    """With stream 3 in a state; 1 was over before it, 5 is idle."""
    made = connection(limits)
    made.receive(write(F.HEADERS, WHOLE | END, 1, block()), 0.0)
    made.sender.headers(1, b"\x88", end=True)
    if state != "idle":
        ended = END if state in ("half_closed_remote", "closed") else 0
        made.receive(write(F.HEADERS, WHOLE | ended, 3, block()), 0.0)
    if state in ("half_closed_local", "closed"):
        made.sender.headers(3, b"\x88", end=True)
    if state == "reset_here":
        made.reset(3, E.CANCEL)
    if state == "reset_there":
        made.receive(write(F.RST_STREAM, 0, 3, u32(8)), 0.0)
    made.sender.take()
    return made


def outcome(events: list[Event]) -> tuple[str, int | None]:
    for event in events:
        if isinstance(event, Ended):
            return "connection", event.code
        if isinstance(event, StreamReset) and event.why != "the client reset it":
            return "stream", event.code
    return OK


FATAL = {
    "data on 0": write(F.DATA, 0, 0, b"x"),
    "headers on 0": write(F.HEADERS, WHOLE, 0, block()),
    "priority on 0": write(F.PRIORITY, 0, 0, bytes(5)),
    "rst_stream on 0": write(F.RST_STREAM, 0, 0, u32(8)),
    "continuation on 0": write(F.CONTINUATION, WHOLE, 0, b""),
    "settings on 1": write(F.SETTINGS, 0, 1),
    "ping on 1": write(F.PING, 0, 1, bytes(8)),
    "goaway on 1": write(F.GOAWAY, 0, 1, bytes(8)),
    "push_promise": write(F.PUSH_PROMISE, WHOLE, 1, u32(2)),
    "headers on an even stream": write(F.HEADERS, WHOLE, 2, block()),
    "stray continuation": write(F.CONTINUATION, WHOLE, 3, b""),
    "window_update on idle": write(F.WINDOW_UPDATE, 0, 9, u32(1)),
    "rst_stream on idle": write(F.RST_STREAM, 0, 9, u32(8)),
    "data on idle": write(F.DATA, 0, 9, b"x"),
    "window_update by 0": write(F.WINDOW_UPDATE, 0, 0, u32(0)),
    "push neither 0 nor 1": write(F.SETTINGS, 0, 0, setting(2, 2)),
    "frame size too small": write(F.SETTINGS, 0, 0, setting(5, 16_383)),
    "frame size too large": write(F.SETTINGS, 0, 0, setting(5, 1 << 24)),
    "padding of all": write(F.DATA, PADDED, 3, b"\x04abc"),
    "padding of headers": write(F.HEADERS, PADDED | WHOLE, 5, b"\xff" + block()),
    "headers in a header block": write(F.HEADERS, 0, 5, block()) + write(F.HEADERS, WHOLE, 7, block()),
    "ping in a header block": write(F.HEADERS, 0, 5, block()) + write(F.PING, 0, 0, bytes(8)),
    "another stream's continuation": write(F.HEADERS, 0, 5, block()) + write(F.CONTINUATION, WHOLE, 7, b""),
    "unknown in a header block": write(F.HEADERS, 0, 5, block()) + b"\0\0\0\xee\0" + u32(5),
}
SIZES = {
    "settings of 5": write(F.SETTINGS, 0, 0, bytes(5)),
    "settings ack with bytes": write(F.SETTINGS, Flag.ACK, 0, bytes(6)),
    "ping of 7": write(F.PING, 0, 0, bytes(7)),
    "ping of 9": write(F.PING, 0, 0, bytes(9)),
    "goaway of 7": write(F.GOAWAY, 0, 0, bytes(7)),
    "rst_stream of 3": write(F.RST_STREAM, 0, 3, bytes(3)),
    "rst_stream of 5": write(F.RST_STREAM, 0, 3, bytes(5)),
    "window_update of 3": write(F.WINDOW_UPDATE, 0, 3, bytes(3)),
    "window_update of 5": write(F.WINDOW_UPDATE, 0, 0, bytes(5)),
    "headers shorter than a priority": write(F.HEADERS, WHOLE | PRIORITY, 5, bytes(4)),
    "padded without a length": write(F.DATA, PADDED, 3, b""),
    "frame over the limit": write(F.DATA, 0, 3, bytes(16_385)),
}
WINDOWS = {
    "initial window too large": write(F.SETTINGS, 0, 0, setting(4, 1 << 31)),
    "connection window too large": write(F.WINDOW_UPDATE, 0, 0, u32((1 << 31) - 1)),
    "initial window over an open stream's": write(F.WINDOW_UPDATE, 0, 3, u32((1 << 31) - 1 - 65_535))
    + write(F.SETTINGS, 0, 0, setting(4, 65_536)),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_breaks_the_protocol_ends_the_connection(name: str) -> None:
    made = opened("open")
    assert outcome(made.receive(FATAL[name], 0.0)) == ("connection", E.PROTOCOL_ERROR)
    assert made.over
    assert made.sender.take()[3] == F.GOAWAY
    assert made.receive(write(F.PING, 0, 0, bytes(8)), 0.0) == []  # nothing more is read


@pytest.mark.parametrize("name", SIZES)
def test_a_wrong_size_ends_the_connection(name: str) -> None:
    assert outcome(opened("open").receive(SIZES[name], 0.0)) == ("connection", E.FRAME_SIZE_ERROR)


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_too_large_ends_the_connection(name: str) -> None:
    assert outcome(opened("open").receive(WINDOWS[name], 0.0)) == ("connection", E.FLOW_CONTROL_ERROR)


STATES = ("idle", "open", "half_closed_local", "half_closed_remote", "closed", "reset_here", "reset_there")
ON_STREAM_3 = {
    "data": write(F.DATA, 0, 3, b"x"),
    "data, end": write(F.DATA, END, 3, b"x"),
    "trailers": write(F.HEADERS, WHOLE | END, 3, block(request=())),
    "headers, no end": write(F.HEADERS, WHOLE, 3, block(request=REQUEST)),
    "rst_stream": write(F.RST_STREAM, 0, 3, u32(8)),
    "window_update": write(F.WINDOW_UPDATE, 0, 3, u32(1)),
    "window_update by 0": write(F.WINDOW_UPDATE, 0, 3, u32(0)),
    "priority": write(F.PRIORITY, 0, 3, bytes(5)),
    "priority of 4": write(F.PRIORITY, 0, 3, bytes(4)),
    "unknown": b"\0\0\1\xee\0" + u32(3) + b"x",
}
PROTOCOL, CLOSED = ("connection", E.PROTOCOL_ERROR), ("stream", E.STREAM_CLOSED)
ZERO, BAD, SIZE = ("stream", E.PROTOCOL_ERROR), ("stream", E.PROTOCOL_ERROR), ("stream", E.FRAME_SIZE_ERROR)
RULES = {
    #                      idle      open  local  remote  closed  reset here, there
    "data":               (PROTOCOL, OK,   OK,    CLOSED, CLOSED, OK, OK),
    "data, end":          (PROTOCOL, OK,   OK,    CLOSED, CLOSED, OK, OK),
    "trailers":           (BAD,      OK,   OK,    CLOSED, CLOSED, OK, OK),
    "headers, no end":    (OK,       BAD,  BAD,   BAD,    CLOSED, OK, OK),
    "rst_stream":         (PROTOCOL, OK,   OK,    OK,     OK,     OK, OK),
    "window_update":      (PROTOCOL, OK,   OK,    OK,     OK,     OK, OK),
    "window_update by 0": (ZERO,     ZERO, ZERO,  ZERO,   ZERO,   ZERO, ZERO),
    "priority":           (OK,       OK,   OK,    OK,     OK,     OK, OK),
    "priority of 4":      (SIZE,     SIZE, SIZE,  SIZE,   SIZE,   SIZE, SIZE),
    "unknown":            (OK,       OK,   OK,    OK,     OK,     OK, OK),
}  # fmt: skip


@pytest.mark.parametrize("frame", ON_STREAM_3)
@pytest.mark.parametrize("state", STATES)
def test_each_frame_in_each_state_of_its_stream(frame: str, state: str) -> None:
    made = opened(state)
    expected = RULES[frame][STATES.index(state)]
    assert outcome(made.receive(ON_STREAM_3[frame], 0.0)) == expected
    sent = made.sender.take()
    assert (F.RST_STREAM in [sent[3]] if sent else False) == (expected[0] == "stream")
    if expected[0] != "connection":  # the others go on
        assert isinstance(made.receive(write(F.HEADERS, WHOLE, 9, block()), 0.0)[0], RequestBegun)


MALFORMED = {
    "upper case": block(("X-A", "1")),
    "connection": block(("connection", "close")),
    "transfer-encoding": block(("transfer-encoding", "chunked")),
    "te other than trailers": block(request=[*REQUEST[:3], ("te", "gzip")]),
    "unknown pseudo-header": block((":status", "200")),
    "pseudo-header after others": block((":authority", "x")),
    "twice": block(request=[REQUEST[0], *REQUEST]),
    "no path": block(request=REQUEST[:2]),
    "space in a name": block(("a b", "1")),
    "newline in a value": block(("a", "1\n2")),
    "nul in a value": block(("a", "1\0")),
    "space around a value": block(("a", " 1")),
    "two lengths": block(("content-length", "1"), ("content-length", "2")),
    "no number": block(("content-length", "-1")),
    "a body that isn't there": block(("content-length", "1")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_reset(name: str) -> None:
    made = connection()
    assert outcome(made.receive(write(F.HEADERS, WHOLE | END, 1, MALFORMED[name]), 0.0)) == ("stream", E.PROTOCOL_ERROR)
    assert not made.streams


@pytest.mark.parametrize(("length", "pieces", "right"), [(3, (b"ab", b"c"), True), (3, (b"ab", b"cd"), False), (3, (b"ab", b""), False)])
def test_a_body_is_as_long_as_its_head_says(length: int, pieces: tuple[bytes, bytes], right: bool) -> None:
    made = connection()
    made.receive(write(F.HEADERS, WHOLE, 1, block(("content-length", str(length)))), 0.0)
    events = made.receive(write(F.DATA, 0, 1, pieces[0]) + write(F.DATA, END, 1, pieces[1]), 0.0)
    assert outcome(events) == (OK if right else ("stream", E.PROTOCOL_ERROR))


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", PREFACE[:-1] + b"x", b"\0"])
def test_another_protocol_is_told_so(start: bytes) -> None:
    assert outcome(Connection(Limits(), 0.0).receive(start, 0.0)) == ("connection", E.PROTOCOL_ERROR)


@pytest.mark.parametrize("first", [write(F.PING, 0, 0, bytes(8)), write(F.SETTINGS, Flag.ACK, 0), write(F.HEADERS, WHOLE, 1, block())])
def test_the_first_frame_is_settings(first: bytes) -> None:
    assert outcome(Connection(Limits(), 0.0).receive(PREFACE + first, 0.0)) == ("connection", E.PROTOCOL_ERROR)


def test_a_block_that_cannot_be_decoded_ends_the_connection() -> None:
    assert outcome(connection().receive(write(F.HEADERS, WHOLE, 1, b"\xff\xff\xff\xff\xff"), 0.0)) == ("connection", E.COMPRESSION_ERROR)


def test_a_kept_block_is_dropped_when_the_table_changes() -> None:
    """The same bytes mean another thing after an entry was added: an index is counted from the newest."""
    encoder = Encoder()
    first = encoder.encode([*REQUEST, ("x-a", "1")])
    again = encoder.encode([*REQUEST, ("x-a", "1")])
    more = encoder.encode([*REQUEST, ("x-b", "2")])
    made = connection()
    blocks = (first, again, again, more, again)
    seen = [made.receive(write(F.HEADERS, WHOLE, 1 + 2 * turn, each), 0.0)[0] for turn, each in enumerate(blocks)]
    fields = [dict(event.fields) for event in seen[:4] if isinstance(event, RequestBegun)]
    assert fields[0] == fields[1] == fields[2]
    assert fields[3][b"x-b"] == b"2"
    assert isinstance(seen[4], StreamReset)  # what a decoder without a memory finds there has no path


@pytest.mark.parametrize(
    ("frame", "most"),
    [
        (write(F.PING, 0, 0, bytes(8)), 200),
        (write(F.SETTINGS, 0, 0), 50),
        (write(F.DATA, 0, 3, b""), 300),
        (b"\0\0\0\xee\0" + u32(0), 300),
        (write(F.PRIORITY, 0, 3, bytes(5)), 300),
        (write(F.WINDOW_UPDATE, 0, 0, u32(1)), 30_000),
    ],
    ids=["ping", "settings", "empty data", "unknown", "priority", "window_update"],
)
def test_a_flood_ends_the_connection(frame: bytes, most: int) -> None:
    made = opened("open")
    for _ in range(most):
        found = outcome(made.receive(frame, 0.0))
        if found != OK:
            break
    assert found == ("connection", E.ENHANCE_YOUR_CALM)


def test_rapid_reset_ends_the_connection_and_a_slow_one_does_not() -> None:
    def resets(gap: float) -> tuple[str, int | None]:
        made, now = connection(), 0.0
        for number in range(1, 1200, 2):
            now += gap
            found = outcome(made.receive(write(F.HEADERS, WHOLE, number, block()) + write(F.RST_STREAM, 0, number, u32(8)), now))
            if found != OK:
                return found
        return OK

    assert resets(0.0) == ("connection", E.ENHANCE_YOUR_CALM)
    assert resets(0.05) == OK


def test_header_blocks_are_bounded() -> None:
    made = connection()
    made.receive(write(F.HEADERS, 0, 1, block()), 0.0)
    for _ in range(10):
        found = outcome(made.receive(write(F.CONTINUATION, 0, 1, bytes(16_000)), 0.0))
        if found != OK:
            break
    assert found == ("connection", E.ENHANCE_YOUR_CALM)
    assert outcome(opened("idle").receive(write(F.HEADERS, 0, 3, b"") + write(F.CONTINUATION, 0, 3, b""), 0.0)) == found


def test_a_bomb_of_indices_is_bounded() -> None:
    encoder = Encoder()
    made = connection()
    made.receive(write(F.HEADERS, WHOLE, 1, encoder.encode([*REQUEST, ("x-bomb", "x" * 3000)])), 0.0)
    bomb = encoder.encode([*REQUEST, *[("x-bomb", "x" * 3000)] * 4000])
    assert len(bomb) < 16_384
    assert outcome(made.receive(write(F.HEADERS, WHOLE, 3, bomb), 0.0)) == ("connection", E.ENHANCE_YOUR_CALM)


def test_streams_beyond_the_limit_are_refused_and_the_others_stay() -> None:
    made = connection(Limits(streams=2))
    for number in (1, 3):
        made.receive(write(F.HEADERS, WHOLE, number, block()), 0.0)
    assert outcome(made.receive(write(F.HEADERS, WHOLE, 5, block()), 0.0)) == ("stream", E.REFUSED_STREAM)
    assert list(made.streams) == [1, 3]


def test_what_is_received_is_given_back_when_it_is_used() -> None:
    made = opened("open", Limits(window=20_000, connection_window=70_000))
    events = made.receive(write(F.DATA, 0, 3, bytes(15_000)), 0.0)
    assert isinstance(events[0], DataReceived)
    assert made.sender.take() == b""
    assert outcome(made.receive(write(F.DATA, 0, 3, bytes(6_000)), 0.0)) == ("stream", E.FLOW_CONTROL_ERROR)
    other = opened("open", Limits(window=20_000, connection_window=70_000))
    other.receive(write(F.DATA, 0, 3, bytes(15_000)), 0.0)
    other.acknowledge(3, 15_000)
    assert other.sender.take() == write(F.WINDOW_UPDATE, 0, 3, u32(15_000))
    assert outcome(other.receive(write(F.DATA, 0, 3, bytes(15_000)), 0.0)) == OK


def test_data_on_streams_that_are_gone_still_counts_for_the_connection() -> None:
    made = opened("reset_here", Limits(connection_window=70_000))
    for _ in range(20):  # far more than the window, had it not been given back
        assert outcome(made.receive(write(F.DATA, 0, 3, bytes(15_000)), 0.0)) == OK


def test_windows_to_send_into() -> None:
    made = opened("half_closed_remote")
    sender = made.sender
    sender.headers(3, b"\x88", end=False)
    assert sender.room(3) == 65_535
    sender.data(3, bytes(65_535))
    assert sender.room(3) == 0
    with pytest.raises(ValueError, match="has room for 0"):
        sender.data(3, b"x")
    assert made.receive(write(F.WINDOW_UPDATE, 0, 3, u32(10)), 0.0) == [WindowOpened(3)]
    assert sender.room(3) == 0  # the connection's is still closed
    assert made.receive(write(F.WINDOW_UPDATE, 0, 0, u32(5)), 0.0) == [WindowOpened(0)]
    assert sender.room(3) == 5
    made.receive(write(F.SETTINGS, 0, 0, setting(4, 0)), 0.0)
    assert sender.room(3) == 0  # below nothing: section 6.9.2
    assert made.streams[3].send_window == 10 - 65_535


def test_leaving_takes_what_crossed_and_nothing_after() -> None:
    made = connection()
    made.receive(write(F.HEADERS, WHOLE, 1, block()), 0.0)
    made.leave(now_final=False)
    assert isinstance(made.receive(write(F.HEADERS, WHOLE, 3, block()), 0.0)[0], RequestBegun)
    made.leave(now_final=True)
    assert made.receive(write(F.HEADERS, WHOLE, 5, block()) + write(F.DATA, END, 5, b"x"), 0.0) == []
    assert [type(event) for event in made.receive(write(F.DATA, END, 3, b"x"), 0.0)] == [DataReceived]


def test_trailers_end_a_request() -> None:
    (event,) = opened("open").receive(write(F.HEADERS, WHOLE | END, 3, block(("x-a", "1"), request=())), 0.0)
    assert event == TrailersReceived(3, ((b"x-a", b"1"),))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Input)
def test_the_table_is_what_a_stream_does(state: State, event: Input) -> None:
    stream = Stream(1, 10, 10)
    stream.state = state
    if (state, event) in TABLE:
        stream.step(event)
        assert stream.state is TABLE[state, event]
    else:
        with pytest.raises(Exception, match=f"{event} on a stream that is {state}"):
            stream.step(event)
        assert stream.state is state
