"""One suite over every lane kind: right answers, errors as results, order, and a clean end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
import pytest_asyncio

from server.backends.base import Backend, VariantSpec
from server.backends.ort import OnnxRuntimeBackend
from server.errors import BackendFailure, InvalidRequest
from server.lanes.base import Lane, RunResult
from server.lanes.buffers import Buffers
from server.lanes.inline import INLINE_LIMIT, InlineLane
from server.lanes.thread import ThreadLane
from server.tensors import Tensor, TensorSpec
from tests.server.models import linear_model, linear_weights

Make: TypeAlias = Callable[[Any], Lane]
KINDS: dict[str, Callable[[str, Backend, asyncio.AbstractEventLoop], Lane]] = {"inline": InlineLane, "thread": ThreadLane}


class Scripted:
    """A backend at the seam whose run does what the test says."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 2)),)
    version: ClassVar[str] = "scripted"

    def __init__(self, act: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        self.act = act
        self.closed = False

    @classmethod
    def open(cls, spec: VariantSpec) -> Scripted:
        return cls(lambda inputs: {"y": inputs["x"]})

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.act(inputs)

    def close(self) -> None:
        self.closed = True


@pytest_asyncio.fixture(params=sorted(KINDS))
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    loop = asyncio.get_running_loop()
    made: list[Lane] = []

    def build(backend: Any) -> Lane:
        made.append(KINDS[request.param]("m/1/fp32#0", backend, loop))
        return made[-1]

    yield build
    for lane in made:
        await loop.run_in_executor(None, lane.close)


async def run(lane: Lane, inputs: Mapping[str, Tensor], rows: int) -> RunResult:
    future: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
    lane.submit(inputs, rows, future.set_result)
    return await future


async def test_runs_a_real_model(make: Make, tmp_path: Path) -> None:
    path = linear_model(tmp_path / "model.onnx")
    lane = make(OnnxRuntimeBackend.open(VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1)))
    weight, bias = linear_weights()
    for rows in (1, 5, 2):
        x = lane.buffer("x", (rows, 8))
        x[:] = np.random.default_rng(rows).standard_normal((rows, 8), np.float32)
        result = await run(lane, {"x": x}, rows)
        assert result.error is None
        np.testing.assert_allclose(result.outputs["y"], x @ weight + bias, rtol=1e-4, atol=1e-5)
        assert result.finished >= result.started


async def test_the_callback_is_called_in_the_loop(make: Make) -> None:
    lane = make(Scripted(lambda inputs: {"y": inputs["x"]}))
    threads: list[int] = []
    done = asyncio.Event()

    def on_result(result: RunResult) -> None:
        threads.append(threading.get_ident())
        done.set()

    lane.submit({"x": np.zeros((1, 2), np.float32)}, 1, on_result)
    await done.wait()
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize(("raised", "kind"), [(InvalidRequest("no"), InvalidRequest), (ZeroDivisionError("odd"), BackendFailure)])
async def test_what_a_backend_raises_is_a_result_and_the_lane_lives_on(make: Make, raised: Exception, kind: type[Exception]) -> None:
    def act(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if inputs["x"][0, 0]:
            raise raised
        return {"y": inputs["x"]}

    lane = make(Scripted(act))
    bad = await run(lane, {"x": np.ones((1, 2), np.float32)}, 1)
    assert isinstance(bad.error, kind)
    assert str(raised) in str(bad.error)
    assert (await run(lane, {"x": np.zeros((1, 2), np.float32)}, 1)).error is None


async def test_close_waits_for_the_run_and_closes_the_backend(make: Make) -> None:
    backend = Scripted(lambda inputs: {"y": inputs["x"]})
    lane = make(backend)
    result = asyncio.ensure_future(run(lane, {"x": np.zeros((1, 2), np.float32)}, 1))
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, lane.close)
    assert backend.closed
    assert (await result).error is None


async def test_an_inline_lane_that_turns_slow_moves_to_a_thread() -> None:
    loop = asyncio.get_running_loop()
    slow = threading.Event()

    def act(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slow.wait(20 * INLINE_LIMIT)
        return {"y": inputs["x"]}

    lane = InlineLane("m/1/fp32#0", Scripted(act), loop)
    assert lane.successor() is None
    x = {"x": np.zeros((1, 2), np.float32)}
    heir = None
    for _ in range(200):
        await run(lane, x, 1)
        heir = lane.successor()
        if heir is not None:
            break
    assert heir is not None
    assert heir.kind == "thread"
    assert (await run(heir, x, 1)).error is None
    await loop.run_in_executor(None, heir.close)


def test_buffers_are_used_again_and_grow() -> None:
    buffers = Buffers((TensorSpec("x", "FP32", (-1, -1)),))
    first = buffers.view("x", (2, 8))
    assert buffers.view("x", (2, 8)) is first
    assert np.shares_memory(buffers.view("x", (1, 8)), first)
    large = buffers.view("x", (64, 8))
    assert not np.shares_memory(large, first)
    assert np.shares_memory(buffers.view("x", (2, 8)), large)
