"""What a connection tells of what was received."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from server.protocol.http2.fields import Fields


class RequestBegun(NamedTuple):
    """A stream was opened by a request's header fields; `ended`: nothing follows."""

    stream: int
    fields: Fields
    ended: bool


class DataReceived(NamedTuple):
    """Bytes of a request's body, a view of what was received. `flow` is to be given back by `acknowledge` once they are used: it includes
    padding."""

    stream: int
    data: memoryview
    flow: int
    ended: bool


class TrailersReceived(NamedTuple):
    """The end of a request."""

    stream: int
    fields: Fields


class StreamReset(NamedTuple):
    """A stream is over: by the client, or for a fault of its own. `code` is an ErrorCode, or one that isn't known."""

    stream: int
    code: int
    why: str


class WindowOpened(NamedTuple):
    """More may be sent on a stream, or on all (0)."""

    stream: int


class ClientLeaves(NamedTuple):
    """The client sent GOAWAY: it opens no more streams."""

    code: int


class Ended(NamedTuple):
    """The connection is over: send what is there and close it. `code` NO_ERROR: in order."""

    code: int
    why: str


Event: TypeAlias = RequestBegun | DataReceived | TrailersReceived | StreamReset | WindowOpened | ClientLeaves | Ended
