"""/metrics and health on a port of their own, from a thread of their own: they answer while the event loop is busy or stuck.

One asyncio loop in that thread serves all clients, so a slow one costs a buffer and no thread. It doesn't know what the figures mean.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

from server.errors import ConfigError
from server.metrics.collector import registry_of
from server.metrics.gpu import Gpu, Gpus
from server.metrics.loop_probe import LoopProbe
from server.metrics.recorder import Recorder
from server.metrics.triton import COUNTERS_ONLY, Latencies, TritonText

__all__ = ["LoopProbe", "MetricsServer"]

MAX_CONNECTIONS = 64
MAX_HEAD = 16 << 10
HEAD_TIMEOUT = 5.0  # seconds from a request's first byte to the end of its head
IDLE_TIMEOUT = 90.0  # seconds between two requests of a connection: above usual scrape intervals
WRITE_TIMEOUT = 10.0
JSON = "application/json"
OPENMETRICS = "application/openmetrics-text"
END = b"# EOF\n"


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is to serve: all figures, what the GPUs are at, and which of Triton's latencies."""

    recorder: Recorder
    gpus: Gpus | None = None
    latencies: Latencies = COUNTERS_ONLY

    def read_gpus(self) -> Sequence[Gpu]:
        """The GPUs' last sample."""
        return self.gpus.read() if self.gpus is not None else ()


class MetricsServer:
    """Serves `sources`, and what `live` and `ready` say; both are called from the server's thread. `port` is known after `start`."""

    def __init__(self, host: str, port: int, sources: Sources, *, live: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self.host = host
        self.port = port
        self._registry = registry_of(sources.recorder, sources.read_gpus)
        self._triton = TritonText(sources.recorder, sources.latencies, sources.read_gpus)
        self._live = live
        self._ready = ready
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._connections: dict[asyncio.StreamWriter, None] = {}

    def start(self) -> None:
        """Bind and serve. Raises ConfigError where the address can't be bound."""
        try:
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = socket.create_server(address[:2], family=family, backlog=MAX_CONNECTIONS)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"can't listen on {self.host}:{self.port} for metrics: {error}. Choose another with --metrics-port (0 for any free one)"
            ) from error
        self.port = listener.getsockname()[1]
        serving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener, serving)), name="metrics", daemon=True)
        self._thread.start()
        serving.wait()

    def close(self) -> None:
        """Stop listening, cut what's connected, and wait for the thread."""
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    async def _serve(self, listener: socket.socket, serving: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, sock=listener, limit=MAX_HEAD)
        serving.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            silent_longest = next(iter(self._connections))
            del self._connections[silent_longest]
            silent_longest.transport.abort()
        writer.transport.set_write_buffer_limits(0)  # drained is sent
        stays = True
        try:
            while stays:
                self._connections.pop(writer, None)
                self._connections[writer] = None
                stays = await self._exchange(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the client left, stalls, or sends what is no request
        finally:
            self._connections.pop(writer, None)
            writer.close() if not stays else writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; True where the connection stays."""
        async with asyncio.timeout(IDLE_TIMEOUT):
            first = await reader.readexactly(1)
        async with asyncio.timeout(HEAD_TIMEOUT):
            head = first + await reader.readuntil(b"\r\n\r\n")
        method, path, version, fields = _parse(head)
        bodiless = fields.get("content-length", "0") == "0" and "transfer-encoding" not in fields
        stays = version == "HTTP/1.1" and "close" not in fields.get("connection", "").lower() and bodiless
        answer = self._answer(method, path, fields.get("accept", ""))
        body = b"" if method == "HEAD" else answer.body
        writer.write(_head(answer, stays) + body)
        async with asyncio.timeout(WRITE_TIMEOUT):
            await writer.drain()
        return stays

    def _answer(self, method: str, path: str, accept: str) -> Answer:
        if not method or not path.startswith("/"):
            return _error(HTTPStatus.BAD_REQUEST)
        routes: dict[str, Callable[[], Answer]] = {
            "/metrics": lambda: self._metrics(accept),
            "/v2/health/live": lambda: _health("live", self._live()),
            "/v2/health/ready": lambda: _health("ready", self._ready()),
        }
        route = routes.get(path.partition("?")[0])
        if route is None:
            return _error(HTTPStatus.NOT_FOUND)
        return route() if method in ("GET", "HEAD") else _error(HTTPStatus.METHOD_NOT_ALLOWED)

    def _metrics(self, accept: str) -> Answer:
        if OPENMETRICS in accept:
            text = openmetrics.generate_latest(self._registry).removesuffix(END)  # type: ignore[no-untyped-call]
            return Answer(HTTPStatus.OK, text + self._triton.text(openmetrics=True).encode() + END, openmetrics.CONTENT_TYPE_LATEST)
        return Answer(HTTPStatus.OK, generate_latest(self._registry) + self._triton.text().encode(), CONTENT_TYPE_PLAIN_0_0_4)


def _parse(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """Method, path, version and fields; empty where it's no request line."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    method, path, version = parts if len(parts) == 3 and parts[2].startswith("HTTP/1.") else ("", "", "")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return method, path, version, fields


def _health(name: str, well: bool) -> Answer:
    return Answer(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, orjson.dumps({name: well}))


def _error(status: HTTPStatus) -> Answer:
    return Answer(status, orjson.dumps({"error": status.phrase}))


def _head(answer: Answer, stays: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {answer.status.phrase}",
        f"content-type: {answer.content_type}",
        f"content-length: {len(answer.body)}",
    ]
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("allow: GET, HEAD")
    if not stays:
        lines.append("connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
