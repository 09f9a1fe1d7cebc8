"""An emulated T4 behind the real HTTP server: how much of what it could do at best the batcher gets out of it, by deadline.

The device's times are a published table's (docs/emulated.md). What is measured is the server: its scheduling and its overhead.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import wire
from benchmarks.harness import (
    BenchError,
    Load,
    Measured,
    Report,
    Target,
    as_details,
    exact_shots,
    interleave,
    run_load,
    spread,
    write_shots,
)
from server.backends.latency_table import BUILT_IN, Curve, read_table

MODEL, PRECISION, DEADLINE, MAX_ROWS = "resnet50", "fp16", 0.050, 64
ONE_ROW = f"{MODEL}_one_row"
FEATURES = 16
DISTINCT = 64
REPEATS = 3
CONNECTIONS = 256
SECONDS = 8.0
WARMUP = 2.0

YAML = """backend: emulated
emulate: {{table: t4, model: {model}, precision: {precision}}}
batching: {{max_rows: {rows}, latency_objective: {deadline}ms}}
queue: {{on_late: reject}}
inputs: {{x: {{dtype: FP32, shape: [-1, {features}]}}}}
outputs: {{y: {{dtype: FP32, shape: [-1, 4]}}}}
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that a device can do without a miss: batches of `rows`, `rate` rows/s (shared/batching.md, no-miss capacity)."""

    rows: int
    rate: float


def capacity(curve: Curve, objective: float, max_rows: int) -> Capacity:
    """b* = max{b : T(b)(2 - 1/b) <= D}, and b*/T(b*)."""
    rows = max(b for b in range(1, max_rows + 1) if curve.seconds(b) * (2 - 1 / b) <= objective)
    return Capacity(rows, rows / curve.seconds(rows))


def emulated_repository(folder: Path) -> Path:
    """The model with dynamic batching, and the same with one row a run."""
    for name, rows in ((MODEL, MAX_ROWS), (ONE_ROW, 1)):
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        text = YAML.format(model=MODEL, precision=PRECISION, rows=rows, deadline=round(DEADLINE * 1e3), features=FEATURES)
        (folder / name / "model.yaml").write_text(text)
    return folder


def under_load(report: Report, ours: str) -> None:
    """Open-loop Poisson arrivals below and above capacity, as three targets."""
    curve = read_table(BUILT_IN["t4"]).curve(MODEL, PRECISION)
    best = capacity(curve, DEADLINE, MAX_ROWS)
    shots = {model: emulated_shots(ours, model) for model in (MODEL, ONE_ROW)}

    def load(model: str, share: float) -> Measured:
        seeds[model, share] = seeds.get((model, share), 0) + 1
        rate = share * best.rate
        return run_load(shots[model], ours, Load(CONNECTIONS, SECONDS, WARMUP, rate, seeds[model, share], DEADLINE))

    seeds: dict[tuple[str, float], int] = {}
    names: dict[str, Callable[[], Measured]] = {
        "0.8 μ*": partial(load, MODEL, 0.8),
        "1.5 μ*": partial(load, MODEL, 1.5),
        "1.5 μ*, one row a run": partial(load, ONE_ROW, 1.5),
    }
    found = interleave(names, REPEATS)
    report.details["emulated T4"] = {**as_details(found), "μ*": best.rate, "b*": best.rows, "deadline_s": DEADLINE}
    _judge(report, found, best, curve)


def _judge(report: Report, found: dict[str, list[Measured]], best: Capacity, curve: Curve) -> None:
    below, above, single = found.values()
    met = [measured.in_time for measured in below]
    note = (
        f"{spread(met)} at {0.8 * best.rate:.0f}/s; p50 {spread([m.p50_ms for m in below])} ms, p99 {spread([m.p99_ms for m in below])} ms"
    )
    what = f"emulated T4, {MODEL} {PRECISION}"
    report.targets.append(Target(f"{what}: answered within {DEADLINE * 1e3:.0f} ms at 0.8 μ*", statistics.median(met), 0.99, note=note))
    goodput = [measured.goodput for measured in above]
    late = sum(m.ok - m.within for m in above) / sum(m.ok + m.refused for m in above)
    note = f"{spread(goodput)} of {best.rate:.0f}/s at {1.5 * best.rate:.0f}/s; late {late:.2%}"
    report.targets.append(Target(f"{what}: goodput / μ* at 1.5 μ*", statistics.median(goodput) / best.rate, 0.93, note=note))
    alone = [measured.goodput for measured in single]
    gain = statistics.median(goodput) / max(statistics.median(alone), 1e-9)
    device = statistics.median(goodput) * curve.seconds(1)
    note = f"{spread(goodput)}/s against {spread(alone)}/s (goal 3.4); against the device's own 1/T(1): {device:.2f} (bound 3.73)"
    report.targets.append(Target(f"{what}: goodput / that of one row a run", gain, 3.2, note=note))


def emulated_shots(address: str, model: str, rows: int = 1) -> Path:
    """Requests, each checked once against what the emulated backend must answer; the load generator holds all to that."""
    rng = np.random.default_rng(7)
    arrays = [rng.integers(-100, 100, (rows, FEATURES)).astype(np.float32) for _ in range(DISTINCT)]
    requests = [wire.binary_request(address, model, {"x": array}) for array in arrays]
    answers = wire.ask_one_by_one(address, requests)
    for array, answer in zip(arrays, answers, strict=True):
        if not np.array_equal(answer.array("y"), array.sum(axis=1, keepdims=True) + np.arange(4)):
            raise BenchError(f"{model} answered {answer.array('y')} to {array}")
    return write_shots(f"emulated-{model}", exact_shots(requests, answers))
