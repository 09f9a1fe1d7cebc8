"""Bad input over gRPC: the right code and text, nobody else harmed, nothing left behind, and the next good request succeeds."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import numpy as np
import pytest

from server.app import App
from server.edges.grpc.status import code_of
from tests.server.edges.grpc.wire import Client, connected, request, tensors
from tests.server.models import identity_model
from tests.server.protocol.test_proto_codec import REFUSED
from tests.server.running import in_thread
from tests.server.test_serve import serving

ROWS = np.arange(16, dtype=np.float32).reshape(1, 16)
GOOD = request("m", {"x": ROWS})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One server for all cases: whatever one does must not hurt the next."""
    root = tmp_path_factory.mktemp("bad-grpc")
    identity_model(root / "m" / "1" / "model.onnx")
    with in_thread(root, grpc_port=0, limits={"max_json_body": "1MiB"}, grpc={"max_message": "4MiB"}) as app:
        yield app


@pytest.fixture(scope="module")
def client(served: App) -> Iterator[Client]:
    with connected(served.addresses.grpc) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_left(served: App, client: Client) -> Iterator[None]:
    """After each case: a good request, no bytes in flight, no row queued, no call's task."""
    yield
    np.testing.assert_array_equal(tensors(client.infer(GOOD))["y"], ROWS)
    assert served.edge.inflight.used == 0
    engine = served.router.entry("m", "").engine
    assert engine is not None
    assert engine.queue_rows == 0
    end = monotonic() + 10
    while (left := _calls(served)) and monotonic() < end:
        pass
    assert not left


def _calls(served: App) -> list[str]:
    """The tasks of calls that the server's loop still has."""

    async def look() -> list[str]:
        names = [str(task.get_coro()) for task in asyncio.all_tasks()]
        return [name for name in names if "_handle_rpc" in name or "stream" in name]

    return asyncio.run_coroutine_threadsafe(look(), served.edge.loop).result(10)


@pytest.mark.parametrize("case", REFUSED)
def test_a_message_that_is_refused(client: Client, case: str) -> None:
    body, kind, text = REFUSED[case]
    code, said = client.refused("ModelInfer", body)
    assert code == code_of(kind(""))
    assert text in said


@pytest.mark.parametrize("case", REFUSED)
def test_the_same_on_a_stream_which_goes_on(client: Client, case: str) -> None:
    body, _, text = REFUSED[case]
    first, wrong, last = client.stream([GOOD, body, GOOD])
    assert text in wrong.error_message
    for answer in (first, last):
        np.testing.assert_array_equal(tensors(answer.infer_response)["y"], ROWS)


METHODS = ("ModelReady", "ModelMetadata", "RepositoryIndex", "/grpc.health.v1.Health/Check")


@pytest.mark.parametrize("method", METHODS)
def test_no_message(client: Client, method: str) -> None:
    code, said = client.refused(method, b"\x0a\xff")
    assert code == "INVALID_ARGUMENT"
    assert "2 bytes aren't a valid" in said


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_a_name_that_is_too_long(client: Client, method: str) -> None:
    assert client.refused(method, b"\x0a\xac\x02" + b"n" * 300)[0] == "INVALID_ARGUMENT"


def test_what_isnt_there(client: Client) -> None:
    assert client.refused("NoSuchMethod", b"")[0] == "UNIMPLEMENTED"
    assert client.refused("/no.such.Service/Method", b"")[0] == "UNIMPLEMENTED"
    assert client.refused("/grpc.health.v1.Health/Check", b"\x0a\x04nope") == ("NOT_FOUND", "unknown service 'nope'")
    assert client.refused("RepositoryIndex", b"\x0a\x01r")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("body", [b"\x3a\x00" * 2_000_000, b"\x2a\x00" * 2_000_000, b"\x98\x06\x01" * 1_000_000])
def test_millions_of_fields_take_no_time(client: Client, body: bytes) -> None:
    before = monotonic()
    assert client.refused("ModelInfer", body)[0] == "INVALID_ARGUMENT"
    assert monotonic() - before < 5


def test_too_much_metadata(client: Client) -> None:
    assert client.refused("ServerLive", b"", (("x-much", "m" * 100_000),))[0] in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE")


GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(256)) * 16,
    "HTTP/1.1": b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    "half a preface": b"PRI * HTTP/2.0\r\n",
    "a preface, then noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)) * 16,
    "a frame that is too large": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_grpc(served: App, case: str) -> None:
    with socket.create_connection(("127.0.0.1", served.grpc.port), 10) as connection:
        connection.sendall(GARBAGE[case])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def test_a_client_that_goes_in_the_middle(served: App) -> None:
    """Connections that end while their messages are half sent, and calls cut while they run."""
    for _ in range(10):
        with connected(served.addresses.grpc) as gone:
            futures = [gone.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(GOOD) for _ in range(20)]
            del futures
    with connected(served.addresses.grpc) as gone:
        call = gone.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([GOOD] * 50))
        next(call)
        call.cancel()


def test_a_bomb(tmp_path: Path) -> None:
    """128 MiB that take some KB compressed are refused by the limit, and the server never makes them."""
    identity_model(tmp_path / "m" / "1" / "model.onnx")
    with serving(tmp_path, TIDEGATE_GRPC_MAX_MESSAGE="4MiB") as (process, line), connected(line["grpc"]) as client:
        before = _peak(process.pid)
        call = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(128 << 20), compression=compression, timeout=60)
            failed: Any = caught.value
            assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _peak(process.pid) - before < 64 << 20
        np.testing.assert_array_equal(tensors(client.infer(GOOD))["y"], ROWS)


def _peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
