"""From a spec to open lanes: open the backend, warm it up, and choose the lane kind by what was measured. Blocks; call it off the loop."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace

from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.lanes.base import Lane
from server.lanes.inline import INLINE_LIMIT, InlineLane
from server.lanes.thread import ThreadLane
from server.lanes.warmup import WarmUp, warm_up


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What the settings ask for: `kind` auto, inline or thread; `count` and `threads` 0 for auto; `rows` are the sizes to warm up with."""

    kind: str = "auto"
    count: int = 0
    threads: int = 0
    rows: tuple[int, ...] = (1, 8, 64)
    trust_batch_axis: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """Open lanes, what warm-up measured, and in words why these lanes."""

    lanes: tuple[Lane, ...]
    warmup: WarmUp
    why: str


def open_lanes(spec: VariantSpec, plan: LanePlan, loop: asyncio.AbstractEventLoop) -> Opened:
    """Open and warm up `plan.count` lanes for a variant. Raises ModelDefect; nothing stays open then."""
    count = plan.count or 1
    spec = replace(spec, threads=plan.threads or spec.threads or max(1, usable_cores() // count))
    backend_class = backend_named(spec.backend)
    backends = []
    try:
        for _ in range(count):
            backends.append(backend_class.open(spec))  # noqa: PERF401 - those opened before a failure must be closed
        warmup = warm_up(backends[0], plan.rows, trust_batch_axis=plan.trust_batch_axis)
        for backend in backends[1:]:
            warm_up(backend, plan.rows[:1], trust_batch_axis=True)
    except BaseException:
        for backend in backends:
            backend.close()
        raise
    kind, why = _kind(spec, plan, warmup)
    lanes: list[Lane] = []
    for number, backend in enumerate(backends):
        name = f"{spec.model}/{spec.version}/{spec.precision}#{number}"
        lanes.append(InlineLane(name, backend, loop) if kind == "inline" else ThreadLane(name, backend, loop))
    return Opened(tuple(lanes), warmup, f"{count} x {kind} with {spec.threads} threads: {why}")


def _kind(spec: VariantSpec, plan: LanePlan, warmup: WarmUp) -> tuple[str, str]:
    if plan.kind != "auto":
        return plan.kind, "as model.yaml says"
    if not warmup.latency:
        return "thread", "nothing was measured"
    rows, seconds = max(warmup.latency.items())
    measured = f"{rows} rows took {seconds * 1e6:.0f} µs at warm-up"
    inline = spec.device == "cpu" and seconds <= INLINE_LIMIT and (plan.count or 1) == 1
    return ("inline" if inline else "thread"), f"{measured}; a run is inline up to {INLINE_LIMIT * 1e6:.0f} µs"


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))
