"""A blocking HTTP connection that sends what it's given and reads answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse, RemoteDisconnected
from typing import NamedTuple

from tests.malformed.documents import WHOLE, Case, post

PATIENCE = 10.0


class Answer(NamedTuple):
    """A status (0: the connection ended), the error's text, and whether the connection ends."""

    status: int
    text: str
    ends: bool


class Connection:
    """One after the other."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE)

    def ask(self, request: bytes) -> Answer:
        """Send, and read the answer, even where the server ends the connection before it read all of the request."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(request)
        with HTTPResponse(self.socket) as response:
            try:
                response.begin()
                body = response.read()
            except (RemoteDisconnected, ConnectionResetError):
                return Answer(0, "", True)
            text = json.loads(body).get("error", "") if body and response.status != 200 else ""
            return Answer(response.status, text, response.will_close)

    def close(self) -> None:
        """End it."""
        self.socket.close()

    def ended(self) -> bool:
        """Whether the server ends the connection, without another byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def connected(address: str) -> Iterator[Connection]:
    """A connection for the block."""
    connection = Connection(address)
    try:
        yield connection
    finally:
        connection.close()


GOOD = Case(post(WHOLE), (200,))
