"""System shared memory: stock clients in another process, the gate, and regions that come to harm while requests use them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio

from server.app import App
from server.regions import FOLDER
from tests.server.models import identity_model, place, two_inputs_model
from tests.server.running import INFER, Answer, Wire, http, in_thread, running, wire

ROOT = Path(__file__).resolve().parents[3]
X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    place(root, "sums", two_inputs_model)
    place(root, "broad", lambda path: two_inputs_model(path, 60_000))
    place(root, "wide", lambda path: identity_model(path, width="W"))
    place(root, "text", lambda path: identity_model(path, "BYTES", "W"))
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[App]:
    with in_thread(repository, grpc_port=0, allow=("shared-memory",)) as app:
        yield app


@pytest_asyncio.fixture
async def app(repository: Path) -> AsyncIterator[App]:
    async with running(repository, allow=("shared-memory",)) as one:
        yield one


@pytest.mark.parametrize("arguments", [("http",), ("http", "binary"), ("grpc",)], ids=" ".join)
def test_stock_clients_in_another_process(served: App, arguments: tuple[str, ...]) -> None:
    transport, *more = arguments
    address = served.addresses.http if transport == "http" else served.addresses.grpc
    command = [sys.executable, "-m", "tests.server.edges.region_client", transport, address, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert served.regions.status() == ()


@contextmanager
def file(content: bytes) -> Iterator[Path]:
    """A file where clients' regions lie."""
    path = FOLDER / f"tidegate-{uuid4().hex}"
    path.write_bytes(content)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def register(connection: Wire, name: str, path: Path, **wish: Any) -> Answer:
    body = json.dumps({"key": f"/{path.name}", "offset": 0, "byte_size": os.stat(path).st_size, **wish}).encode()
    return await connection.ask(http(f"/v2/systemsharedmemory/region/{name}/register", body))


def request(parameters: Any, outputs: Any = (), shape: tuple[int, ...] = (1, 4)) -> bytes:
    document: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}]}
    if outputs:
        document["outputs"] = outputs
    return http(INFER.format("wide"), json.dumps(document).encode())


def at(region: str, size: int = 16, offset: int = 0) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"shared_memory_region": "r"}, "input 'x': 'shared_memory_byte_size' must be an integer from 0 to 2**63 - 1, got None"),
        ({**at("r"), "shared_memory_byte_size": -1}, "'shared_memory_byte_size' must be an integer from 0"),
        ({**at("r"), "shared_memory_byte_size": 2**63}, "'shared_memory_byte_size' must be an integer from 0"),
        ({**at("r"), "shared_memory_offset": "0"}, "'shared_memory_offset' must be an integer from 0"),
        ({**at("r"), "shared_memory_region": 7}, "'shared_memory_region' must be a string of 1 to 256 characters, got 7"),
        ({**at("r"), "shared_memory_region": ""}, "'shared_memory_region' must be a string of 1 to 256 characters"),
        ({**at("r"), "binary_data_size": 16}, "must have exactly one of 'data'"),
        (at("r", 12), "input byte size mismatch for input 'x' for model 'wide'. Expected 16, got 12"),
        (at("r", 16, 1), "Invalid offset + byte size for shared memory region: 'r'"),
    ],
)
async def test_bad_parameters(app: App, parameters: Any, text: str) -> None:
    with file(X.tobytes()) as path:
        async with wire(app) as connection:
            assert (await register(connection, "r", path)).status == 200
            answer = await connection.ask(request(parameters))
            assert (answer.status, text in answer.json()["error"]) == (400, True), answer.json()
            assert (await connection.ask(request(at("r")))).json()["outputs"][0]["data"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"{", b'{"key": 7, "byte_size": 8}', b'{"key": "/a", "byte_size": "8"}', b'{"key": "/a", "byte_size": true}'],
)
async def test_bad_registrations(app: App, body: bytes) -> None:
    async with wire(app) as connection:
        assert (await connection.ask(http("/v2/systemsharedmemory/region/r/register", body))).status == 400
        assert (await connection.ask(http("/v2/systemsharedmemory/status", method="GET"))).json() == []


async def test_classes_go_to_a_region_too(app: App) -> None:
    with file(bytes(64)) as path:
        async with wire(app) as connection:
            assert (await register(connection, "r", path)).status == 200
            outputs = [{"name": "y", "parameters": {**at("r", 64), "classification": 1}}]
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 9, 3]}], "outputs": outputs}
            for _ in range(4):  # a request of a known form isn't one without its region
                answer = await connection.ask(http(INFER.format("wide"), json.dumps(body).encode()))
                assert answer.json()["outputs"] == [{"name": "y", "datatype": "BYTES", "shape": [1, 1]}]
        assert np.fromfile(path, np.uint8).tobytes()[:15] == b"\x0a\x00\x00\x009.000000:2\x00"


async def test_a_big_json_request_and_answer_beside_regions(app: App) -> None:
    """The helper process reads the one and writes the other; what lies in regions is none of its business."""
    width = 60_000
    values = np.random.default_rng(0).standard_normal((1, width), np.float32)
    tensor = {"datatype": "FP32", "shape": [1, width]}
    with file(values.tobytes()) as path, file(bytes(values.nbytes)) as out:
        async with wire(app) as connection:
            assert (await register(connection, "r", path)).status == 200
            assert (await register(connection, "o", out)).status == 200
            inputs = [{"name": "a", **tensor, "data": values[0].tolist()}, {"name": "b", **tensor, "parameters": at("r", values.nbytes)}]
            outputs = [{"name": "product", "parameters": at("o", values.nbytes)}, {"name": "total"}]
            body = json.dumps({"id": "7", "inputs": inputs, "outputs": outputs}).encode()
            assert len(body) > app.edge.limits.json_offload
            answer = await connection.ask(http(INFER.format("broad"), body))
            assert answer.status == 200, answer.body
            total, product = answer.json()["outputs"]
            np.testing.assert_allclose(np.array(total["data"], np.float32), 2 * values[0])
            assert product == {"name": "product", **tensor}
        np.testing.assert_array_equal(np.fromfile(out, np.float32), values[0] * values[0])


async def test_it_is_off_unless_allowed(repository: Path) -> None:
    async with running(repository) as app, wire(app) as connection:
        with file(X.tobytes()) as path:
            refused = await register(connection, "r", path)
        assert (refused.status, "--allow shared-memory" in refused.json()["error"]) == (403, True)
        assert (await connection.ask(request(at("r")))).status == 404
        assert (await connection.ask(http("/v2/systemsharedmemory/unregister"))).status == 200


async def test_others_than_control_may_neither_register_nor_use_a_region(repository: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    lines = [
        f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{classes}\n" for name, classes in (("u", "infer"), ("c", "infer,control"))
    ]
    tokens.touch(0o600)
    tokens.write_text("".join(lines))
    settings = {"host": "0.0.0.0", "admin": {"token_file": str(tokens)}, "allow": ("shared-memory",)}
    async with running(repository, **settings) as app, wire(app) as connection:
        with file(X.tobytes()) as path:
            body = json.dumps({"key": f"/{path.name}", "byte_size": 16}).encode()
            statuses = {}
            for token in ("u", "c"):
                headers = {"authorization": f"Bearer {token}"}
                asked = http("/v2/systemsharedmemory/region/r/register", body, headers=headers)
                used = request(at("r")).replace(b"\r\n\r\n", b"\r\nauthorization: Bearer %b\r\n\r\n" % token.encode(), 1)
                statuses[token] = ((await connection.ask(asked)).status, (await connection.ask(used)).status)
            assert statuses == {"u": (403, 403), "c": (200, 200)}
            used = request(at("r")).replace(b"\r\n\r\n", b"\r\nauthorization: Bearer u\r\n\r\n", 1)
            assert (await connection.ask(used)).status == 403


async def test_a_region_that_shrinks_and_grows_under_1000_requests(app: App) -> None:
    """Every answer is the values or a clear 400, and a bystander notices nothing. Large enough that copies leave the loop."""
    width = 300_000
    values = np.arange(width, dtype=np.float32)
    with file(values.tobytes()) as path, file(values.tobytes()) as out:
        async with wire(app) as setup:
            for name, region in (("r", path), ("o", out)):
                assert (await register(setup, name, region)).status == 200
        size = values.nbytes
        outputs = [{"name": "y", "parameters": at("o", size)}]
        seen: set[int] = set()

        async def use(count: int) -> None:
            async with wire(app) as connection:
                for _ in range(count):
                    answer = await connection.ask(request(at("r", size), outputs, (1, width)))
                    seen.add(answer.status)
                    if answer.status == 200:
                        assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, width]}]
                    else:
                        assert "shared memory region" in answer.json()["error"]

        async def harm() -> None:
            while True:
                for region, length in ((path, 8), (path, size), (out, 0), (out, size)):
                    os.truncate(region, length)
                    await asyncio.sleep(0.002)

        async def bystander() -> None:
            async with wire(app) as connection:
                for _ in range(200):
                    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
                    answer = await connection.ask(http(INFER.format("wide"), json.dumps(body).encode()))
                    assert answer.json()["outputs"][0]["data"] == [1, 2]

        harming = asyncio.create_task(harm())
        await asyncio.gather(*(use(125) for _ in range(8)), bystander())
        harming.cancel()
        os.truncate(path, size)
        os.truncate(out, size)
        async with wire(app) as connection:
            assert (await connection.ask(request(at("r", size), outputs, (1, width)))).status == 200
        assert 400 in seen <= {200, 400}
    assert app.dataplane._lending.held == 0


async def test_a_client_that_goes_leaves_nothing_behind(app: App) -> None:
    width = 2_000_000
    with file(bytes(4 * width)) as path:
        async with wire(app) as connection:
            assert (await register(connection, "r", path)).status == 200
        for _ in range(8):
            async with wire(app) as connection:
                connection.send(request(at("r", 4 * width), [{"name": "y", "parameters": at("r", 4 * width)}], (1, width)))
                await connection.writer.drain()
                connection.writer.transport.abort()
        async with asyncio.timeout(20):
            while app.dataplane._lending.held or app.http.connections:
                await asyncio.sleep(0.01)


async def test_more_than_may_be_held_is_refused(repository: Path) -> None:
    limits = {"inflight_bytes": "1MiB", "max_body": "1MiB"}
    async with running(repository, allow=("shared-memory",), limits=limits) as app, wire(app) as connection:
        with file(bytes(2 << 20)) as path:
            await register(connection, "r", path)
            answer = await connection.ask(request(at("r", 2 << 20), (), (1, 1 << 19)))
            assert (answer.status, "limits.inflight_bytes" in answer.json()["error"]) == (503, True)
