"""A/A: a canary that is its baseline, both on one emulated T4, judged as in the server. How often is it rolled back? It mustn't be oftener
than alpha, though requests come in bursts, those of one run share their fate, and both arms share a device.

Real are the rules, queue, batcher, cost model, scheduler, arbiter, engine, the tally of answers and the judge; the device's times are
those of the grid (a T4's, with noise), and time is virtual: `python -m benchmarks.same_arms SHARE RUNS FIRST_SEED` prints how many were
rolled back.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from random import Random

import numpy as np

from benchmarks import virtual_time  # before what reads the clock
from benchmarks.batcher_grid import LAWS, MAX_ROWS, MODELS, Case, Device
from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.errors import TidegateError
from server.lanes import arbiter
from server.lanes.base import Lane, OnLoss, OnResult, RunResult
from server.messages import InferRequest, InferResponse, Layout, ModelKey
from server.metrics.recorder import Recorder
from server.router.canary import Action, Plan, Standing, judge
from server.router.evidence import Evidence
from server.router.experiment import Guard
from server.router.live.exposures import Exposures
from server.router.live.tally import Scope, Tally
from server.router.rules import choose, split
from server.tensors import Tensor, TensorSpec

MODEL = MODELS[0]
LAW = "MMPP"
LOAD = 0.7  # of μ*: for a quarter of the time three times as much comes
SECONDS = 20
LOOKS = 4  # a second, as the server
BASELINE, CANARY = "1", "2"
GUARDS = (Guard("errors", 0.01), Guard("latency", 0.1), Guard("slow", 0.05))
LAYOUT = Layout((("x", "FP32", (1, 4)),))
ROW = np.zeros((1, 4), np.float32)


class _Emulated:
    """A lane of a device that runs one batch after the other, whoever's they are."""

    kind, name, depth = "thread", "emulated", 1
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 4)),)

    def __init__(self, device: Device) -> None:
        self._device = device
        self._loop = asyncio.get_running_loop()
        self._buffer = np.zeros((MAX_ROWS, 4), np.float32)

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._buffer[: shape[0]]

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        begun, seconds = virtual_time.CLOCK(), self._device.run(rows)
        self._loop.call_later(seconds, on_result, RunResult({"y": self._buffer[:rows]}, begun, begun + seconds))

    def successor(self) -> None:
        return None

    def watch(self, on_loss: OnLoss) -> None:
        """Never lost."""

    def renew(self, wanted: Callable[[], bool]) -> Lane:
        return self

    def close(self) -> None:
        """Nothing to give back."""


def _engine(version: str, device: Device, shared: arbiter.Device) -> Engine:
    policy = BatchPolicy(max_rows=MAX_ROWS, latency_objective=MODEL.objective, on_late="reject")
    key, costs = ModelKey("m", version, "fp16"), CostModel(device.warmup())
    engine = Engine(key, [_Emulated(device)], Batcher(policy, costs), Recorder().figures(key), terms=Terms(), batched=True)
    engine.share_device(shared, 1.0)
    return engine


async def rolled_back(share: float, seed: int) -> bool:
    """One roll-out at one share, looked at four times a second."""
    case, shared = Case(MODEL, LAW, LOAD, seed), arbiter.Arbiter(1).device("emulated")
    device, random = Device(case), Random(seed)
    engines = {version: _engine(version, device, shared) for version in (BASELINE, CANARY)}
    tally = Tally(Scope(CANARY, share, MODEL.objective), Exposures(), lambda request, response: None)
    rules, ready = split("m", {BASELINE: 100 - share, CANARY: share}), frozenset(engines)
    arrivals = _arrivals(seed)
    plan, evidence = Plan("m", GUARDS, (share, 100), min_seconds=1e6), Evidence()
    start, looked = virtual_time.CLOCK(), 0
    for at in arrivals:
        while looked < at * LOOKS:
            await _until(start + looked / LOOKS)
            looked += 1
            for arm, counts in tally.arms.items():
                for metric, sums in counts.take():
                    evidence.count(metric, share, arm, sums, virtual_time.CLOCK())
            if judge(plan, Standing(0, start), evidence, virtual_time.CLOCK()).action is Action.ROLL_BACK:
                return True
        await _until(start + at)
        _ask(engines[choose(rules, ready, BASELINE, "", random.random()).version], tally)
    return False


def _arrivals(seed: int) -> list[float]:
    """Seconds from the start, of one trace after the other until it's long enough."""
    times: list[float] = []
    number = 0
    while not times or times[-1] < SECONDS:
        more = LAWS[LAW](LOAD * MODEL.capacity, np.random.default_rng((seed, number)))
        times += (more + (times[-1] if times else 0.0)).tolist()
        number += 1
    return [at for at in times if at < SECONDS]


async def _until(at: float) -> None:
    if (left := at - virtual_time.CLOCK()) > 0:
        await asyncio.sleep(left)


def _ask(engine: Engine, tally: Tally) -> None:
    now = virtual_time.CLOCK()
    request = InferRequest("m", {"x": ROW}, LAYOUT, received=now, deadline=now + MODEL.objective)
    watch = tally.begin(request, engine.key.version, _ignore)
    try:
        watch.handle = engine.submit(request, watch)
    except TidegateError:
        watch.refused()


def _ignore(response: InferResponse, final: bool) -> None:
    """Nobody waits for simulated answers."""


def main() -> None:
    """As many runs as are asked for."""
    share, runs, first = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(sum(virtual_time.run(rolled_back(share, seed)) for seed in range(first, first + runs)))


if __name__ == "__main__":
    main()
