"""One suite over every lane kind: right answers, errors as results, order, memory that is given back, and a clean end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio

from server.backends.base import Backend, VariantSpec
from server.backends.registry import backend_named
from server.errors import BackendFailure, InvalidRequest
from server.lanes.base import Lane, RunResult
from server.lanes.buffers import Buffers
from server.lanes.inline import INLINE_LIMIT, InlineLane
from server.lanes.process.lane import ProcessLane
from server.lanes.process.messages import Job
from server.lanes.thread import ThreadLane
from server.tensors import Tensor, TensorSpec
from tests.server.lanes.scripted import MUTE, NAP, ODD, PID, REFUSED, SLEEPS, Scripted, spec_of
from tests.server.models import embedding_model, identity_model, linear_model, linear_weights, two_inputs_model

Open: TypeAlias = Callable[[VariantSpec], Awaitable[Lane]]
NAME = "m/1/fp32#0"


def in_process(kind: Callable[[str, Backend, asyncio.AbstractEventLoop], Lane]) -> Callable[[VariantSpec, asyncio.AbstractEventLoop], Lane]:
    return lambda spec, loop: kind(NAME, backend_named(spec.backend).open(spec), loop)


KINDS: Mapping[str, Callable[[VariantSpec, asyncio.AbstractEventLoop], Lane]] = {
    "inline": in_process(InlineLane),
    "thread": in_process(ThreadLane),
    "process": lambda spec, loop: ProcessLane.open(NAME, Job(spec, (1,), trust_batch_axis=True), loop),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def opened(kind: str, scripted: str) -> AsyncIterator[Open]:
    """Opens lanes of the kind, and closes them at the end."""
    loop = asyncio.get_running_loop()
    made: list[Lane] = []

    async def build(spec: VariantSpec) -> Lane:
        made.append(await loop.run_in_executor(None, KINDS[kind], spec, loop))
        return made[-1]

    yield build
    for lane in made:
        await loop.run_in_executor(None, lane.close)


def started(lane: Lane, inputs: Mapping[str, Tensor], rows: int) -> asyncio.Future[RunResult]:
    future: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
    lane.submit(inputs, rows, future.set_result)
    return future


async def run(lane: Lane, inputs: Mapping[str, Tensor], rows: int) -> RunResult:
    return await started(lane, inputs, rows)


def pairs(first: float, second: float = 0.0, rows: int = 1) -> dict[str, Tensor]:
    """The scripted backend's input."""
    return {"x": np.tile(np.array([first, second], np.float32), (rows, 1))}


def onnx(path: Path) -> VariantSpec:
    return VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1)


async def test_runs_a_real_model(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(linear_model(tmp_path / "model.onnx")))
    weight, bias = linear_weights()
    for rows in (1, 5, 2, 0):
        x = lane.buffer("x", (rows, 8))
        x[:] = np.random.default_rng(rows).standard_normal((rows, 8), np.float32)
        result = await run(lane, {"x": x}, rows)
        assert result.error is None
        np.testing.assert_allclose(result.outputs["y"], x @ weight + bias, rtol=1e-4, atol=1e-5)
        assert result.finished >= result.started


async def test_the_specs_are_the_backends(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(two_inputs_model(tmp_path / "model.onnx")))
    assert [spec.name for spec in lane.inputs] == ["a", "b"]
    assert [(spec.name, spec.shape, spec.batch_axis) for spec in lane.outputs] == [("total", (-1, 4), 0), ("product", (-1, 4), 0)]


@pytest.mark.parametrize(
    "datatype", ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"]
)
async def test_every_datatype_arrives_as_it_was_sent(opened: Open, tmp_path: Path, datatype: str) -> None:
    lane = await opened(onnx(identity_model(tmp_path / "model.onnx", datatype, width=3)))
    for rows in (2, 0, 300):
        x = (np.arange(rows * 3).reshape(rows, 3) % 2).astype(lane.inputs[0].dtype.numpy)
        result = await run(lane, {"x": x}, rows)
        assert result.error is None
        assert result.outputs["y"].dtype == x.dtype
        np.testing.assert_array_equal(result.outputs["y"], x)


async def test_strings(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(identity_model(tmp_path / "model.onnx", "BYTES", width=2)))
    for rows in (1, 40):
        x = np.empty((rows, 2), object)
        x[:] = [[b"", "ö".encode() * rows]] * rows
        result = await run(lane, {"x": x}, rows)
        assert result.error is None
        assert result.outputs["y"].tolist() == x.tolist()


async def test_inputs_that_are_views_of_a_body(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(identity_model(tmp_path / "model.onnx", width=4)))
    body = bytes(3) + np.arange(8, dtype=np.float32).tobytes()
    unaligned = np.ndarray((2, 4), np.float32, body, 3)
    strided = np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::2]
    for x in (unaligned, strided):
        result = await run(lane, {"x": x}, 2)
        np.testing.assert_array_equal(result.outputs["y"], x)


async def test_batches_that_grow_and_shrink(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(identity_model(tmp_path / "model.onnx", width=1000)))
    for rows in (1, 200, 3, 1000, 2):
        x = lane.buffer("x", (rows, 1000))
        x[:] = np.arange(rows, dtype=np.float32)[:, None]
        result = await run(lane, {"x": x}, rows)
        np.testing.assert_array_equal(result.outputs["y"][:, -1], np.arange(rows, dtype=np.float32))


async def test_answers_stay_right_while_later_batches_run(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(identity_model(tmp_path / "model.onnx", width=64)))
    kept: dict[int, Tensor] = {}
    for number in range(40):
        x = lane.buffer("x", (8, 64))
        x[:] = number
        row = (await run(lane, {"x": x}, 8)).outputs["y"][3:4]
        if number % 3:
            kept[number] = row
    assert all((row == number).all() for number, row in kept.items())


async def test_the_callback_is_called_in_the_loop(opened: Open) -> None:
    lane = await opened(spec_of())
    threads: list[int] = []
    done = asyncio.Event()

    def on_result(result: RunResult) -> None:
        threads.append(threading.get_ident())
        done.set()

    lane.submit(pairs(0.0), 1, on_result)
    await done.wait()
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize(
    ("value", "kind_of_error", "text"), [(REFUSED, InvalidRequest, "no"), (ODD, BackendFailure, "ZeroDivisionError: odd")]
)
async def test_what_a_backend_raises_is_a_result_and_the_lane_lives_on(
    opened: Open, value: float, kind_of_error: type[Exception], text: str
) -> None:
    lane = await opened(spec_of())
    bad = await run(lane, pairs(value), 1)
    assert type(bad.error) is kind_of_error
    assert text in str(bad.error)
    assert bad.loss is None
    assert (await run(lane, pairs(0.0), 1)).error is None


async def test_the_runtime_says_what_it_didnt_like(opened: Open, tmp_path: Path) -> None:
    lane = await opened(onnx(embedding_model(tmp_path / "model.onnx")))
    for wrong in (np.zeros((1, 2, 3), np.int64), np.zeros((1, 2), np.float32)):
        assert isinstance((await run(lane, {"tokens": wrong}, 1)).error, InvalidRequest)
    assert isinstance((await run(lane, {"other": np.zeros((1, 2), np.int64)}, 1)).error, InvalidRequest)
    good = await run(lane, {"tokens": np.full((1, 2), 3)}, 1)
    np.testing.assert_array_equal(good.outputs["y"], np.full((1, 4), 3, np.float32))


async def test_close_waits_for_the_run(opened: Open) -> None:
    lane = await opened(spec_of())
    result = started(lane, pairs(SLEEPS, 5.0), 1)
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, lane.close)
    found = await result
    assert found.error is None
    assert found.finished - found.started >= NAP
    assert found.outputs["y"][0, 1] == 5.0


async def test_a_lane_that_cant_be_lost_stays(opened: Open, kind: str) -> None:
    lane = await opened(spec_of())
    lane.watch(lambda loss: pytest.fail("it isn't lost"))
    assert lane.successor() is None
    if kind != "process":
        assert lane.renew(lambda: True) is lane


async def test_where_it_runs(opened: Open, kind: str) -> None:
    lane = await opened(spec_of())
    found = await run(lane, {"x": np.full((1, 2), PID, np.float32)}, 1)
    assert (found.outputs["y"][0, 0] == os.getpid()) is np.bool_(kind != "process")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
async def test_a_lane_opens_and_closes_without_leaving_descriptors(kind: str, scripted: str, dtype: type) -> None:
    loop = asyncio.get_running_loop()

    async def once() -> None:
        spec = spec_of(datatype="FP32" if dtype is np.float32 else "BF16", width=1000)
        lane = await loop.run_in_executor(None, KINDS[kind], spec, loop)
        kept = [(await run(lane, {"x": np.zeros((rows, 1000), dtype)}, rows)).outputs["y"] for rows in (1, 100, 1, 300, 5)]
        await loop.run_in_executor(None, lane.close)
        assert all(not array.any() for array in kept)

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await once()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_inline_lane_that_turns_slow_moves_to_a_thread() -> None:
    loop = asyncio.get_running_loop()
    slow = threading.Event()

    class Slow(Scripted):
        def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
            slow.wait(20 * INLINE_LIMIT)
            return {"y": inputs["x"]}

    lane = InlineLane(NAME, Slow(spec_of()), loop)
    assert lane.successor() is None
    heir = None
    for _ in range(200):
        await run(lane, pairs(0.0), 1)
        heir = lane.successor()
        if heir is not None:
            break
    assert heir is not None
    assert heir.kind == "thread"
    assert (await run(heir, pairs(0.0), 1)).error is None
    await loop.run_in_executor(None, heir.close)


@pytest.mark.parametrize("kind_of_lane", [InlineLane, ThreadLane])
async def test_close_closes_the_backend(kind_of_lane: Callable[[str, Backend, asyncio.AbstractEventLoop], Lane]) -> None:
    loop = asyncio.get_running_loop()
    backend = Scripted(spec_of())
    await loop.run_in_executor(None, kind_of_lane(NAME, backend, loop).close)
    assert backend.closed


def test_buffers_are_used_again_and_grow() -> None:
    buffers = Buffers((TensorSpec("x", "FP32", (-1, -1)),))
    first = buffers.view("x", (2, 8))
    assert buffers.view("x", (2, 8)) is first
    assert np.shares_memory(buffers.view("x", (1, 8)), first)
    large = buffers.view("x", (64, 8))
    assert not np.shares_memory(large, first)
    assert np.shares_memory(buffers.view("x", (2, 8)), large)


async def test_an_answer_of_no_datatype(scripted: str) -> None:
    loop = asyncio.get_running_loop()
    lane = await loop.run_in_executor(None, KINDS["process"], spec_of(), loop)
    bad = await run(lane, pairs(MUTE), 1)
    assert isinstance(bad.error, BackendFailure)
    assert "an output came as numpy datetime64[s], which the protocol has no datatype for" in str(bad.error)
    assert (await run(lane, pairs(0.0), 1)).error is None
    await loop.run_in_executor(None, lane.close)
