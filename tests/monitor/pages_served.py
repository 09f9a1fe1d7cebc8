"""Small HTTP servers on port 0 for tests: one that gives pages, and one that takes what is posted to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Served:
    """What a server saw. `answer` makes the bytes of an answer; the test may change it."""

    answer: Callable[[Request], bytes]
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for requests until `holds`; the test's own time limit ends it."""
        while not holds():
            self.arrived.clear()
            await self.arrived.wait()


def reply(body: bytes | str = b"", status: str = "200 OK", headers: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n{headers}connection: close\r\n\r\n".encode() + content


@asynccontextmanager
async def serving(answer: Callable[[Request], bytes] | bytes) -> AsyncIterator[Served]:
    """A server that answers every request with `answer`; an empty answer leaves the client waiting."""
    served = Served(answer if callable(answer) else lambda request: answer)
    done = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        request = Request(method, path, headers, body)
        served.requests.append(request)
        content = served.answer(request)
        served.arrived.set()
        if not content:
            await done.wait()
        try:
            writer.write(content)
            await writer.drain()
        except ConnectionError:
            pass  # the client had enough
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        done.set()
        server.close()
        await server.wait_closed()
