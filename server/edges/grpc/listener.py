"""The gRPC listener: grpc.aio's server with our limits on its port, its certificates, and its drain."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from server.config import Settings, Tls
from server.edges.grpc.gathering import Gathering
from server.edges.grpc.grpc_aio import Methods
from server.edges.grpc.health import Health
from server.edges.grpc.inference import GrpcEdge
from server.edges.grpc.servicer import Servicer
from server.edges.infer_edge import InferEdge
from server.errors import ConfigError

COMPRESSIONS = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
PING_STRIKES = 2  # pings that come too soon, after which a connection is ended


class GrpcServer:
    """`start` binds and listens, `port` says where (0: not at all), `drain` ends every call in order."""

    def __init__(self, settings: Settings, shared: InferEdge, servicer: Servicer) -> None:
        self._settings = settings
        self._draining = asyncio.Event()
        health = Health(servicer.gate, servicer.ready)
        mutual = settings.tls.ca_certs is not None
        self._methods = Methods(GrpcEdge(shared), servicer, health, Gathering(shared.loop), self._draining, mutual)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Bind and listen, where there's a port for it. Raises ConfigError where the address can't be bound or the key can't be used."""
        settings = self._settings
        if settings.grpc_port is None:
            return
        server = grpc.aio.server(
            handlers=self._methods.handlers(), options=_options(settings), compression=COMPRESSIONS[settings.grpc.compression]
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        credentials = _credentials(settings.tls)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"can't listen on {address} for gRPC: {error}. Choose another with --host and --grpc-port "
                "(0 for any free one, off for none)"
            ) from error
        await server.start()
        self._server = server

    async def drain(self, timeout: float) -> None:
        """Send GOAWAY, take no new calls, and let those that run end; after `timeout` seconds they are cancelled."""
        self._draining.set()
        if self._server is not None:
            await self._server.stop(timeout)

    async def close(self) -> None:
        """Cut what is left."""
        self._draining.set()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


def _options(settings: Settings) -> list[tuple[str, Any]]:
    ours, limits = settings.grpc, settings.limits
    return [
        ("grpc.so_reuseport", 0),  # else a second server on the same port would take half of the calls
        ("grpc.max_receive_message_length", min(ours.max_message, limits.inflight_bytes)),  # one over the latter would never get room
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", ours.max_streams),
        ("grpc.keepalive_time_ms", _milliseconds(ours.keepalive_time)),
        ("grpc.keepalive_timeout_ms", _milliseconds(ours.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(ours.min_ping_interval)),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
    ]


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), 2**31 - 1)


def _credentials(tls: Tls) -> grpc.ServerCredentials | None:
    if tls.certfile is None:
        return None
    if tls.keyfile_password is not None:
        raise ConfigError(
            "tls.keyfile_password: gRPC can't read an encrypted key; give it without a password, or serve no gRPC (grpc_port: off)"
        )
    try:
        chain = tls.certfile.read_bytes()
        key = tls.keyfile.read_bytes() if tls.keyfile is not None else chain
        authorities = tls.ca_certs.read_bytes() if tls.ca_certs is not None else None
    except OSError as error:
        raise ConfigError(f"tls: can't read the certificate or key: {error}") from error
    return grpc.ssl_server_credentials([(key, chain)], authorities, require_client_auth=authorities is not None)
