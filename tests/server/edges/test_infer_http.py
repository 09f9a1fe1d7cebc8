"""The hot path over real sockets: right answers in order, whatever the framing, and nobody pays for another's behaviour."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from server.app import App
from tests.server.models import linear_weights
from tests.server.running import Wire, chunked, http, infer_binary, infer_json, json_body, running, wire

ROWS = np.arange(32, dtype=np.float32).reshape(2, 16)


async def test_json(connection: Wire) -> None:
    answer = await connection.ask(infer_json("identity", ROWS, id="abc"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "id": "abc",
        "model_name": "identity",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 16], "data": ROWS.ravel().tolist()}],
    }


async def test_binary(connection: Wire) -> None:
    answer = await connection.ask(infer_binary("identity", ROWS))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    np.testing.assert_array_equal(answer.tensor(), ROWS.ravel())
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 16], "parameters": {"binary_data_size": 128}}]


async def test_version_in_the_url(connection: Wire) -> None:
    assert (await connection.ask(http("/v2/models/identity/versions/1/infer", json_body(ROWS)))).status == 200
    answer = await connection.ask(http("/v2/models/identity/versions/9/infer", json_body(ROWS)))
    assert (answer.status, answer.json()) == (404, {"error": "Request for unknown model: 'identity' version 9 is not found"})
    answer = await connection.ask(http("/v2/models/identity/versions/x/infer", json_body(ROWS)))
    assert answer.status == 404


async def test_200_at_once_each_get_their_own(app: App) -> None:
    weight, bias = linear_weights()
    random = np.random.default_rng(1)

    async def one(number: int) -> None:
        rows = random.standard_normal((1 + number % 3, 8), np.float32)
        async with wire(app) as connection:
            answer = await connection.ask(infer_binary("linear", rows, id=str(number)))
        assert (answer.status, answer.json()["id"]) == (200, str(number))
        np.testing.assert_allclose(answer.tensor().reshape(-1, 4), rows @ weight + bias, rtol=1e-4, atol=1e-5)

    await asyncio.gather(*(one(number) for number in range(200)))


async def test_pipelined_hot_and_cold_in_order(connection: Wire) -> None:
    requests = []
    for number in range(300):
        if number % 7 == 3:
            requests.append(http("/v2/models/identity", method="GET"))
        else:
            requests.append(infer_binary("identity", np.full((1, 16), number, np.float32)))
    connection.send(b"".join(requests))
    for number in range(300):
        answer = await connection.answer()
        assert answer.status == 200
        if number % 7 == 3:
            assert answer.json()["name"] == "identity"
        else:
            assert answer.tensor()[0] == number


async def test_every_byte_on_its_own(connection: Wire) -> None:
    for request in (infer_binary("identity", ROWS), http("/v2/health/live", method="GET"), infer_json("identity", ROWS)):
        for byte in request:
            connection.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await connection.answer()).status == 200


async def test_chunked(connection: Wire) -> None:
    body = json_body(ROWS)
    request = http("/v2/models/identity/infer", chunked([body[:10], body[10:11], body[11:]]), headers={"transfer-encoding": "chunked"})
    assert (await connection.ask(request)).status == 200


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_request(connection: Wire, encoding: str, compress: object) -> None:
    rows = np.random.default_rng(0).standard_normal((64, 16), np.float32)
    for body in (json_body(ROWS), json_body(rows)):
        packed = compress(body)  # type: ignore[operator]
        answer = await connection.ask(http("/v2/models/identity/infer", packed, headers={"content-encoding": encoding}))
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == json.loads(body)["inputs"][0]["data"] or answer.json()


async def test_compressed_answer(connection: Wire) -> None:
    rows = np.zeros((64, 16), np.float32)
    answer = await connection.ask(infer_binary("identity", rows, headers={"accept-encoding": "gzip"}))
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(answer.body)
    length = int(answer.headers["inference-header-content-length"])
    np.testing.assert_array_equal(np.frombuffer(plain, np.float32, offset=length), rows.ravel())


async def test_expect_100_continue(connection: Wire) -> None:
    request = infer_json("identity", ROWS, headers={"expect": "100-continue"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert (await connection.ask(head + b"\r\n\r\n")).status == 100
    assert (await connection.ask(body)).status == 200


async def test_expect_waits_for_its_turn(connection: Wire) -> None:
    request = infer_json("identity", ROWS, headers={"expect": "100-continue"})
    head, _, body = request.partition(b"\r\n\r\n")
    connection.send(http("/v2", method="GET") + head + b"\r\n\r\n")
    assert (await connection.answer()).json()["name"] == "tidegate"
    assert (await connection.answer()).status == 100
    assert (await connection.ask(body)).status == 200


async def test_large_json_goes_through_the_helper(connection: Wire) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 60_000), np.float32)
    answer = await connection.ask(infer_json("wide", rows))
    assert answer.status == 200
    np.testing.assert_array_equal(np.array(answer.json()["outputs"][0]["data"], np.float32), rows.ravel())


async def test_large_binary(connection: Wire) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 150_000), np.float32)
    answer = await connection.ask(infer_binary("wide", rows))
    np.testing.assert_array_equal(answer.tensor(), rows.ravel())


async def test_connection_close_is_honoured(connection: Wire) -> None:
    answer = await connection.ask(infer_json("identity", ROWS, headers={"connection": "close"}) + infer_json("identity", ROWS))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await connection.closed()


async def test_a_client_that_leaves_cancels_its_request(app: App) -> None:
    async with wire(app) as connection:
        connection.send(infer_json("identity", ROWS)[:-5])
        await until(lambda: app.edge.inflight.used > 0)
    await until(lambda: app.edge.inflight.used == 0)


async def test_a_client_that_does_not_read_is_held_alone(app: App) -> None:
    rows = np.zeros((16, 60_000), np.float32)
    async with wire(app) as deaf, wire(app) as other:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(24):
            deaf.send(infer_binary("wide", rows))
        for _ in range(20):
            assert (await other.ask(infer_binary("identity", ROWS))).status == 200
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(24):
            assert (await deaf.answer()).status == 200


async def test_a_body_that_trickles_is_timed_out(repository: Path) -> None:
    async with running(repository, limits={"body_timeout": "200ms"}) as app, wire(app) as slow, wire(app) as other:
        slow.send(infer_json("identity", ROWS)[:-5])
        answer = await slow.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert "limits.body_timeout" in answer.json()["error"]
        assert await slow.closed()
        assert (await other.ask(infer_json("identity", ROWS))).status == 200


async def test_headers_that_trickle_are_timed_out(repository: Path) -> None:
    async with running(repository, limits={"body_timeout": "200ms"}) as app, wire(app) as slow:
        slow.send(b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: t")
        assert (await slow.answer()).status == 408
        assert await slow.closed()


async def test_an_idle_connection_is_closed(repository: Path) -> None:
    async with running(repository, keep_alive="200ms") as app, wire(app) as idle:
        assert (await idle.ask(infer_json("identity", ROWS))).status == 200
        assert await idle.closed()


async def test_endless_headers_are_refused(connection: Wire) -> None:
    connection.send(b"POST /v2/models/identity/infer HTTP/1.1\r\n" + b"x-filler: " + b"a" * 200_000)
    assert (await connection.answer()).status == 431
    assert await connection.closed()


def padded(size: int, path: str, method: str, body: bytes = b"") -> bytes:
    """A request whose head takes `size` bytes."""
    head, blank, rest = http(path, body, method, {"x-filler": ""}).partition(b"\r\n\r\n")
    return head.replace(b"x-filler: ", b"x-filler: " + b"a" * (size - len(head) - len(blank))) + blank + rest


@pytest.mark.parametrize("cut", [0, 1, 700, 996, 997, 998, 999, 1000])
async def test_heads_are_bounded_however_they_arrive(repository: Path, cut: int) -> None:
    """In one read or cut anywhere; with bodies over the limit that hold what ends a head. A break that is cut may be over it."""
    body = json_body(ROWS) + b"\r\n\r\n" + b" " * 3000
    async with running(repository, limits={"max_header_bytes": 1000}) as app:
        for size in (999, 1000, 1001, 1004, 5000):
            for method, path in (("POST", "/v2/models/identity/infer"), ("GET", "/v2/models/identity")):
                request = padded(size, path, method, body)
                async with wire(app) as connection:
                    for _ in range(2):  # a head that comes again is known
                        connection.send(request[:cut])
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                        connection.send(request[cut:])
                        answer = await connection.answer()
                        if size <= 1000 or (answer.status == 200 and size <= 1004 and cut > 996):
                            assert answer.status == 200, (size, method, answer)
                        else:
                            assert (answer.status, answer.headers["connection"]) == (431, "close"), (size, method, answer)
                            assert "request headers take at most 1000 bytes" in answer.json()["error"]
                            assert await connection.closed()
                            break


async def test_a_known_head_is_still_bounded_by_its_first(repository: Path) -> None:
    """A small body behind a head of exactly the limit, again and again."""
    request = padded(1000, "/v2/models/identity/infer", "POST", json_body(ROWS))
    async with running(repository, limits={"max_header_bytes": 1000}) as app, wire(app) as connection:
        for _ in range(3):
            assert (await connection.ask(request)).status == 200
        over = padded(1001, "/v2/models/identity/infer", "POST", json_body(ROWS))
        assert (await connection.ask(over)).status == 431


async def test_garbage_is_refused_after_what_is_owed(connection: Wire) -> None:
    connection.send(infer_json("identity", ROWS) + b"\x00\x01garbage\r\n\r\n")
    assert (await connection.answer()).status == 200
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert "invalid HTTP request" in answer.json()["error"]


async def until(condition: object, seconds: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline, "waited too long"
        await asyncio.sleep(0.005)


async def test_a_head_cut_behind_a_large_body_is_no_large_head(connection: Wire) -> None:
    both = infer_binary("wide", np.zeros((1, 40_000), np.float32)) + infer_json("identity", ROWS)
    cut = both.rindex(b"host: test")
    connection.send(both[:cut])
    assert (await connection.answer()).status == 200
    assert (await connection.ask(both[cut:])).status == 200
