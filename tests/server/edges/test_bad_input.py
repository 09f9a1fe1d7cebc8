"""Bad input over real sockets: the right status and text, nobody else harmed, and the next good request succeeds."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from server.app import App
from tests.server.running import Wire, chunked, http, infer_binary, infer_json, running, wire

ROWS = np.ones((1, 16), np.float32)
URL = "/v2/models/identity/infer"
GOOD = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """One server for all cases: whatever one does must not hurt the next."""
    from tests.server.models import identity_model, linear_model

    root = tmp_path_factory.mktemp("bad-input")
    identity_model(root / "identity" / "1" / "model.onnx")
    identity_model(root / "whole" / "1" / "model.onnx", datatype="INT32")
    linear_model(root / "linear" / "1" / "model.onnx")
    (root / "identity" / "model.yaml").write_text("batching: {max_rows: 8}\ninputs: {x: {max_shape: [-1, 16]}}\n")
    async with running(root, limits={"max_body": "1MiB", "max_json_body": "256KiB", "json_offload": "64KiB"}) as app:
        yield app


def document(**changes: Any) -> bytes:
    return json.dumps({"inputs": [GOOD | changes]}).encode()


def spliced(head: dict[str, Any], blob: bytes, claimed: str | None = None) -> bytes:
    text = json.dumps(head).encode()
    return http(URL, text + blob, headers={"inference-header-content-length": claimed or str(len(text))})


def binary(size: Any, shape: Any = (1, 16), datatype: str = "FP32") -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}]}


DEEP = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":' + b"[" * 5000 + b"]" * 5000 + b"}]}"

CASES: dict[str, tuple[bytes, int, str]] = {
    "unknown model": (infer_json("nobody", ROWS), 404, "Request for unknown model: 'nobody' is not found"),
    "unknown version": (http("/v2/models/identity/versions/7/infer", document()), 404, "version 7 is not found"),
    "unknown path": (http("/v2/nothing", method="GET"), 404, "Not Found"),
    "wrong verb": (http(URL, method="GET"), 405, "Method Not Allowed"),
    "unknown input": (http(URL, document(name="z")), 400, "unexpected inference input 'z'"),
    "no inputs": (http(URL, b'{"inputs":[]}'), 400, "expected 1 inputs but got 0 inputs"),
    "inputs missing": (http(URL, b"{}"), 400, "inputs"),
    "wrong shape": (http(URL, document(shape=[1, 15], data=[1.0] * 15)), 400, "Expected [-1,16], got [1,15]"),
    "wrong rank": (http(URL, document(shape=[16])), 400, "unexpected shape for input 'x'"),
    "wrong datatype": (http(URL, document(datatype="INT32", data=[1] * 16)), 400, "but model 'identity' expects 'FP32'"),
    "unknown datatype": (http(URL, document(datatype="FP31")), 400, "FP31"),
    "too many rows": (http(URL, document(shape=[9, 16], data=[1.0] * 144)), 400, "batch-size must be <= 8"),
    "no rows": (http(URL, document(shape=[0, 16], data=[])), 400, "at least one row"),
    "negative shape": (http(URL, document(shape=[-1, 16])), 400, "shape"),
    "shape of text": (http(URL, document(shape=["1", 16])), 400, "shape"),
    "shape of halves": (http(URL, document(shape=[1.5, 16])), 400, "shape"),
    "data too short": (http(URL, document(data=[1.0] * 15)), 400, "x"),
    "data too long": (http(URL, document(data=[1.0] * 17)), 400, "x"),
    "data of text": (http(URL, document(data=["1"] * 16)), 400, "x"),
    "data with null": (http(URL, document(data=[None] * 16)), 400, "x"),
    "no data": (http(URL, json.dumps({"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]}).encode()), 400, "x"),
    "overflowing product": (http(URL, document(shape=[2**32, 2**32])), 400, ""),
    "huge shape": (http(URL, document(shape=[1, 2**40])), 400, ""),
    "huge binary shape": (spliced(binary(64, (2**32, 2**32)), b"\0" * 64), 400, ""),
    "bad JSON": (http(URL, b'{"inputs": ['), 400, "JSON"),
    "empty body": (http(URL, b""), 400, ""),
    "not an object": (http(URL, b"[1,2]"), 400, ""),
    "bad UTF-8": (http(URL, b'{"id":"\xff\xfe","inputs":[]}'), 400, ""),
    "NaN for an integer": (
        http("/v2/models/whole/infer", b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"INT32","data":[NaN' + b",1" * 15 + b"]}]}"),
        400,
        "x",
    ),
    "deep nesting": (http(URL, DEEP), 400, ""),
    "duplicate output": (
        http(URL, json.dumps({"inputs": [GOOD], "outputs": [{"name": "y"}, {"name": "y"}]}).encode()),
        400,
        "output 'y' already exists in request",
    ),
    "unknown output": (http(URL, json.dumps({"inputs": [GOOD], "outputs": [{"name": "q"}]}).encode()), 400, "output 'q'"),
    "reserved parameter": (http(URL, json.dumps({"inputs": [GOOD], "parameters": {"triton_x": 1}}).encode()), 400, "triton_x"),
    "timeout of text": (http(URL, json.dumps({"inputs": [GOOD], "parameters": {"timeout": "soon"}}).encode()), 400, "timeout"),
    "head length no number": (spliced(binary(64), b"\0" * 64, "abc"), 400, "inference header size should be in range"),
    "head length negative": (spliced(binary(64), b"\0" * 64, "-1"), 400, "inference header size should be in range"),
    "head length too large": (spliced(binary(64), b"\0" * 64, "100000"), 400, "inference header size should be in range"),
    "head length endless": (spliced(binary(64), b"\0" * 64, "9" * 400), 400, "inference header size should be in range"),
    "head length cuts the JSON": (spliced(binary(64), b"\0" * 64, "20"), 400, ""),
    "blob too short": (spliced(binary(64), b"\0" * 60), 400, "x"),
    "blob too long": (spliced(binary(64), b"\0" * 68), 400, "unexpected additional input data for model 'identity'"),
    "blob of another size": (spliced(binary(60), b"\0" * 60), 400, "x"),
    "blob size of text": (spliced(binary("64"), b"\0" * 64), 400, ""),
    "unknown encoding": (http(URL, document(), headers={"content-encoding": "br"}), 501, "Content-Encoding"),
    "corrupt gzip": (http(URL, b"\x1f\x8bnonsense", headers={"content-encoding": "gzip"}), 400, ""),
    "truncated gzip": (http(URL, gzip.compress(document())[:-9], headers={"content-encoding": "gzip"}), 400, ""),
    "gzip bomb": (http(URL, gzip.compress(b"[" * (200 * 2**20), 9), headers={"content-encoding": "gzip"}), 413, "1048576"),
    "small deflate bomb": (http(URL, zlib.compress(b" " * (3 * 2**20), 9), headers={"content-encoding": "deflate"}), 413, "1048576"),
    "body too large": (http(URL, b" " * (1 + 2**20)), 413, "limits.max_body"),
    "body too large in chunks": (
        http(URL, chunked([b" " * 2**18] * 5), headers={"transfer-encoding": "chunked"}),
        413,
        "limits.max_body",
    ),
    "JSON too large": (http(URL, b" " * (300 * 2**10)), 413, "binary tensor extension"),
    "JSON too large in chunks": (
        http(URL, chunked([b" " * 2**18, b" " * 2**16]), headers={"transfer-encoding": "chunked"}),
        413,
        "binary tensor extension",
    ),
    "bad JSON in the helper": (http(URL, b"{" + b" " * (100 * 2**10)), 400, "JSON"),
    "binary output of a refused": (infer_binary("identity", np.ones((1, 15), np.float32)), 400, "Expected [-1,16], got [1,15]"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.asyncio(loop_scope="module")
async def test_refused_with_reason_and_the_next_succeeds(shared: App, case: str) -> None:
    request, status, text = CASES[case]
    async with wire(shared) as connection:
        answer = await connection.ask(request)
        assert answer.status == status, answer.body
        assert answer.headers["content-type"] == "application/json"
        assert text in answer.json()["error"]
        assert answer.json()["error"]
        again = await connection.ask(infer_json("identity", ROWS))
        assert again.status == 200
    assert shared.edge.inflight.used == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_nan_and_infinity_travel_as_literals(shared: App) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[NaN,Infinity,-Infinity' + b",1.5" * 13 + b"]}]}"
    async with wire(shared) as connection:
        answer = await connection.ask(http(URL, body))
    assert answer.status == 200
    data = answer.json()["outputs"][0]["data"]
    assert (np.isnan(data[0]), data[1:4]) == (True, [np.inf, -np.inf, 1.5])


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: t\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/models/identity/infer HTTP/9.9\r\nhost: t\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_broken_framing_ends_its_connection_only(shared: App, request_bytes: bytes) -> None:
    async with wire(shared) as broken, wire(shared) as other:
        answer = await broken.ask(request_bytes)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await broken.closed()
        assert (await other.ask(infer_json("identity", ROWS))).status == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_a_refused_upload_does_not_have_to_be_sent(shared: App) -> None:
    async with wire(shared) as connection:
        answer = await connection.ask(http(URL, headers={"content-length": str(2**30), "expect": "100-continue"}))
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    from tests.server.models import identity_model

    identity_model(tmp_path / "identity" / "1" / "model.onnx")
    limits = {"inflight_bytes": "256KiB", "max_body": "200KiB", "body_timeout": "3s"}
    async with running(tmp_path, limits=limits) as app, wire(app) as first:
        first.send(http(URL, headers={"content-length": "190000"}) + b" " * 150_000)
        async with wire(app) as second:
            refused = await second.ask(http(URL, headers={"content-length": "190000"}) + b" " * 150_000)
        assert refused.status == 503
        assert "limits.inflight_bytes" in refused.json()["error"]
        assert "retry-after" in refused.headers
        async with wire(app) as later:
            assert (await later.ask(infer_json("identity", ROWS))).status == 200


async def test_a_full_queue_says_which_limit(tmp_path: Path) -> None:
    from tests.server.models import identity_model

    identity_model(tmp_path / "identity" / "1" / "model.onnx")
    (tmp_path / "identity" / "model.yaml").write_text("queue: {max_rows: 4}\n")
    async with running(tmp_path) as app, wire(app) as connection:
        connection.send(b"".join(infer_json("identity", ROWS) for _ in range(12)))
        answers = [await connection.answer() for _ in range(12)]
        assert {answer.status for answer in answers} == {200, 503}
        refused = next(answer for answer in answers if answer.status == 503)
        assert "queue.max_rows" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1


async def test_nobody_reads_the_answer(connection: Wire) -> None:
    connection.send(infer_json("identity", ROWS))
    connection.writer.transport.abort()
