"""The Open Inference Protocol as a plain client speaks it: request bytes made beforehand, answers read back into arrays.

Written for itself and not by the server's codecs, so that a benchmark doesn't check the server by the server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
DATATYPES = {"float32": "FP32", "int64": "INT64"}
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. `head_length` is that of the JSON head before binary tensors, None where all is JSON."""

    status: int
    head_length: int | None
    body: bytes

    def array(self, output: str) -> NDArray[Any]:
        """FP32 output by name. Raises ValueError unless the answer is a 200 that has it."""
        if self.status != 200:
            raise ValueError(f"status {self.status}: {self.body[:300].decode(errors='replace')}")
        head = orjson.loads(self.body[: self.head_length])
        at = self.head_length or 0
        for tensor in head["outputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size", 0)
            if tensor["name"] == output:
                found = np.frombuffer(self.body, np.float32, size // 4, at) if size else np.array(tensor["data"], np.float32)
                return found.reshape(tensor["shape"])
            at += size
        raise ValueError(f"no output {output!r} in {head}")


def binary_request(address: str, model: str, arrays: Arrays) -> bytes:
    """A whole POST …/infer with tensors in the binary extension, outputs asked for the same way."""
    tensors = [{**_described(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in arrays.items()]
    head = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    body = head + b"".join(array.tobytes() for array in arrays.values())
    extra = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
    return post(address, model, extra, body)


def json_request(address: str, model: str, arrays: Arrays) -> bytes:
    """A whole POST …/infer in JSON; tensors are flat lists."""
    tensors = [{**_described(name, array), "data": array.ravel()} for name, array in arrays.items()]
    body = orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return post(address, model, "Content-Type: application/json\r\n", body)


def ask_one_by_one(address: str, requests: Sequence[bytes]) -> list[Answer]:
    """Each request after the answer to the one before, on one connection."""
    with _connect(address) as connection:
        return [_exchange(connection, request) for request in requests]


def ask_at_once(address: str, requests: Sequence[bytes]) -> list[Answer]:
    """Each request on its own connection, all sent before the first answer is read."""
    with ExitStack() as stack:
        connections = [stack.enter_context(_connect(address)) for _ in requests]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        return [_receive(connection) for connection in connections]


@contextmanager
def connected(address: str) -> Iterator[Callable[[bytes], Answer]]:
    """A connection; what it gives asks one request over it."""
    with _connect(address) as connection:
        yield partial(_exchange, connection)


def split_address(address: str) -> tuple[str, int]:
    """ "127.0.0.1:8000" → host and port."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "shape": array.shape, "datatype": DATATYPES[str(array.dtype)]}


def post(address: str, model: str, extra: str, body: bytes) -> bytes:
    """A whole POST …/infer; `extra` are header lines."""
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _connect(address: str) -> socket.socket:
    connection = socket.create_connection(split_address(address), TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _exchange(connection: socket.socket, request: bytes) -> Answer:
    connection.sendall(request)
    return _receive(connection)


def _receive(connection: socket.socket) -> Answer:
    with HTTPResponse(connection) as response:
        response.begin()
        head = response.getheader("Inference-Header-Content-Length")
        return Answer(response.status, int(head) if head else None, response.read())
