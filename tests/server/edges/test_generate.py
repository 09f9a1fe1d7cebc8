"""generate and generate_stream: plain JSON in and out, server-sent events, and clients that go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from server.app import App
from server.edges.extensions.generate import ONE_ONLY, Answers, EventStream
from server.engine.engine import Engine
from server.errors import BackendFailure, InvalidRequest
from server.messages import InferRequest, InferResponse, Layout
from tests.server.models import embedding_model, identity_model, place, slow_model, two_inputs_model
from tests.server.running import Answer, Wire, http, in_thread, running, wire


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    place(root, "sums", two_inputs_model)
    place(root, "words", embedding_model)
    place(root, "text", lambda path: identity_model(path, "BYTES", 1))
    place(root, "flags", lambda path: identity_model(path, "BOOL", "W"))
    place(root, "half", lambda path: identity_model(path, "FP16", 2))
    return root


@pytest.fixture(scope="module")
def app(repository: Path) -> Iterator[App]:
    with in_thread(repository) as served:
        yield served


@pytest_asyncio.fixture
async def connection(app: App) -> AsyncIterator[Wire]:
    async with wire(app) as one:
        yield one


async def generate(connection: Wire, model: str, document: Any, path: str = "generate", **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return await connection.ask(http(f"/v2/models/{model}/{path}", body, headers=headers))


@pytest.mark.parametrize(
    ("model", "document", "said"),
    [
        ("text", {"x": "hellö"}, {"y": "hellö"}),
        ("text", {"x": ["hello"], "id": "7"}, {"id": "7", "y": "hello"}),
        ("text", {"x": [["a"], ["b"]], "id": 7}, {"id": "7", "y": ["a", "b"]}),
        ("sums", {"a": [1, 2, 3, 4], "b": [[1, 1, 1, 0.5]]}, {"total": [2.0, 3.0, 4.0, 4.5], "product": [1.0, 2.0, 3.0, 2.0]}),
        ("sums", {"a": [[1, 2, 3, 4]] * 2, "b": [[0] * 4] * 2}, {"total": [1.0, 2.0, 3.0, 4.0] * 2, "product": [0.0] * 8}),
        ("words", {"tokens": [3, 5], "temperature": 0.5, "parameters": {"note": "x"}}, {"y": [4.0] * 4}),
        ("words", {"tokens": 3}, {"y": [3.0] * 4}),
        ("flags", {"x": True}, {"y": True}),
        ("flags", {"x": [True, False]}, {"y": [True, False]}),
        ("half", {"x": [0.5, 65504]}, {"y": [0.5, 65504.0]}),
    ],
)
async def test_plain_json_in_and_out(connection: Wire, model: str, document: Any, said: Any) -> None:
    expected = {"model_name": model, "model_version": "1", **said}
    for path in (model, f"{model}/versions/1"):
        answer = await generate(connection, path, document)
        assert (answer.status, answer.headers["content-type"], answer.json()) == (200, "application/json", expected)
    streamed = await events(connection, model, document)
    assert streamed == [expected]


async def events(connection: Wire, model: str, document: Any) -> list[Any]:
    """The events of a stream, which come in chunks."""
    connection.send(http(f"/v2/models/{model}/generate_stream", json.dumps(document).encode()))
    head = (await connection.reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200")
    assert b"content-type: text/event-stream; charset=utf-8" in head
    text = b""
    while size := int(await connection.reader.readline(), 16):
        text += (await connection.reader.readexactly(size + 2))[:-2]
    await connection.reader.readline()
    assert text.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in text[:-2].split(b"\n\n")]


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "document", "status", "text"),
    [
        ("nobody", {"x": "a"}, 404, "Request for unknown model: 'nobody' is not found"),
        ("sums/versions/9", {}, 404, "Request for unknown model: 'sums' version 9 is not found"),
        ("text", b"", 400, "isn't valid JSON"),
        ("text", b"{", 400, "isn't valid JSON"),
        ("text", b"[]", 400, "must be a JSON object, got []"),
        ("text", {}, 400, "expected 1 inputs but got 0 inputs"),
        ("text", {"x": 1}, 400, "input 'x': BYTES takes strings, got 1 at index 0"),
        ("text", {"x": ["a", "b"]}, 400, "'data' holds 2 values, but shape [1, 1] takes 1"),
        ("text", {"x": []}, 400, "'data' holds 0 values"),
        ("text", {"x": None}, 400, "BYTES takes strings, got None"),
        ("text", {"x": {"a": 1}}, 400, "BYTES takes strings, got {'a': 1}"),
        ("text", {"x": "a", "id": 1.5}, 400, "'id' must be a string"),
        ("text", {"x": "a", "id": "i" * 2000}, 400, "'id' must be a string of at most 1024 characters"),
        ("text", {"x": "a", "parameters": [1]}, 400, "'parameters' must be an object, got [1]"),
        ("text", {"x": "a", "z": [1]}, 400, "parameter 'z' must be a string, a finite number or a boolean, got [1]"),
        ("text", {"x": "a", "triton_x": 1}, 400, "parameter 'triton_x' is reserved"),
        ("text", {"x": "a", "timeout": "soon"}, 400, "parameter 'timeout' must be a whole number"),
        ("sums", {"a": [1, 2, 3, 4], "b": [1, [2], 3, 4]}, 400, "mixes lists and values"),
        ("sums", {"a": [1, 2, 3, 4], "b": [[1, 2, 3, 4], [1]]}, 400, "'data' holds 5 values, but shape [2, 4] takes 8"),
        ("flags", b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "nested deeper than 100 levels"),
        ("words", {"tokens": [99]}, 400, ""),
        ("text", {"x": "a" * 300_000}, 413, "a generate request takes at most 262144 bytes (limits.json_offload)"),
    ],
)
async def test_what_is_wrong(connection: Wire, model: str, document: Any, status: int, text: str, path: str) -> None:
    answer = await generate(connection, model, document, path)
    assert (answer.status, text in answer.json()["error"]) == (status, True), answer.body
    assert (await generate(connection, "text", {"x": "a"})).json()["y"] == "a"


async def test_it_is_explained_and_counted_as_any_other(app: App, connection: Wire) -> None:
    figures = app.router.figures("text", "1")
    assert figures is not None
    before = sum(figures.batches.values()), figures.failures["invalid"]
    answer = await generate(connection, "text", {"x": "a", "explain": True})
    assert (answer.json()["rows"], answer.json()["close_reason"]) == (1, "idle")
    assert answer.json()["y"] == "a"
    await events(connection, "text", {"x": "a"})
    assert (await generate(connection, "text", {"x": 1})).status == 400
    assert (sum(figures.batches.values()), figures.failures["invalid"]) == (before[0] + 2, before[1] + 1)


async def test_the_gate(repository: Path) -> None:
    async with running(repository, host="0.0.0.0") as app, wire(app) as connection:
        assert (await generate(connection, "text", {"x": "a"})).status == 200
        assert (await generate(connection, "text", {"x": "a", "explain": True})).status == 403


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
async def test_a_client_that_goes_takes_its_request_along(tmp_path: Path, path: str) -> None:
    place(tmp_path, "slow", lambda file: slow_model(file, layers=100), yaml="batching: {max_rows: 8}\n")
    body = json.dumps({"x": [[1.0] * 256] * 8}).encode()
    async with running(tmp_path) as app:
        engine = app.router.route("slow", "").engine
        assert isinstance(engine, Engine)
        for _ in range(6):
            async with wire(app) as connection:
                connection.send(http(f"/v2/models/slow/{path}", body))
                await connection.writer.drain()
                while not app.http.connections:
                    await asyncio.sleep(0.001)
                connection.writer.transport.abort()
        async with asyncio.timeout(20):
            while app.http.connections or engine.queue_rows or engine._running:
                await asyncio.sleep(0.01)
        async with wire(app) as connection:
            answer = await connection.ask(http("/v2/models/slow/generate", body))
            assert (answer.status, len(answer.json()["y"])) == (200, 8 * 256)


class Plane:
    """A data plane whose model answers as it's told, several times; it notes what is done and cancelled."""

    def __init__(self) -> None:
        self.accounted: list[InferResponse] = []
        self.cancelled = 0

    def infer(self, request: InferRequest, on_response: Any, *, streamed: bool) -> Plane:
        self.respond = on_response
        return self

    def done(self, request: InferRequest, response: InferResponse, seconds: float) -> None:
        self.accounted.append(response)

    def cancel(self) -> None:
        self.cancelled += 1


class Edge:
    """As much of InferEdge as answers need."""

    def __init__(self) -> None:
        self.dataplane = Plane()
        self.answered = 0.0


def answered(text: str = "") -> InferResponse:
    return InferResponse("m", "1", outputs={"y": np.array([text.encode()], object)} if text else {})


def asking() -> tuple[Answers, Plane]:
    edge: Any = Edge()
    return Answers(edge, InferRequest("m", {}, Layout(()))), edge.dataplane


async def sent(stream: EventStream) -> list[bytes]:
    return [event async for event in stream._events(await stream._answers.next())]


async def test_a_model_that_gives_several_answers_has_them_as_events() -> None:
    answers, plane = asking()
    for text in ("a", "b"):
        plane.respond(answered(text), False)
    plane.respond(answered(), True)
    said = [b'data: {"model_name":"m","model_version":"1","y":"%b"}\n\n' % text for text in (b"a", b"b")]
    assert await sent(EventStream(answers, None)) == said
    answers.abandon()
    assert (len(plane.accounted), plane.cancelled) == (1, 0)


async def test_an_error_after_the_first_answer_is_an_event() -> None:
    answers, plane = asking()
    plane.respond(answered("a"), False)
    plane.respond(InferResponse("m", "1", error=BackendFailure("it broke")), True)
    assert (await sent(EventStream(answers, None)))[1:] == [b'data: {"error":"it broke"}\n\n']


async def test_generate_takes_one_answer_and_no_more() -> None:
    for responses in ([], ["a", "b"]):
        answers, plane = asking()
        for text in responses:
            plane.respond(answered(text), False)
        if not responses:
            plane.respond(answered(), True)
        with pytest.raises(InvalidRequest, match=ONE_ONLY):
            await answers.only()
        answers.abandon()
        answers.abandon()
        assert (len(plane.accounted), plane.cancelled) == (1, len(responses) // 2)
    answers, plane = asking()
    plane.respond(answered("a"), False)
    plane.respond(answered(), True)
    assert (await answers.only()).outputs["y"].tolist() == [b"a"]
