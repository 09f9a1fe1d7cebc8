"""Receives the rest of a large body in its connection's place: the kernel writes straight into the memory that the model will read.

The parser would see such a body only to hand it on, in a copy of each piece. It does not see it, so a fresh parser takes the next message.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import httptools

from server.edges.body import Body
from server.edges.infer_edge import PIECE


class Host(Protocol):
    """The connection whose place is taken: it hears of each piece, and of all that a transport tells its protocol."""

    transport: asyncio.Transport
    parser: Any

    def received_in_place(self, size: int, *, last: bool) -> None: ...

    def eof_received(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Intake(asyncio.BufferedProtocol):
    """Takes `missing` bytes and no more; what its host has no use for any more is received all the same and dropped."""

    def __init__(self, host: Host, body: Body, missing: int) -> None:
        self._host = host
        self._body = body
        self._missing = missing

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._body.room(min(self._missing, PIECE))

    def buffer_updated(self, nbytes: int) -> None:
        self._missing -= nbytes
        if not self._missing:
            self._host.transport.set_protocol(self._host)  # type: ignore[arg-type] # it is one
            self._host.parser = httptools.HttpRequestParser(self._host)
            self._host.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._host.received_in_place(nbytes, last=not self._missing)

    def eof_received(self) -> None:
        self._host.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.connection_lost(exc)

    def pause_writing(self) -> None:
        self._host.pause_writing()

    def resume_writing(self) -> None:
        self._host.resume_writing()
