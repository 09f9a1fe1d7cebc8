"""What scheduling costs a request in CPU: the whole engine on the fast path, and a plan under pressure. Part of `make bench-batcher`."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter, process_time

import numpy as np
import uvloop

from benchmarks.batcher_grid import MAX_ROWS, MODELS, EmulatedModel
from benchmarks.harness import Target
from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy, Cut
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.engine.request_queue import RequestQueue, Ticket
from server.lanes.base import Lane, OnLoss, OnResult, RunResult
from server.messages import InferRequest, InferResponse, Layout, ModelKey
from server.metrics.recorder import Recorder
from server.tensors import Tensor, TensorSpec

RATE = 5000.0  # requests/s
SECONDS = 1.5
REPEATS = 5
QUEUED = 512
TICK = 1e-3  # seconds between wake-ups of the source: requests that came meanwhile are submitted together, as sockets are read
UNPRESSED = EmulatedModel("a model at half its capacity", 0.65e-3, 0.08e-3, 0.050)
KEY = ModelKey("m", "1", "fp16")
LAYOUT = Layout((("x", "FP32", (1, 16)),))
ROW = np.zeros((1, 16), np.float32)


class _Timed:
    """A lane that takes an emulated model's time on the loop's clock and answers zeros."""

    kind, name = "thread", "emulated"
    depth = 1
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 16)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 16)),)

    def __init__(self, model: EmulatedModel) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._buffer = np.zeros((MAX_ROWS, 16), np.float32)

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._buffer[: shape[0]]

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        begun, seconds = self._loop.time(), self._model.seconds(rows)
        self._loop.call_later(seconds, on_result, RunResult({"y": self._buffer[:rows]}, begun, begun + seconds))

    def successor(self) -> None:
        return None

    def watch(self, on_loss: OnLoss) -> None:
        """Never lost."""

    def renew(self, wanted: Callable[[], bool]) -> Lane:
        return self

    def close(self) -> None:
        """Nothing to give back."""


class _Scheduling(Engine):
    """An engine that gathers nothing and answers nobody: what is left is admission, queue, cuts, lanes and learning."""

    def _start(self, cut: Cut, lane: Lane) -> None:
        lane.submit({}, cut.rows, partial(self._end, cut, lane))

    def _end(self, cut: Cut, lane: Lane, result: RunResult) -> None:
        self.batcher.costs.observe(cut.rows, result.finished - result.started, cut.length)
        self._scheduler.release(lane, lane)
        self._scheduler.over(result.finished - result.started)


def _engine(kind: type[Engine], model: EmulatedModel) -> Engine:
    policy = BatchPolicy(max_rows=MAX_ROWS, latency_objective=model.objective, on_late="reject")
    costs = CostModel({rows: model.seconds(rows) for rows in (1, 8, 64)})
    return kind(KEY, [_Timed(model)], Batcher(policy, costs), Recorder().figures(KEY), terms=Terms(), batched=True)


async def _paced(submit: Callable[[InferRequest], None]) -> float:
    """CPU seconds a request of RATE requests/s for SECONDS."""
    loop = asyncio.get_running_loop()
    sent, total, begun, cpu = 0, int(RATE * SECONDS), loop.time(), process_time()
    while sent < total:
        await asyncio.sleep(TICK)
        due = min(total, int((loop.time() - begun) * RATE))
        for _ in range(due - sent):
            now = loop.time()
            submit(InferRequest("m", {"x": ROW}, LAYOUT, received=now, deadline=now + UNPRESSED.objective))
        sent = due
    await asyncio.sleep(0.05)
    return (process_time() - cpu) / total


async def _fast(kind: type[Engine]) -> float:
    """Microseconds of CPU a request, less what the source alone takes."""
    gc.collect()
    alone = await _paced(lambda request: _ignore(InferResponse("m", "1"), True))
    engine = _engine(kind, UNPRESSED)
    whole = await _paced(lambda request: _submit(engine, request))
    return (whole - alone) * 1e6


def _submit(engine: Engine, request: InferRequest) -> None:
    engine.submit(request, _ignore)


def _pressed(model: EmulatedModel) -> tuple[float, float]:
    """Microseconds a cut and a served request, with QUEUED waiting whose deadlines are spread over the objective."""
    policy = BatchPolicy(max_rows=MAX_ROWS, latency_objective=model.objective, on_late="reject")
    batcher = Batcher(policy, CostModel({rows: model.seconds(rows) for rows in (1, 8, 64)}))
    cuts: list[float] = []
    served: list[int] = []
    queue, now = RequestQueue(), 0.0
    for _ in range(60):
        for _ in range(QUEUED - queue.rows):
            now += model.objective / QUEUED
            request = InferRequest("m", {}, LAYOUT, rows=1, queued=now, deadline=now + model.objective)
            queue.push(Ticket(request, _ignore, "g", 1, model.objective))
        begun = perf_counter()
        cut = batcher.cut(queue, now)
        cuts.append((perf_counter() - begun) * 1e6)
        served.append(cut.rows)
        now += model.seconds(cut.rows)
    half = len(cuts) // 2
    return statistics.median(cuts[half:]), statistics.median(
        cut / max(1, rows) for cut, rows in zip(cuts[half:], served[half:], strict=True)
    )


def _ignore(response: InferResponse, final: bool) -> None:
    """Nobody waits for these answers."""


def measure() -> list[Target]:
    """The scheduler's targets."""
    found = {kind: [uvloop.run(_fast(kind)) for _ in range(REPEATS)] for kind in (_Scheduling, Engine)}
    least = {kind: min(figures) for kind, figures in found.items()}
    note = f"goal 5; least of {REPEATS}; {least[Engine]:.1f} with gathering, splitting and answering"
    targets = [Target("scheduler: µs of CPU a request at 5,000/s", least[_Scheduling], 7.0, at_most=True, note=note)]
    for model in MODELS:
        whole, each = _pressed(model)
        note = f"goal 15; a cut takes {whole:.0f} µs"
        targets.append(
            Target(f"scheduler: µs a request under pressure, {QUEUED} queued, {model.name}", each, 25.0, at_most=True, note=note)
        )
    return targets


if __name__ == "__main__":
    for target in measure():
        print(f"{target.name}: {target.value:.2f} (must be at most {target.must:g}); {target.note}")
