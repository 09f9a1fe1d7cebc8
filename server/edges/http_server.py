"""The HTTP listeners: uvicorn's configuration and protocol on a socket of ours, one sweep for all time-outs, and the drain.

Whoever has connected is answered. The kernel connects clients before the loop accepts them, and resets them where the listener is closed
first: so a drain has it let nobody else in, accepts those who are, and only then closes. Who comes later is refused, and may try elsewhere.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from array import array
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from server.config import Settings
from server.edges.infer_edge import InferEdge
from server.edges.infer_http import InferProtocol
from server.errors import ConfigError
from server.gate import is_loopback

SWEEP = 0.5  # seconds between two looks at every connection's time-outs
DRAIN_POLL = 0.02
HANDSHAKE = 0.05  # seconds in which a connection that has begun is made, unless it's on loopback, where it's made at once
TURNS = 3  # of the loop, at most, from a connection's acceptance until its protocol has it
UNFILTERED = 0.1  # seconds of accepting, at most, where newcomers can't be kept out meanwhile
SO_ATTACH_FILTER = 26  # Linux; the socket module doesn't name it
NO_NEWCOMERS = array("B", struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 0x02, 0x06, 0, 0, 0, 0x06, 0, 0, 0xFFFFFFFF))
"""A socket filter: load TCP's flags; those with SYN are dropped, anything else is let through."""


class HttpServer:
    """The HTTP port and, where settings.admin.port says so, the admin port, which `admin` answers and where no model can be asked.

    `app` answers what isn't inference. `start` binds and listens, `port` and `admin_port` say where, `drain` ends all in order.
    """

    def __init__(self, settings: Settings, app: ASGIApp, admin: ASGIApp, edge: InferEdge) -> None:
        self.main = HttpListener(settings, app, edge, Place(settings.http_port, "--http-port"))
        self._listeners = [self.main]
        if settings.admin.port is not None:
            place = Place(settings.admin.port, "admin.port")
            self._listeners.append(HttpListener(settings, admin, edge.without_inference(), place))

    @property
    def port(self) -> int:
        return self.main.port

    @property
    def admin_port(self) -> int:
        """0 where there's none."""
        return sum(listener.port for listener in self._listeners[1:])

    @property
    def connections(self) -> int:
        return sum(listener.connections for listener in self._listeners)

    async def start(self) -> None:
        """Bind and listen. Raises ConfigError where an address can't be bound or the certificate can't be read."""
        for listener in self._listeners:
            await listener.start()

    async def drain(self, timeout: float) -> bool:
        """Stop listening, let every connection finish what it has begun, and close it. False where `timeout` seconds weren't enough."""
        for listener in self._listeners:
            listener.begin_drain()
        return all(await asyncio.gather(*(listener.drain(timeout) for listener in self._listeners)))

    def look_for(self, headers: Mapping[str, str]) -> None:
        """Look at these headers, by model, for the sticky keys of requests."""
        self.main.look_for(headers)

    async def close(self) -> None:
        """Cut what is left."""
        for listener in self._listeners:
            await listener.close()


@dataclass(frozen=True, slots=True)
class Place:
    """A port to listen on, and the setting that says which."""

    port: int
    setting: str


class HttpListener:
    """One port."""

    def __init__(self, settings: Settings, app: ASGIApp, edge: InferEdge, place: Place) -> None:
        self._settings = settings
        self._edge = edge
        self._place = place
        self._config = Config(
            app,
            host=settings.host,
            port=place.port,
            http=InferProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(settings.keep_alive),
            ssl_certfile=settings.tls.certfile,
            ssl_keyfile=settings.tls.keyfile,
            ssl_keyfile_password=settings.tls.keyfile_password,
            ssl_ca_certs=settings.tls.ca_certs,
        )
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_every = min(SWEEP, settings.keep_alive / 4, settings.limits.body_timeout / 4)
        self._draining = False
        self.port = 0

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    @property
    def open_connections(self) -> Collection[object]:
        """The protocols of those who are connected."""
        return self._state.connections

    async def start(self) -> None:
        """Bind and listen. Raises ConfigError where the address can't be bound or the certificate can't be read."""
        try:
            self._config.load()
        except OSError as error:
            raise ConfigError(f"tls: can't read the certificate or key: {error}") from error
        loop = self._edge.loop
        try:
            self._server = await loop.create_server(
                self._connection,
                self._settings.host,
                self._place.port,
                ssl=self._config.ssl,
                backlog=self._config.backlog,
            )
        except (OSError, OverflowError) as error:
            address = f"{self._settings.host}:{self._place.port}"
            raise ConfigError(
                f"can't listen on {address}: {error}. Choose another with --host and {self._place.setting} (0 for any free one)"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        for listener in self._server.sockets:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Connections inherit it. The kernel's own choice grows to 6 MiB: a burst whose copying keeps a core from all others.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._settings.limits.receive_buffer)
        self._sweep()

    def _connection(self) -> InferProtocol:
        protocol = InferProtocol(self._config, self._state, {}, self._edge)
        protocol.closing = self._draining  # then it closes as soon as there's a transport
        return protocol

    def _sweep(self) -> None:
        now = monotonic()
        for connection in list(self._state.connections):
            connection.tick(now)  # type: ignore[union-attr]
        self._sweeper = self._edge.loop.call_later(self._sweep_every, self._sweep)

    def begin_drain(self) -> None:
        """Have every connection finish what it has begun, and those that come answer one request: from this very turn of the loop on."""
        self._draining = True
        for connection in list(self._state.connections):
            connection.shutdown()

    async def drain(self, timeout: float) -> bool:
        """Stop listening and wait for every connection to end. False where `timeout` seconds weren't enough. After `begin_drain`."""
        deadline = monotonic() + timeout
        if self._server is not None:
            await self._take_in(self._server.sockets, timeout)
            self._server.close()
        self.begin_drain()  # those too whose protocol was made before, and who are known only since
        while self._state.connections and monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL)
        return not self._state.connections

    async def _take_in(self, listeners: Sequence[socket.socket], timeout: float) -> None:
        """Let nobody else connect, and accept all who have."""
        begun = monotonic()
        kept_out = sum(keep_newcomers_out(listener) for listener in listeners) == len(listeners)
        last = begun + (timeout if kept_out else min(timeout, UNFILTERED))
        settled = begun if is_loopback(self._settings.host) else begun + HANDSHAKE
        waiting = select.poll()
        for listener in listeners:
            waiting.register(listener.fileno(), select.POLLIN)
        while monotonic() < last and ((someone := bool(waiting.poll(0))) or monotonic() < settled):
            await asyncio.sleep(0 if someone else DRAIN_POLL)
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def look_for(self, headers: Mapping[str, str]) -> None:
        """Look at these headers, by model, for the sticky keys of requests."""
        if self._edge.look_for(headers):
            for connection in list(self._state.connections):
                if isinstance(connection, InferProtocol):
                    connection.known = None  # its fields lack the new headers

    async def close(self) -> None:
        """Cut what is left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.sleep(0)


def keep_newcomers_out(listener: socket.socket) -> bool:
    """Have the kernel ignore who wants to connect from now on; they try again, and are refused once the listener is closed. False where
    the kernel can't."""
    address, _ = NO_NEWCOMERS.buffer_info()
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 4, address))
        return True
    return False
