"""The engine over real lanes and a real model: batched equals single, errors reach their own, the queue is bounded, the drain waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from threading import Event
from typing import ClassVar

import numpy as np
import pytest
import pytest_asyncio

from server.backends.base import VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.engine import Engine
from server.engine.request_queue import QueueLimits
from server.errors import BackendFailure, Draining, InvalidRequest, Overloaded
from server.lanes.thread import ThreadLane
from server.messages import InferRequest, InferResponse, Layout, ModelKey, RequestedOutput
from server.metrics.recorder import Recorder
from server.tensors import Tensor, TensorSpec, dtype_of
from tests.server.models import linear_model, linear_weights

KEY = ModelKey("linear", "1", "fp32")


class Gated:
    """A backend at the seam that runs when the test lets it: y = x, or an error."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, -1)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, -1)),)
    version: ClassVar[str] = "gated"

    def __init__(self) -> None:
        self.go = Event()
        self.runs: list[tuple[int, ...]] = []
        self.output: Tensor | Exception | None = None

    @classmethod
    def open(cls, spec: VariantSpec) -> Gated:
        return cls()

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        assert self.go.wait(10)
        self.runs.append(inputs["x"].shape)
        if isinstance(self.output, Exception):
            raise self.output
        return {"y": inputs["x"].copy() if self.output is None else self.output}

    def close(self) -> None:
        self.go.set()


def request(array: Tensor, **more: object) -> InferRequest:
    layout = Layout((("x", dtype_of(array).name, array.shape),))
    return InferRequest(KEY.name, {"x": array}, layout, **more)  # type: ignore[arg-type]


async def ask(engine: Engine, asked: InferRequest) -> InferResponse:
    future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
    engine.submit(asked, lambda response, final: future.set_result(response))
    return await future


@pytest_asyncio.fixture
async def linear(tmp_path: Path) -> AsyncIterator[Engine]:
    path = linear_model(tmp_path / "model.onnx")
    backends = [OnnxRuntimeBackend.open(VariantSpec("linear", "1", "fp32", "onnxruntime", path, threads=1)) for _ in range(2)]
    lanes = [ThreadLane(f"linear#{number}", backend, asyncio.get_running_loop()) for number, backend in enumerate(backends)]
    engine = Engine(KEY, lanes, Batcher(BatchPolicy(max_rows=16, lanes=2)), Recorder().figures(KEY), terms=Terms(), batched=True)
    yield engine
    await engine.drain()
    engine.close()


@pytest_asyncio.fixture
async def gated() -> AsyncIterator[tuple[Engine, Gated]]:
    backend = Gated()
    lane = ThreadLane("gated#0", backend, asyncio.get_running_loop())
    engine = Engine(KEY, [lane], Batcher(BatchPolicy(max_rows=8)), Recorder().figures(KEY), terms=Terms(QueueLimits(rows=12)), batched=True)
    yield engine, backend
    backend.go.set()
    await engine.drain()
    engine.close()


async def test_batched_equals_single(linear: Engine) -> None:
    weight, bias = linear_weights()
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((1 + number % 4, 8), np.float32) for number in range(200)]
    answers = await asyncio.gather(*(ask(linear, request(array)) for array in arrays))
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_allclose(answer.outputs["y"], array @ weight + bias, rtol=1e-4, atol=1e-5)
    assert max(answer.batch.requests for answer in answers if answer.batch is not None) > 1


async def test_shapes_never_mix(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    backend.go.set()
    arrays = [np.full((1, 2 + number % 3), number, np.float32) for number in range(9)]
    answers = await asyncio.gather(*(ask(engine, request(array)) for array in arrays))
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], array)
    assert sorted(backend.runs) == [(3, 2), (3, 3), (3, 4)]


async def test_only_the_outputs_asked_for(linear: Engine) -> None:
    answer = await ask(linear, request(np.zeros((1, 8), np.float32), outputs=(RequestedOutput("y"),)))
    assert list(answer.outputs) == ["y"]
    with pytest.raises(InvalidRequest, match="unexpected inference output 'z'"):
        await ask(linear, request(np.zeros((1, 8), np.float32), outputs=(RequestedOutput("z"),)))


async def test_the_queue_is_bounded_in_rows(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    running = [asyncio.ensure_future(ask(engine, request(np.zeros((8, 2), np.float32))))]
    while engine.queue_rows or not running[0]:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(ask(engine, request(np.zeros((4, 2), np.float32)))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"queue\.max_rows"):
        await ask(engine, request(np.zeros((1, 2), np.float32)))
    backend.go.set()
    assert [answer.error for answer in await asyncio.gather(*running, *waiting)] == [None] * 4


async def test_a_cancelled_request_never_runs(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    answers: list[InferResponse] = []
    first = asyncio.ensure_future(ask(engine, request(np.zeros((8, 2), np.float32))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ticket = engine.submit(request(np.ones((3, 2), np.float32)), lambda response, final: answers.append(response))
    ticket.cancel()
    assert engine.queue_rows == 0
    backend.go.set()
    assert (await first).error is None
    await engine.drain()
    assert (backend.runs, answers) == ([(8, 2)], [])


async def test_a_failed_run_fails_its_own_requests_only(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    backend.go.set()
    backend.output = BackendFailure("broken")
    answers = await asyncio.gather(*(ask(engine, request(np.zeros((1, 2), np.float32))) for _ in range(3)))
    assert {str(answer.error) for answer in answers} == {"broken"}
    backend.output = None
    assert (await ask(engine, request(np.zeros((1, 2), np.float32)))).error is None


async def test_outputs_that_are_not_per_row_are_a_failure(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    backend.go.set()
    backend.output = np.zeros((1, 2), np.float32)
    answers = await asyncio.gather(*(ask(engine, request(np.zeros((1, 2), np.float32))) for _ in range(2)))
    assert {type(answer.error) for answer in answers} == {BackendFailure}
    assert "expected 2 rows" in str(answers[0].error)


async def test_drain_answers_what_waits_and_refuses_the_rest(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    asked = [asyncio.ensure_future(ask(engine, request(np.zeros((2, 2), np.float32)))) for _ in range(5)]
    await asyncio.sleep(0)
    drained = asyncio.ensure_future(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await ask(engine, request(np.zeros((1, 2), np.float32)))
    backend.go.set()
    await drained
    assert [(await one).error for one in asked] == [None] * 5


async def test_an_edge_that_fails_on_its_answer_harms_no_other(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    backend.go.set()
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

    def broken(response: InferResponse, final: bool) -> None:
        raise RuntimeError("edge")

    engine.submit(request(np.zeros((1, 2), np.float32)), broken)
    assert (await ask(engine, request(np.zeros((1, 2), np.float32)))).error is None
    assert reported == ["an edge failed on an answer"]
