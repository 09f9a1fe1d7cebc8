"""The HTTP listener: uvicorn's configuration and protocol on a socket of ours, one sweep for all time-outs, and the drain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from server.config import Settings
from server.edges.infer_edge import InferEdge
from server.edges.infer_http import InferProtocol
from server.errors import ConfigError

SWEEP = 0.5  # seconds between two looks at every connection's time-outs
DRAIN_POLL = 0.02


class HttpServer:
    """`app` answers what isn't inference. `start` binds and listens, `port` says where, `drain` ends every connection in order."""

    def __init__(self, settings: Settings, app: Callable[..., Any], edge: InferEdge) -> None:
        self._settings = settings
        self._edge = edge
        self._config = Config(
            app,
            host=settings.host,
            port=settings.http_port,
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
                self._settings.http_port,
                ssl=self._config.ssl,
                backlog=self._config.backlog,
            )
        except (OSError, OverflowError) as error:
            address = f"{self._settings.host}:{self._settings.http_port}"
            raise ConfigError(
                f"can't listen on {address}: {error}. Choose another with --host and --http-port (0 for any free one)"
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

    async def drain(self, timeout: float) -> bool:
        """Stop listening, let every connection finish what it has begun, and close it. False where `timeout` seconds weren't enough."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = monotonic() + timeout
        while self._state.connections and monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL)
        return not self._state.connections

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
