"""Lanes and engines in this process: what a process lane costs, and what neighbours, loads and a busy loop do to a serving model."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BenchError, Report, Target, ratio, spread
from benchmarks.lane_server import tokens
from server.backends.base import VariantSpec
from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.engine import Engine
from server.engine.request_queue import QueueLimits
from server.lanes.arbiter import Device
from server.lanes.base import Lane, RunResult
from server.lanes.opening import LanePlan, Opened, open_lanes
from server.messages import InferRequest, InferResponse, Layout, ModelKey
from server.metrics.recorder import Recorder
from server.tensors import dtype_of

Arrays = dict[str, NDArray[Any]]
ROWS, LENGTH, SECONDS, REPEATS = 8, 32, 2.0, 9
RATE, WINDOW, WINDOWS = 20.0, 3.0, 8  # requests/s of the model whose latency is watched; seconds of a window
LOADS = 20
HOG = 1e-3  # seconds that the loop is held each turn
HANDOVERS = 400


def spec(models: Path, name: str) -> VariantSpec:
    """An exported model of the demo."""
    return VariantSpec(name, "1", "fp32", "onnxruntime", models / name / "1" / "model.fp32.onnx")


async def opened(variant: VariantSpec, **plan: Any) -> Opened:
    """Its lanes, opened off the loop."""
    loop = asyncio.get_running_loop()
    settings = {"rows": (1, 4), "trust_batch_axis": True, **plan}
    return await loop.run_in_executor(None, open_lanes, variant, LanePlan(**settings), loop)


async def closed(lanes: tuple[Lane, ...]) -> None:
    """Give them back."""
    for lane in lanes:
        await asyncio.get_running_loop().run_in_executor(None, lane.close)


async def process_against_thread(report: Report, models: Path) -> float:
    """MiniLM in two lanes of one thread each, batch after batch, gathered into the lane's own memory: rows/s. Gives the seconds that
    a process lane takes to open."""
    kinds = {}
    for kind in ("thread", "process"):
        begun = time.monotonic()
        kinds[kind] = await opened(spec(models, "minilm"), kind=kind, count=2, threads=1)
        load_seconds = (time.monotonic() - begun) / 2
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(REPEATS):
        for kind in sorted(kinds, reverse=bool(repeat % 2)):
            found[kind].append(await _rows_per_second(kinds[kind].lanes))
    for each in kinds.values():
        await closed(each.lanes)
    report.details["process against thread"] = {"rows/s": found, "seconds to open one": load_seconds}
    note = f"{spread(found['process'])} rows/s against {spread(found['thread'])}, MiniLM, batches of {ROWS} x {LENGTH}"
    report.targets.append(Target("process lane / thread lane, rows/s", ratio(found["process"], found["thread"]), 0.97, note=note))
    return load_seconds


async def _rows_per_second(lanes: tuple[Lane, ...]) -> float:
    batch, rows, begun = tokens(ROWS, LENGTH), 0, time.monotonic()

    async def keep_busy(lane: Lane) -> None:
        nonlocal rows
        while time.monotonic() - begun < SECONDS:
            gathered = {name: lane.buffer(name, array.shape) for name, array in batch.items()}
            for name, array in batch.items():
                gathered[name][...] = array
            result = await _run(lane, gathered, ROWS)
            if result.error is not None:
                raise BenchError(f"a run failed: {result.error}")
            rows += ROWS

    await asyncio.gather(*map(keep_busy, lanes))
    return rows / (time.monotonic() - begun)


def _run(lane: Lane, inputs: Arrays, rows: int) -> Awaitable[RunResult]:
    future: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
    lane.submit(inputs, rows, future.set_result)
    return future


TERMS = Terms(QueueLimits(4096))


@asynccontextmanager
async def serving(found: Opened, name: str, max_rows: int, device: Device | None) -> AsyncIterator[Engine]:
    """An engine over lanes, on a device that it shares where one is given."""
    key = ModelKey(name, "1", "fp32")
    engine = Engine(
        key, found.lanes, Batcher(BatchPolicy(max_rows, lanes=len(found.lanes))), Recorder().figures(key), terms=TERMS, batched=True
    )
    if device is not None:
        engine.share_device(device, found.threads)
    try:
        yield engine
    finally:
        await engine.drain()
        engine.abandon()
        await asyncio.get_running_loop().run_in_executor(None, engine.close)


def ask(engine: Engine, arrays: Arrays, layout: Layout) -> asyncio.Future[InferResponse]:
    """One request."""
    future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
    engine.submit(InferRequest(engine.key.name, arrays, layout), lambda response, final: future.set_result(response))
    return future


def layout_of(arrays: Arrays) -> Layout:
    """What the codecs would hand out for such inputs."""
    return Layout(tuple((name, dtype_of(array).name, array.shape) for name, array in arrays.items()))


async def latencies(engine: Engine, arrays: Arrays, seconds: float) -> list[float]:
    """RATE requests/s, one at a time, evenly: how long each took."""
    layout, found = layout_of(arrays), []
    begun, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - begun) < seconds:
        await asyncio.sleep(max(0.0, number / RATE - elapsed))
        asked = time.monotonic()
        answer = await ask(engine, arrays, layout)
        if answer.error is not None:
            raise BenchError(f"a request failed: {answer.error}")
        found.append(time.monotonic() - asked)
        number += 1
    return found


@asynccontextmanager
async def saturated(engine: Engine, arrays: Arrays, outstanding: int) -> AsyncIterator[list[int]]:
    """Asks `outstanding` requests at once, all the time; the list counts them."""
    layout, answered, going = layout_of(arrays), [0], True

    async def client() -> None:
        while going:
            await ask(engine, arrays, layout)
            answered[0] += 1

    clients = [asyncio.ensure_future(client()) for _ in range(outstanding)]
    try:
        yield answered
    finally:
        going = False
        await asyncio.gather(*clients)


async def beside_a_neighbour(report: Report, models: Path) -> None:
    """MiniLM asked now and then, alone and beside MobileNetV2 that saturates the same cores; with the arbiter, and without one."""
    image = {"image": np.zeros((1, 3, 224, 224), np.float32)}
    found: dict[str, list[float]] = {}
    for name, device in (("with", Device(2)), ("without", None)):
        quiet = await opened(spec(models, "minilm"), kind="thread", count=2, threads=1)
        loud = await opened(spec(models, "mobilenet_v2"), kind="thread", count=2, threads=1)
        async with serving(quiet, "minilm", 16, device) as engine, serving(loud, "mobilenet_v2", 4, device) as neighbour:
            for _ in range(WINDOWS):
                found.setdefault(f"alone, {name}", []).extend(await latencies(engine, tokens(1, 64), WINDOW))
                async with saturated(neighbour, image, 8) as answered:
                    found.setdefault(f"beside, {name}", []).extend(await latencies(engine, tokens(1, 64), WINDOW))
                report.details.setdefault("neighbour's requests", []).append((name, answered[0]))
    p99 = {name: _p99(values) for name, values in found.items()}
    report.details["neighbours, p99 s"] = p99
    report.details["neighbours, p50 s"] = {name: statistics.median(values) for name, values in found.items()}
    without = p99["beside, without"] / p99["alone, without"]
    note = f"p99 {p99['beside, with'] * 1e3:.1f} ms against {p99['alone, with'] * 1e3:.1f} ms; without the arbiter {without:.2f} times"
    value = p99["beside, with"] / p99["alone, with"]
    report.targets.append(Target("quiet model's p99 beside one that saturates / alone", value, 1.5, at_most=True, note=note))


async def beside_loads(report: Report, models: Path) -> None:
    """MiniLM in a lane of one thread, alone and while MobileNetV2 is loaded into process lanes, LOADS times in all."""
    quiet = await opened(spec(models, "minilm"), kind="thread", count=1, threads=1)
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    async with serving(quiet, "minilm", 16, None) as engine:
        for _ in range(LOADS):
            found["alone"] += await latencies(engine, tokens(1, 64), WINDOW / 2)
            watched = asyncio.ensure_future(_load(models))
            while not watched.done():
                found["beside"] += await latencies(engine, tokens(1, 64), 1 / RATE)
            await closed(await watched)
    p99 = {name: _p99(values) for name, values in found.items()}
    report.details["loads, p99 s"] = {**p99, "requests": {name: len(values) for name, values in found.items()}}
    note = f"p99 {p99['beside'] * 1e3:.1f} ms against {p99['alone'] * 1e3:.1f} ms, {LOADS} loads of MobileNetV2"
    value = p99["beside"] / p99["alone"]
    report.targets.append(Target("serving p99 while a variant loads in a process lane / alone", value, 1.5, at_most=True, note=note))


async def _load(models: Path) -> tuple[Lane, ...]:
    found = await opened(spec(models, "mobilenet_v2"), kind="process", count=1, threads=1, rows=(1, 4, 16))
    return found.lanes


async def over_a_busy_loop(report: Report, models: Path) -> None:
    """A loop that computes HOG seconds each turn, without a pause: seconds from submit to the run, and from its end to the callback."""
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    worst = 0.0
    for kind in ("thread", "process"):
        found = await opened(spec(models, "digits"), kind=kind, count=1, threads=1)
        there, back = [], []
        with busy_loop():
            for _ in range(HANDOVERS):
                submitted = time.monotonic()
                ended: asyncio.Future[tuple[RunResult, float]] = asyncio.get_running_loop().create_future()
                found.lanes[0].submit(image, 1, lambda result, ended=ended: ended.set_result((result, time.monotonic())))  # type: ignore[misc]
                result, called = await ended
                there.append(result.started - submitted)
                back.append(called - result.finished)
        await closed(found.lanes)
        report.details[f"busy loop, {kind} lane, p99 s"] = {"there": _p99(there), "back": _p99(back)}
        worst = max(worst, _p99(there), _p99(back))
    note = f"the worse of thread and process lane, there and back; the loop computes {HOG * 1e3:g} ms a turn without a pause"
    report.targets.append(Target("lane hand-over p99 over a saturated loop, ms", worst * 1e3, 10.0, at_most=True, note=note))


@contextmanager
def busy_loop() -> Iterator[None]:
    """Every turn of the loop computes HOG seconds, and the next begins at once."""
    loop, going = asyncio.get_running_loop(), True

    def hog() -> None:
        until = time.monotonic() + HOG
        while time.monotonic() < until:
            pass
        if going:
            loop.call_soon(hog)

    loop.call_soon(hog)
    try:
        yield
    finally:
        going = False


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
