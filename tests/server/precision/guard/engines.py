"""Engines over real lanes and small real models, for a guard that watches one and asks another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import helper

from server.backends.base import VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.engine import Engine
from server.lanes.thread import ThreadLane
from server.messages import InferRequest, InferResponse, Layout, ModelKey
from server.metrics.recorder import Recorder
from server.precision.drift import Verdict, rates
from server.precision.guard.guard import Guard
from server.precision.guard.record import Alarm, Comparison, Record
from server.precision.guard.sampling import Sample
from server.tensors import Tensor, dtype_of
from tests.server.models import linear_weights, value, write_model

POISON = 7.0
"""The first value of a row for which `sometimes_nan` gives NaN."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an operator says of a guard (sampling.Settings)."""

    sample: float = 1.0
    budget: float = 1.0
    floor: float = 1000.0
    tolerate: float = 0.05
    distance: float = 0.1
    keep_worst: int = 0
    keep_for: float = 3600.0
    redact: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Here:
    """A reference that is there, or isn't."""

    there: Engine | None
    why: str = ""
    summoned: int = 0

    @property
    def engine(self) -> Engine | None:
        return self.there

    def due(self, waiting: int) -> bool:
        return waiting > 0

    async def summon(self, *, urgent: bool) -> Engine | None:
        del urgent
        self.summoned += 1
        return self.there

    def dismiss(self) -> None:
        """Nothing is given back."""


@dataclass(slots=True, eq=False)
class Told:
    """An owner that notes what it's told."""

    alarms: list[Alarm] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    kept: list[Comparison] = field(default_factory=list)

    def alarmed(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def judged(self, record: Record, verdict: Verdict) -> None:
        del record
        self.verdicts.append(verdict)

    def differed(self, sample: Sample, reference: Mapping[str, Tensor], found: Comparison) -> None:
        del sample, reference
        self.kept.append(found)


def engine_of(path: Path, precision: str = "fp32", max_rows: int = 16) -> Engine:
    """An engine with one thread lane over an ONNX file."""
    backend = OnnxRuntimeBackend.open(VariantSpec("net", "1", precision, "onnxruntime", path, threads=1))
    key = ModelKey("net", "1", precision)
    lane = ThreadLane(f"net/{precision}", backend, asyncio.get_running_loop())
    return Engine(key, [lane], Batcher(BatchPolicy(max_rows=max_rows)), Recorder().figures(key), terms=Terms(), batched=True)


@asynccontextmanager
async def engines(*paths: tuple[Path, str]) -> AsyncIterator[list[Engine]]:
    """An engine for each (file, precision); closed in order."""
    made = [engine_of(path, precision) for path, precision in paths]
    try:
        yield made
    finally:
        for engine in made:
            await engine.drain()
            engine.close()


@asynccontextmanager
async def running(guard: Guard) -> AsyncIterator[Guard]:
    """A guard that compares while the block runs. What it raised is raised."""
    task = asyncio.ensure_future(guard.run())
    try:
        yield guard
        if task.done():
            task.result()
    finally:
        guard.watch(None)
        task.cancel()


def records_of(*precisions: str, tolerance: float = 0.1) -> dict[str, Record]:
    return {precision: Record(precision, rates(None, 0.05), tolerance) for precision in precisions}


def request(array: Tensor) -> InferRequest:
    return InferRequest("net", {"x": array}, Layout((("x", dtype_of(array).name, array.shape),)))


async def ask(engine: Engine, array: Tensor) -> InferResponse:
    future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
    engine.submit(request(array), lambda response, final: future.set_result(response))
    return await future


async def ask_all(engine: Engine, arrays: Sequence[Tensor]) -> list[InferResponse]:
    """All at once, so that they share runs."""
    return list(await asyncio.gather(*(ask(engine, array) for array in arrays)))


def noisy_linear(path: Path, noise: float) -> Path:
    """linear_model with its weight disturbed."""
    weight, bias = linear_weights()
    disturbed = weight + noise * np.random.default_rng(5).standard_normal(weight.shape, np.float32)
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])
    return write_model(path, [node], [value("x", ["N", 8])], [value("y", ["N", 4])], {"weight": disturbed, "bias": bias})


def sometimes_nan(path: Path) -> Path:
    """linear_model, but for rows that begin with POISON: NaN there."""
    weight, bias = linear_weights()
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["right"]),
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["first"]),
        helper.make_node("Sub", ["first", "poison"], ["apart"]),
        helper.make_node("Div", ["zero", "apart"], ["nothing"]),
        helper.make_node("Add", ["right", "nothing"], ["y"]),
    ]
    numbers = {"from": np.array([0]), "to": np.array([1]), "axis": np.array([1])}
    floats = {"poison": np.array([POISON], np.float32), "zero": np.array([0.0], np.float32)}
    return write_model(path, nodes, [value("x", ["N", 8])], [value("y", ["N", 4])], {"weight": weight, "bias": bias, **numbers, **floats})


def contagious(path: Path) -> Path:
    """linear_model, but a row of NaN gives NaN in all rows of its run, as a dynamic quantization may."""
    weight, bias = linear_weights()
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["right"]),
        helper.make_node("ReduceSum", ["x"], ["all"], keepdims=0),
        helper.make_node("Mul", ["all", "zero"], ["nothing"]),
        helper.make_node("Add", ["right", "nothing"], ["y"]),
    ]
    weights = {"weight": weight, "bias": bias, "zero": np.array(0.0, np.float32)}
    return write_model(path, nodes, [value("x", ["N", 8])], [value("y", ["N", 4])], weights)
