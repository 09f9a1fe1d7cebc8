"""An emulated T4 at a T4's own rates, by the real HTTP server: ResNet-50 in FP16 and INT8, open and closed loop, against one row a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.emulated_t4 import FEATURES, YAML, emulated_shots
from benchmarks.harness import Load, Measured, Report, Target, as_details, interleave, run_load, spread

MODEL, MAX_ROWS = "resnet50", 64
FP16, INT8, ONE_ROW = "resnet50_fp16", "resnet50_int8", "resnet50_fp16_one_row"
KINDS = {FP16: ("fp16", MAX_ROWS, 100), INT8: ("int8", MAX_ROWS, 15), ONE_ROW: ("fp16", 1, 100)}
"""Model → its precision, most rows, and objective in ms."""

INT8_ROWS = 8
"""Rows of an INT8 request: 4,800 requests of one row a second are more than client and server have two cores for."""

OPEN_MUST, CLOSED_MUST, INT8_MUST = 1075.0, 1170.0, 4800.0  # rows/s
OVER = 1.02  # of a bound is offered: random arrivals scatter
CONNECTIONS = 192
SECONDS, WARMUP, REPEATS = 8.0, 2.0, 3


def rates_repository(folder: Path) -> Path:
    """The models."""
    for name, (precision, rows, objective) in KINDS.items():
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        text = YAML.format(model=MODEL, precision=precision, rows=rows, deadline=objective, features=FEATURES)
        (folder / name / "model.yaml").write_text(text.replace("on_late: reject", "on_late: serve"))
    return folder


def at_rates(report: Report, address: str) -> None:
    """Four targets."""
    fp16, one_row = emulated_shots(address, FP16), emulated_shots(address, ONE_ROW)
    int8 = emulated_shots(address, INT8, INT8_ROWS)
    seeds = iter(range(1, 100))
    measures: dict[str, Callable[[], Measured]] = {
        "fp16, open loop": lambda: run_load(fp16, address, Load(CONNECTIONS, SECONDS, WARMUP, OPEN_MUST * OVER, next(seeds))),
        "fp16, closed loop": partial(run_load, fp16, address, Load(CONNECTIONS, SECONDS, WARMUP)),
        "int8, open loop": lambda: run_load(int8, address, Load(CONNECTIONS, SECONDS, WARMUP, INT8_MUST * OVER / INT8_ROWS, next(seeds))),
        "one row a run, closed loop": partial(run_load, one_row, address, Load(CONNECTIONS, SECONDS, WARMUP)),
    }
    found = interleave(measures, REPEATS)
    report.details["emulated T4 at rates"] = as_details(found)
    opened, closed, eight, single = found.values()
    _by_rate(report, "fp16, open loop: rows/s with p99 ≤ 100 ms", opened, 100.0, OPEN_MUST)
    rates = [measured.rate for measured in closed]
    name = f"emulated T4, {MODEL} fp16, closed loop: rows/s"
    report.targets.append(Target(name, statistics.median(rates), CLOSED_MUST, note=spread(rates)))
    _by_rate(report, "int8, open loop: rows/s with p99 ≤ 15 ms", eight, 15.0, INT8_MUST, INT8_ROWS)
    gain = statistics.median(rates) / statistics.median([measured.rate for measured in single])
    note = f"{spread(rates)} against {spread([measured.rate for measured in single])} rows/s (3 to 5 is what a T4 gives)"
    report.targets.append(Target(f"emulated T4, {MODEL} fp16: dynamic batching / one row a run", gain, 3.0, note=note))


def _by_rate(report: Report, name: str, found: list[Measured], limit_ms: float, must: float, rows: int = 1) -> None:
    """What was answered a second where the 99th percentile held, 0 where it didn't."""
    p99 = [measured.p99_ms for measured in found]
    rate = statistics.median(measured.rate * rows for measured in found)
    held = rate if statistics.median(p99) <= limit_ms else 0.0
    note = f"p99 {spread(p99)} ms at {rate:,.0f} rows/s, {rows} a request"
    report.targets.append(Target(f"emulated T4, {MODEL} {name}", held, must, note=note))
