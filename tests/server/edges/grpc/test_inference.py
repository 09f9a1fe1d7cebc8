"""A request without a transport: room among the bytes in flight, deadlines, going away; and streams that owe too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2

from server.app import App
from server.edges.grpc.inference import GrpcEdge, Inference
from server.edges.grpc.stream import InferStream
from server.errors import Draining, Overloaded, TidegateError, Unavailable
from tests.server.edges.grpc.wire import request
from tests.server.models import identity_model
from tests.server.running import running

BODY = request("m", {"x": np.ones((1, 16), np.float32)}, id="7")


class Asked:
    """A call without a transport."""

    certificate: str | None = None

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline

    def metadata(self, name: str) -> str | None:
        return None


class Answers:
    """What came, and a way to wait for the last."""

    def __init__(self) -> None:
        self.all: list[bytes | TidegateError] = []
        self.last = asyncio.get_running_loop().create_future()

    def __call__(self, answer: bytes | TidegateError, final: bool) -> None:
        self.all.append(answer)
        if final:
            self.last.set_result(answer)


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    identity_model(tmp_path / "m" / "1" / "model.onnx")
    limits = {"max_body": 4096, "inflight_bytes": 4096, "body_timeout": 0.6, "pipeline_depth": 4}
    async with running(tmp_path, limits=limits) as one:
        yield one


def begun(app: App, body: bytes = BODY, deadline: float | None = None) -> tuple[Inference, Answers]:
    answers = Answers()
    inference = Inference(GrpcEdge(app.edge), Asked(deadline), answers)
    inference.begin(body)
    return inference, answers


async def test_a_request_waits_for_room(app: App) -> None:
    app.edge.inflight.take(4096)
    _, answers = begun(app)
    await asyncio.sleep(0)
    assert answers.all == []
    app.edge.inflight.give(4096)
    assert isinstance(await answers.last, bytes)
    assert app.edge.inflight.used == 0


async def test_a_request_without_room_is_refused(app: App) -> None:
    app.edge.inflight.take(4096)
    _, answers = begun(app)
    refused = await asyncio.wait_for(answers.last, 5)
    assert isinstance(refused, Overloaded)
    assert refused.limit == "limits.inflight_bytes"
    assert app.edge.inflight.used == 4096
    app.edge.inflight.give(4096)
    _, answers = begun(app)
    assert isinstance(await answers.last, bytes)


async def test_one_that_went_while_it_waited_is_not_run(app: App) -> None:
    app.edge.inflight.take(4096)
    inference, answers = begun(app)
    inference.abandon()
    app.edge.inflight.give(4096)
    await asyncio.sleep(0.01)
    assert answers.all == []
    assert app.edge.inflight.used == 0


async def test_one_that_went_before_it_began_is_not_run(app: App) -> None:
    answers = Answers()
    inference = Inference(GrpcEdge(app.edge), Asked(), answers)
    inference.abandon()
    inference.begin(BODY)
    await asyncio.sleep(0.01)
    assert answers.all == []
    assert app.edge.inflight.used == 0


async def test_one_that_went_from_the_queue_is_not_run(app: App) -> None:
    inference, answers = begun(app)
    engine = app.router.entry("m", "").engine
    assert engine is not None
    assert engine.queue_rows == 1
    inference.abandon()
    assert engine.queue_rows == 0
    await asyncio.sleep(0.01)
    assert answers.all == []


@pytest.mark.parametrize(
    ("timeout", "deadline", "refused"), [(0, -1.0, True), (10**9, -1.0, True), (1, 100.0, True), (10**9, 100.0, False)]
)
async def test_the_nearer_of_deadline_and_timeout_counts(app: App, timeout: int, deadline: float, refused: bool) -> None:
    message = service_pb2.ModelInferRequest.FromString(BODY)
    if timeout:
        message.parameters["timeout"].int64_param = timeout
    _, answers = begun(app, message.SerializeToString(), monotonic() + deadline)
    answer = await answers.last
    assert isinstance(answer, TidegateError) == refused
    if refused:
        assert "Request timeout expired" in str(answer)


class Pipe:
    """A stream's transport by hand: `sent` are requests that the client sends, `read_bytes` says how fast it reads."""

    def __init__(self, sent: list[bytes], reading: asyncio.Event, ends: bool = True) -> None:
        self.sent = sent
        self.reading = reading
        self.ends = ends
        self.taken = 0
        self.answers: list[bytes] = []

    async def read(self) -> bytes | None:
        if self.taken == len(self.sent):
            if not self.ends:
                await asyncio.Event().wait()
            return None
        self.taken += 1
        return self.sent[self.taken - 1]

    async def write(self, message: bytes) -> None:
        await self.reading.wait()
        self.answers.append(message)


async def test_a_stream_reads_no_more_than_it_may_owe(app: App) -> None:
    reading = asyncio.Event()
    pipe = Pipe([BODY] * 20, reading)
    running_stream = asyncio.ensure_future(InferStream(GrpcEdge(app.edge), Asked(), pipe, asyncio.Event()).run())
    await asyncio.sleep(0.05)
    assert pipe.taken == 4  # limits.pipeline_depth
    reading.set()
    await running_stream
    assert (pipe.taken, len(pipe.answers)) == (20, 20)
    assert app.edge.inflight.used == 0


async def test_a_client_that_does_not_read_is_cut_off(app: App) -> None:
    pipe = Pipe([BODY] * 20, asyncio.Event())
    with pytest.raises(Unavailable, match=r"hasn't read its answers for 0\.6 s \(limits\.body_timeout\)"):
        await InferStream(GrpcEdge(app.edge), Asked(), pipe, asyncio.Event()).run()
    assert app.edge.inflight.used == 0


async def test_a_stream_ends_once_the_server_drains(app: App) -> None:
    reading, draining = asyncio.Event(), asyncio.Event()
    reading.set()
    pipe = Pipe([BODY] * 3, reading, ends=False)
    running_stream = asyncio.ensure_future(InferStream(GrpcEdge(app.edge), Asked(), pipe, draining).run())
    while len(pipe.answers) < 3:
        await asyncio.sleep(0)
    draining.set()
    with pytest.raises(Draining):
        await asyncio.wait_for(running_stream, 5)


async def test_an_answer_that_was_written_by_the_end_of_a_stream_is_not_lost(app: App) -> None:
    reading = asyncio.Event()
    reading.set()
    pipe = Pipe([BODY, b"no message", BODY], reading)
    await InferStream(GrpcEdge(app.edge), Asked(), pipe, asyncio.Event()).run()
    said = [service_pb2.ModelStreamInferResponse.FromString(answer) for answer in pipe.answers]
    assert [bool(answer.error_message) for answer in said] == [False, True, False]
    assert [answer.infer_response.id for answer in said] == ["7", "", "7"]
