"""A real server on port 0, in the test's own loop or thread, and a plain HTTP client that shows every byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.app import App
from server.config import load_settings
from server.tensors import Tensor, dtype_of

INFER = "/v2/models/{}/infer"


@asynccontextmanager
async def running(repository: Path, **settings: Any) -> AsyncIterator[App]:
    """An app that serves `repository` until the block ends; then it must stop in order. Settings as in server.yaml."""
    ports = {"http_port": 0, "grpc_port": "off", "metrics_port": 0}
    flags = {"repository": repository, **ports, "drain_delay": 0.0, "drain_timeout": 10.0, **settings}
    app = App(load_settings(None, flags))
    try:
        await app.start()
        yield app
    finally:
        await app.stop()


@contextmanager
def in_thread(repository: Path, **settings: Any) -> Iterator[App]:
    """As `running`, in a thread with a loop of its own: for clients that block."""
    up: Future[tuple[App, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running(repository, **settings) as app:
            up.set_result((app, stop))
            await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(asyncio.run, serve())
        either: list[Future[Any]] = [up, ended]
        wait(either, return_when=FIRST_COMPLETED)
        if not up.done():
            ended.result()
        app, stop = up.result()
        try:
            yield app
        finally:
            app.edge.loop.call_soon_threadsafe(stop.set)
            ended.result()


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body[: int(length)] if length else self.body)

    def tensor(self, dtype: str = "<f4") -> Tensor:
        """The only binary output, flat."""
        return np.frombuffer(self.body, dtype, offset=int(self.headers["inference-header-content-length"]))


class Wire:
    """One TCP connection: write bytes as they are, read answers in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        """The next response. Raises EOFError where the connection ends before one begins."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = await self.reader.readline()
            if not line:
                raise EOFError(f"the connection ended after {head!r}")
            head += line
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if status == 100:
            return Answer(100, {}, b"")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer()

    async def closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        return await self.reader.read(1) == b""

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def wire(app: App, **options: Any) -> AsyncIterator[Wire]:
    """A connection to the app's HTTP port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http.port, limit=2**26, **options)
    connection = Wire(reader, writer)
    try:
        yield connection
    finally:
        connection.close()


def http(path: str, body: bytes = b"", method: str = "POST", headers: Mapping[str, str] | None = None) -> bytes:
    """A request as bytes, with Content-Length unless the headers say chunked."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    given = dict(headers or {})
    if "transfer-encoding" not in given and (body or method == "POST"):
        given.setdefault("content-length", str(len(body)))
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def json_body(array: Tensor, name: str = "x", **more: Any) -> bytes:
    """A JSON inference body with one input."""
    data = array.tolist()
    return json.dumps(
        {"inputs": [{"name": name, "shape": list(array.shape), "datatype": dtype_of(array).name, "data": data}], **more}
    ).encode()


def infer_json(model: str, array: Tensor, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    return http(INFER.format(model), json_body(array, **more), headers=headers)


def binary_body(array: Tensor, name: str = "x", **more: Any) -> tuple[bytes, int]:
    """A binary inference body with one input, and the length of its JSON head."""
    entry = {"name": name, "shape": list(array.shape), "datatype": dtype_of(array).name, "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}, **more}).encode()
    return head + array.tobytes(), len(head)


def infer_binary(model: str, array: Tensor, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    body, length = binary_body(array, **more)
    return http(INFER.format(model), body, headers={"inference-header-content-length": str(length), **(headers or {})})


def chunked(pieces: Sequence[bytes]) -> bytes:
    """A body in chunked transfer coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
