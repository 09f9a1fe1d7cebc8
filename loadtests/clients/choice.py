"""Which client speaks a scenario's protocol."""

from __future__ import annotations

from urllib.parse import urlsplit

from loadtests.clients.base import Client
from loadtests.clients.grpc import GrpcClient, StreamClient
from loadtests.clients.http import HttpClient
from loadtests.scenario import Target
from server.errors import ConfigError


def client_for(url: str, target: Target, token: str = "") -> Client:
    """A client of the server at `url`: http://HOST:PORT for http, HOST:PORT for gRPC. Raises ConfigError for what can't be an address.
    Call it in the loop that it will be used in."""
    if target.protocol == "http":
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url {url!r}: expected http://HOST:PORT")
        return HttpClient(parts.geturl(), target, token)
    address = url.removeprefix("grpc://")
    if "://" in address or ":" not in address:
        raise ConfigError(f"--url {url!r}: expected HOST:PORT, the server's gRPC address, for protocol {target.protocol}")
    return (StreamClient if target.protocol == "grpc-stream" else GrpcClient)(address, target, token)
