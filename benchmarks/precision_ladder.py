"""The ladder on an emulated T4, under a load that rises to more than INT8 can serve in time and falls again; beside fixed precisions.

The whole server but its edges runs in this process: requests of one row come by a Poisson process straight to the data plane, in real time.
The device's times are a published table's (docs/emulated.md); nothing is measured of hardware. The day is scaled to forty seconds, and with
it the ladder's cool-downs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import numpy as np
import uvloop

from benchmarks.emulated_t4 import capacity
from benchmarks.harness import Report, Target
from server.app import App
from server.backends.latency_table import BUILT_IN, read_table
from server.config import load_settings
from server.messages import InferRequest, InferResponse, Layout

MODEL, OBJECTIVE, MAX_ROWS = "bert_base_128", 0.050, 64
LADDER = ("fp32", "fp16", "int8")
LOW, HIGH = 100.0, 2490.0  # rows/s: 0.6 of FP32's no-miss capacity, and 1.3 of INT8's
BOTTOM, RAMP, TOP, SETTLING, AFTER = 4.0, 8.0, 6.0, 8.0, 6.0  # seconds; what is settling is left out of the bottom's figures
TICK = 1e-3  # seconds between looks at what is due: such requests are submitted together, as sockets are read
LAYOUT = Layout((("x", "FP32", (1, 8)),))
ROW = np.ones((1, 8), np.float32)
YAML = """backend: emulated
emulate: {{table: t4, model: {model}, precisions: [fp32, fp16, int8]}}
batching: {{max_rows: {rows}, latency_objective: {objective:g}ms}}
queue: {{on_late: reject}}
warmup: {{rows: [1, 8, 32]}}
precision: {{{precision}, keep: 2}}
inputs: {{x: {{dtype: FP32, shape: [-1, 8]}}}}
outputs: {{y: {{dtype: FP32, shape: [-1, 4]}}}}
"""
STEPPED = "policy: ladder, ladder: [fp32, fp16, int8], down_cool: 1s, up_cool: 3s, calm: 2s"
CONTENDERS = {"ladder": STEPPED, **{f"fixed {precision}": f"active: {precision}" for precision in LADDER}}


@dataclass(slots=True)
class Phase:
    """A stretch of the day and what came of its requests. `within` of those `answered` came within the objective; `by` precision."""

    name: str
    begin: float
    end: float
    asked: int = 0
    answered: int = 0
    within: int = 0
    by: dict[str, int] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Rows answered within the objective, a second."""
        return self.within / (self.end - self.begin)

    def share(self, precision: str) -> float:
        """Of the rows that were asked for, what was answered in a precision."""
        return self.by.get(precision, 0) / max(1, self.asked)


def day() -> list[Phase]:
    """Low, up, high, down, and low again once it has settled."""
    at, found = 0.0, []
    for name, seconds in (("before", BOTTOM), ("up", RAMP), ("top", TOP), ("down", RAMP), ("settling", SETTLING), ("bottom", AFTER)):
        found.append(Phase(name, at, at + seconds))
        at += seconds
    return found


def rate(at: float) -> float:
    """Rows/s at a time of the day."""
    up, top, down = BOTTOM, BOTTOM + RAMP, BOTTOM + RAMP + TOP
    share = min(1.0, max(0.0, (at - up) / RAMP)) - min(1.0, max(0.0, (at - down) / RAMP))
    return LOW + (HIGH - LOW) * (share if at < top or at >= down else 1.0)


def arrivals(seconds: float, seed: int) -> Iterator[float]:
    """The times of a Poisson process of that rate, by thinning."""
    random, at = Random(seed), 0.0
    while (at := at + random.expovariate(HIGH)) < seconds:
        if random.random() * HIGH < rate(at):
            yield at


async def play(app: App, phases: list[Phase], seed: int) -> None:
    """Send the day's requests and count what comes of them."""
    begun = monotonic()
    pending = 0

    def ask(at: float, phase: Phase) -> None:
        nonlocal pending
        received = monotonic()

        def answered(response: InferResponse, final: bool) -> None:
            nonlocal pending
            pending -= 1
            if response.error is None and response.batch is not None:
                phase.answered += 1
                phase.within += monotonic() - received <= OBJECTIVE
                phase.by[response.batch.precision] = phase.by.get(response.batch.precision, 0) + 1

        phase.asked += 1
        pending += 1
        app.dataplane.infer(InferRequest(MODEL, {"x": ROW}, LAYOUT, received=received), answered)

    ahead = iter(phases)
    phase = next(ahead)
    for at in arrivals(phases[-1].end, seed):
        while at >= phase.end:
            phase = next(ahead)
        while monotonic() - begun < at:
            await asyncio.sleep(TICK)
        ask(at, phase)
    async with asyncio.timeout(10):
        while pending:
            await asyncio.sleep(TICK)


async def run(precision: str, seed: int) -> dict[str, Any]:
    """One contender's day: its phases, the steps that were made, and how busy the loop was at the top."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / MODEL / "1").mkdir(parents=True)
        text = YAML.format(model=MODEL, rows=MAX_ROWS, objective=OBJECTIVE * 1e3, precision=precision)
        (root / MODEL / "model.yaml").write_text(text)
        ports = {"http_port": 0, "grpc_port": "off", "metrics_port": 0, "drain_delay": 0.0}
        app = App(load_settings(None, {"repository": root, **ports}))
        try:
            await app.start()
            phases = day()
            await play(app, phases, seed)
            steps = [event for event in await app.events.since() if event.what == "precision"]
        finally:
            await app.stop(drain=False)
    return {"phases": phases, "steps": [(event.was, event.now, event.why) for event in steps]}


def ladder(report: Report, seed: int = 1) -> None:
    """The targets of the ladder, side by side with fixed precisions."""
    found = {name: uvloop.run(run(precision, seed)) for name, precision in CONTENDERS.items()}
    report.details["ladder"] = {
        name: {
            "steps": each["steps"],
            "phases": {p.name: {"asked": p.asked, "goodput": p.goodput, "by": p.by, "within": p.within} for p in each["phases"]},
        }
        for name, each in found.items()
    }
    top, bottom = ({name: each["phases"][at] for name, each in found.items()} for at in (2, 5))
    curve = read_table(BUILT_IN["t4"])
    best = {precision: capacity(curve.curve(MODEL, precision), OBJECTIVE, MAX_ROWS).rate for precision in LADDER}
    goodput = ", ".join(f"{name} {phase.goodput:.0f}" for name, phase in top.items())
    what = "ladder on an emulated T4"
    note = f"rows/s in time at {HIGH:.0f}/s: {goodput}; μ* {', '.join(f'{name} {most:.0f}' for name, most in best.items())}"
    over = top["ladder"].goodput / max(1e-9, top["fixed int8"].goodput)
    report.targets.append(Target(f"{what}: goodput at the top over always-INT8", over, 0.95, note=note))
    note = f"of {bottom['ladder'].asked} rows at {LOW:.0f}/s, from {SETTLING:g} s after the fall; in time " + ", ".join(
        f"{name} {phase.within / max(1, phase.asked):.1%}" for name, phase in bottom.items()
    )
    report.targets.append(Target(f"{what}: share of FP32 answers at the bottom", bottom["ladder"].share("fp32"), 0.95, note=note))
    steps = [(was, now) for was, now, _ in found["ladder"]["steps"]]
    ways = [sum((LADDER.index(now) > LADDER.index(was)) == down for was, now in steps) for down in (True, False)]
    note = ", ".join(f"{was} → {now}" for was, now in steps)
    report.targets.append(Target(f"{what}: steps each way", float(max(ways)), 2.0, at_most=True, note=note))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        name = sys.argv[1] if len(sys.argv) > 1 else "ladder"
        one = uvloop.run(run(CONTENDERS[name], 1))
        print(name, one["steps"])
        for phase in one["phases"]:
            print(f"{phase.name:9} asked {phase.asked:6} goodput {phase.goodput:7.1f} {phase.by}")
