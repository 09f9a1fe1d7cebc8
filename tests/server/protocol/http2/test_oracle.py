"""Against the h2 library as the client: what it sends is understood, cut at any byte; what is sent it understands."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from server.protocol.http2.connection import Connection, Limits
from server.protocol.http2.events import DataReceived, Ended, Event, RequestBegun, StreamReset, TrailersReceived

HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def client() -> Any:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    made.initiate_connection()
    return made


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(edges)]


def plain(events: list[Event]) -> list[Event]:
    """Events that don't depend on where the bytes were cut."""
    return [event._replace(data=memoryview(bytes(event.data))) if isinstance(event, DataReceived) else event for event in events]


@st.composite
def sessions(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes, bool]]]:
    """A client's bytes with several streams, their bodies in pieces, some padded, some cancelled or with trailers; what they say."""
    speaker = client()
    said: list[tuple[int, bytes, bool]] = []
    for _ in range(draw(st.integers(1, 5))):
        number = speaker.get_next_available_stream_id()
        extra = [(b"x-%d" % index, draw(st.binary(max_size=40)).hex().encode()) for index in range(draw(st.integers(0, 3)))]
        speaker.send_headers(number, HEADERS + extra)
        body = b""
        for piece in draw(st.lists(st.binary(max_size=300), max_size=4)):
            padding = draw(st.one_of(st.none(), st.integers(0, 255)))
            speaker.send_data(number, piece, pad_length=padding)
            body += piece
        ending = draw(st.sampled_from(["end", "trailers", "reset"]))
        if ending == "end":
            speaker.end_stream(number)
        elif ending == "trailers":
            speaker.send_headers(number, [(b"x-last", b"1")], end_stream=True)
        else:
            speaker.reset_stream(number, 8)
        if draw(st.booleans()):
            speaker.ping(b"12345678")
        said.append((number, body, ending != "reset"))
    return speaker.data_to_send(), said


@given(sessions(), st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=150)
def test_a_session_means_the_same_however_it_is_cut(session: tuple[bytes, list[tuple[int, bytes, bool]]], places: list[int]) -> None:
    data, said = session
    whole = Connection(Limits(), 0.0)
    expected = plain(whole.receive(data, 0.0))
    cutting = Connection(Limits(), 0.0)
    found = [event for piece in cut(data, places) for event in plain(cutting.receive(piece, 0.0))]
    assert found == expected
    assert cutting.sender.take() == whole.sender.take()
    for number, body, finished in said:
        mine = [event for event in expected if getattr(event, "stream", None) == number]
        assert isinstance(mine[0], RequestBegun)
        assert dict(mine[0].fields)[b":path"] == HEADERS[2][1]
        assert b"".join(bytes(event.data) for event in mine if isinstance(event, DataReceived)) == body
        last = mine[-1]
        ended = isinstance(last, TrailersReceived) or (isinstance(last, DataReceived) and last.ended)
        assert ended == finished
        assert isinstance(last, StreamReset) != finished


@given(st.binary(max_size=70_000), st.integers(16_384, 40_000), st.integers(1000, 200_000))
@settings(max_examples=60)
def test_what_is_sent_the_library_understands(body: bytes, frame: int, window: int) -> None:
    speaker = client()
    speaker.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: frame, h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    speaker.send_headers(1, HEADERS, end_stream=True)
    connection = Connection(Limits(), 0.0)
    connection.receive(speaker.data_to_send(), 0.0)
    sender = connection.sender
    sender.headers(1, b"\x88", end=False)
    got, rest = b"", memoryview(body)
    for _ in range(1000):
        piece = rest[: sender.room(1)]
        if len(piece) or not len(rest):
            sender.data(1, piece, end=len(piece) == len(rest))
        ended = len(piece) == len(rest)
        rest = rest[len(piece) :]
        for event in speaker.receive_data(sender.take()):
            if isinstance(event, h2.events.DataReceived):
                got += event.data
                speaker.acknowledge_received_data(event.flow_controlled_length, 1)
        answered = connection.receive(speaker.data_to_send(), 0.0)
        assert not any(isinstance(event, Ended) for event in answered)
        if ended:
            break
    assert got == body
    assert not connection.streams


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_end_in_an_answer_never_in_an_exception(junk: bytes) -> None:
    connection = Connection(Limits(), 0.0)
    connection.receive(client().data_to_send(), 0.0)
    connection.receive(junk, 0.0)
    assert connection.sender.take()
