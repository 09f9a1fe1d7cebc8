"""Large bodies are received in place, on both kinds of loop: the right bytes, whatever the cuts, and a connection that goes on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.app import App
from server.edges.body import ALIGNMENT
from server.edges.infer_edge import PIECE
from server.messages import InferRequest, OnResponse
from tests.server.edges.test_infer_http import until
from tests.server.running import Wire, http, infer_binary, infer_json, running, wire

SMALL = np.arange(16, dtype=np.float32).reshape(1, 16)
LARGE = np.random.default_rng(0).standard_normal((3, 500_000), np.float32)  # 6 MB: many pieces, and past what comes without rests

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on one kind of loop."""

    def inside(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(test())

    return inside


async def send_cut(connection: Wire, data: bytes, cuts: list[int]) -> None:
    """Send `data` in pieces that end at `cuts`, each drained before the next."""
    points = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for start, stop in pairwise(points):
        connection.send(data[start:stop])
        await connection.writer.drain()
        await asyncio.sleep(0)


def test_pipelined_behind_each_other(repository: Path, run: Run) -> None:
    async def test() -> None:
        async with running(repository) as app, wire(app) as connection:
            connection.send(
                infer_binary("wide", LARGE) + infer_json("identity", SMALL) + http("/v2", method="GET") + infer_binary("wide", -LARGE)
            )
            np.testing.assert_array_equal((await connection.answer()).tensor(), LARGE.ravel())
            assert (await connection.answer()).json()["outputs"][0]["data"] == SMALL.ravel().tolist()
            assert (await connection.answer()).json()["name"] == "tidegate"
            np.testing.assert_array_equal((await connection.answer()).tensor(), -LARGE.ravel())
        assert app.edge.inflight.used == 0

    run(test)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 1 << 30), max_size=6),
    values=st.integers(20_000, 300_000),
    id=st.text("abc", max_size=9),
    kind=st.sampled_from(sorted(LOOPS)),
)
def test_cut_anywhere(repository: Path, cuts: list[int], values: int, id: str, kind: str) -> None:
    rows = np.arange(values, dtype=np.float32)[None]

    async def test() -> None:
        async with running(repository) as app, wire(app) as connection:
            await send_cut(connection, infer_binary("wide", rows, id=id) + infer_binary("identity", SMALL, id="after"), cuts)
            answer = await connection.answer()
            np.testing.assert_array_equal(answer.tensor(), rows.ravel())
            assert answer.json().get("id", "") == id
            assert (await connection.answer()).json()["id"] == "after"

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(test())


def test_the_tensor_is_aligned_and_not_copied(repository: Path, run: Run) -> None:
    seen: list[InferRequest] = []

    def watched(app: App) -> None:
        infer = app.dataplane.infer

        def watch(request: InferRequest, on_response: OnResponse) -> Any:
            seen.append(request)
            return infer(request, on_response)

        app.dataplane.infer = watch  # type: ignore[method-assign,assignment]

    async def test() -> None:
        async with running(repository) as app:
            watched(app)
            for id in ("", "a", "ab", "abc"):
                async with wire(app) as connection:
                    assert (await connection.ask(infer_binary("wide", LARGE, id=id))).status == 200

    run(test)
    for request in seen:
        array = request.inputs["x"]
        assert array.ctypes.data % ALIGNMENT == 0
        assert not array.flags.owndata
    assert len(seen) == 4


def test_large_json_in_place(repository: Path, run: Run) -> None:
    rows = np.random.default_rng(1).standard_normal((2, 90_000), np.float32)

    async def test() -> None:
        async with running(repository) as app, wire(app) as connection:
            answer = await connection.ask(infer_json("wide", rows) + infer_json("identity", SMALL))
            np.testing.assert_array_equal(np.array(answer.json()["outputs"][0]["data"], np.float32), rows.ravel())
            assert (await connection.answer()).status == 200
        assert app.edge.inflight.used == 0

    run(test)


def test_a_client_that_leaves_in_the_middle(repository: Path, run: Run) -> None:
    async def test() -> None:
        async with running(repository) as app:
            for abort in (True, False):
                async with wire(app) as connection:
                    connection.send(infer_binary("wide", LARGE)[: 5 * PIECE])
                    await until(lambda: app.edge.inflight.used > 2 * PIECE)
                    if abort:
                        connection.writer.transport.abort()
                await until(lambda: app.edge.inflight.used == 0 and app.http.connections == 0)

    run(test)


def test_a_body_that_stops_is_timed_out(repository: Path, run: Run) -> None:
    async def test() -> None:
        async with running(repository, limits={"body_timeout": "200ms"}) as app, wire(app) as slow, wire(app) as other:
            slow.send(infer_binary("wide", LARGE)[: 2 * PIECE])
            answer = await slow.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            slow.send(bytes(3 * PIECE))  # what still comes is dropped
            assert await slow.closed()
            assert (await other.ask(infer_json("identity", SMALL))).status == 200
            assert app.edge.inflight.used == 0

    run(test)


def test_a_drain_waits_for_a_large_body(repository: Path, run: Run) -> None:
    async def test() -> None:
        request = infer_binary("wide", LARGE)
        async with running(repository) as app, wire(app) as connection:
            connection.send(request[: 3 * PIECE])
            await until(lambda: app.edge.inflight.used > PIECE)
            stopping = asyncio.ensure_future(app.http.drain(10.0))
            await asyncio.sleep(0)
            connection.send(request[3 * PIECE :])
            answer = await connection.answer()
            assert answer.headers["connection"] == "close"
            np.testing.assert_array_equal(answer.tensor(), LARGE.ravel())
            assert await connection.closed()
            connection.close()
            assert await stopping

    run(test)


def test_small_requests_go_on_beside_it(repository: Path, run: Run) -> None:
    """While others are served, a large body rests between pieces, and still arrives."""

    async def test() -> None:
        async with running(repository) as app, wire(app) as large, wire(app) as small:
            large.send(infer_binary("wide", LARGE))
            arrived = asyncio.ensure_future(large.answer())
            asked = 0
            while not arrived.done():
                assert (await small.ask(infer_binary("identity", SMALL))).status == 200
                asked += 1
            assert asked > LARGE.nbytes // PIECE - 4
            np.testing.assert_array_equal((await arrived).tensor(), LARGE.ravel())

    run(test)


def test_tls_comes_through_the_parser(repository: Path, tmp_path: Path, run: Run) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = {"certfile": certificate, "keyfile": key}

    async def test() -> None:
        async with running(repository, tls=tls) as app, wire(app, ssl=context, server_hostname="127.0.0.1") as connection:
            answer = await connection.ask(infer_binary("wide", LARGE))
            np.testing.assert_array_equal(answer.tensor(), LARGE.ravel())

    run(test)
