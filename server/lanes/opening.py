"""From a spec to open lanes: open the backend, warm it up, choose kind, count and threads by what was measured. Blocks; call it off
the loop, in a thread that lives as long as the lanes do.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from server.backends.base import Backend, VariantSpec
from server.backends.declared import open_declared
from server.backends.registry import EMULATED, ISOLATED, WHOLE_PROCESS, backend_named
from server.errors import ModelDefect
from server.lanes.base import Lane
from server.lanes.inline import INLINE_LIMIT, InlineLane
from server.lanes.process.lane import PATIENCE, ProcessLane
from server.lanes.process.messages import Job
from server.lanes.process.streaming import StreamingLane
from server.lanes.sweep import Choice, Shape, candidates, file_size, sweep
from server.lanes.thread import ThreadLane
from server.lanes.warmup import WarmUp, warm_up
from server.timeslice import LONG, USUAL

DEPTH = 2  # batches that a thread lane takes: the next one is there when a run ends
BUSY_LOOP = 0.7  # share of its time that the loop computes: from here on a thread lane's Python waits for the GIL, run after run
LOOK, LOOK_PATIENCE = 0.05, 2.0  # seconds


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What the settings ask for: `kind` auto, inline, thread or process; `count` and `threads` 0 for auto; `rows` are the sizes to warm
    up with, none: nothing is run. `memory_limit` (bytes), `pin` (each lane on cores of its own) and `run_limit` (seconds after which a
    run may count as hung) are for process lanes."""

    kind: str = "auto"
    count: int = 0
    threads: int = 0
    rows: tuple[int, ...] = (1, 8, 64)
    trust_batch_axis: bool = False
    memory_limit: int = 0
    pin: bool = False
    run_limit: float = PATIENCE.run
    decoupled: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """Open lanes of `threads` threads each, what warm-up measured, in words why these lanes, and the seconds that all this took."""

    lanes: tuple[Lane, ...]
    warmup: WarmUp
    why: str
    threads: int = 1
    seconds: float = 0.0


def open_lanes(spec: VariantSpec, plan: LanePlan, loop: asyncio.AbstractEventLoop) -> Opened:
    """Open and warm up the lanes of a variant. Raises ModelDefect; nothing stays open then."""
    begun = time.monotonic()
    return replace(_open(spec, plan, loop), seconds=time.monotonic() - begun)


def _open(spec: VariantSpec, plan: LanePlan, loop: asyncio.AbstractEventLoop) -> Opened:
    shapes = _shapes(spec, plan)
    spec = replace(spec, threads=shapes[0].threads)
    if spec.backend in ISOLATED:
        if plan.kind not in ("auto", "process"):
            raise ModelDefect(
                f"model {spec.model!r} version {spec.version}: lanes.kind is {plan.kind!r}, but backend {spec.backend!r} runs "
                "the user's own code, which has no place in the server's process: say process or auto"
            )
        return _in_processes(spec, plan, shapes, loop, f"backend {spec.backend} runs the user's own code")
    if plan.kind == "process":
        return _in_processes(spec, plan, shapes, loop, "as model.yaml says")
    if plan.kind == "auto" and spec.backend in WHOLE_PROCESS:
        return _in_processes(spec, plan, shapes, loop, f"the {spec.backend} backend sets its whole process")
    if plan.kind == "auto" and (busy := loop_busy(loop)) > BUSY_LOOP:
        return _in_processes(spec, plan, shapes, loop, f"the event loop was busy for {busy:.0%} of the time")
    return _in_this_process(spec, plan, shapes, loop)


def _shapes(spec: VariantSpec, plan: LanePlan) -> list[Shape]:
    """What may be tried. A GPU's work isn't done by the cores: one lane unless model.yaml says more."""
    threads = plan.threads or spec.threads
    if spec.device != "cpu":
        count = plan.count or 1
        return [Shape(count, threads or max(1, usable_cores() // count))]
    return candidates(usable_cores(), plan.count, threads)


def _in_this_process(spec: VariantSpec, plan: LanePlan, shapes: list[Shape], loop: asyncio.AbstractEventLoop) -> Opened:
    backend_class = backend_named(spec.backend)

    def open_backend(threads: int) -> Backend:
        return open_declared(backend_class, replace(spec, threads=threads))

    begun = time.monotonic()
    first = open_backend(spec.threads)
    try:
        opening = (time.monotonic() - begun, file_size(spec.path))
        warmup = warm_up(first, plan.rows, trust_batch_axis=plan.trust_batch_axis)
        kind, why = _kind(spec, plan, warmup)
        choice = _chosen(first, shapes, warmup, opening, open_backend) if kind == "thread" else Choice(Shape(1, spec.threads), (first,), "")
    except BaseException:
        first.close()
        raise
    named = [(_name(spec, number), backend) for number, backend in enumerate(choice.backends)]
    turns = LONG if spec.device == "cpu" and spec.backend != EMULATED else USUAL
    lanes: list[Lane] = [
        InlineLane(name, backend, loop) if kind == "inline" else ThreadLane(name, backend, loop, DEPTH, turns) for name, backend in named
    ]
    return Opened(tuple(lanes), warmup, _told(kind, choice.shape, why, choice.why), choice.shape.threads)


def _chosen(
    first: Backend, shapes: list[Shape], warmup: WarmUp, opening: tuple[float, int], open_backend: Callable[[int], Backend]
) -> Choice:
    """The sweep's choice, or as many backends as the only shape has."""
    if len(shapes) > 1:
        return sweep(first, shapes, warmup, opening, open_backend)
    shape = shapes[0]
    backends = [first]
    try:
        for _ in range(shape.count - 1):
            backends.append(open_backend(shape.threads))
            warm_up(backends[-1], (1,), trust_batch_axis=True)
    except BaseException:
        for backend in backends[1:]:
            backend.close()
        raise
    return Choice(shape, tuple(backends), "")


def _in_processes(spec: VariantSpec, plan: LanePlan, shapes: list[Shape], loop: asyncio.AbstractEventLoop, why: str) -> Opened:
    """The first child opens, warms up and sweeps; the others follow one by one, with what it found."""
    job = Job(spec, plan.rows, plan.trust_batch_axis, tuple(shapes), plan.memory_limit)
    kind = StreamingLane if plan.decoupled else ProcessLane
    first = kind.open(_name(spec, 0), job, loop, replace(PATIENCE, run=plan.run_limit))
    ready = first.ready
    lanes = [first]
    try:
        if plan.pin:
            first.pin(cores_of(0, ready.shape.threads))
        for number in range(1, ready.shape.count):
            lanes.append(first.sibling(_name(spec, number)))
            if plan.pin:
                lanes[-1].pin(cores_of(number, ready.shape.threads))
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return Opened(tuple(lanes), ready.warmup, _told("process", ready.shape, why, ready.why), ready.shape.threads)


def cores_of(number: int, threads: int) -> tuple[int, ...]:
    """The cores of lane `number` of those that have `threads` cores each to themselves, in turn."""
    usable = sorted(os.sched_getaffinity(0))
    return tuple(sorted({usable[(number * threads + index) % len(usable)] for index in range(threads)}))


def _kind(spec: VariantSpec, plan: LanePlan, warmup: WarmUp) -> tuple[str, str]:
    if plan.kind != "auto":
        return plan.kind, "as model.yaml says"
    if not warmup.latency:
        return "thread", "nothing was measured"
    rows, seconds = max(warmup.latency.items())
    measured = f"{rows} rows took {seconds * 1e6:.0f} µs at warm-up"
    inline = spec.device == "cpu" and seconds <= INLINE_LIMIT and plan.count <= 1
    return ("inline" if inline else "thread"), f"{measured}; a run is inline up to {INLINE_LIMIT * 1e6:.0f} µs"


def _name(spec: VariantSpec, number: int) -> str:
    return f"{spec.model}/{spec.version}/{spec.precision}#{number}"


def _told(kind: str, shape: Shape, why: str, measured: str) -> str:
    return f"{shape.count} x {kind} with {shape.threads} threads: {why}" + (f"; {measured}" if measured else "")


def loop_busy(loop: asyncio.AbstractEventLoop) -> float:
    """The share of LOOK seconds that the loop's thread wanted to compute; 0 for a loop that doesn't run. Time that it waited for a core
    counts, time that a crossing to it took doesn't: a machine that is busy with other things doesn't look like a busy loop."""
    if not loop.is_running():
        return 0.0
    looks: SimpleQueue[tuple[float, float]] = SimpleQueue()
    for delay in (0.0, LOOK):
        time.sleep(delay)
        loop.call_soon_threadsafe(lambda: looks.put((time.monotonic(), _wanted())))
    try:
        (begun, before), (ended, after) = looks.get(timeout=LOOK_PATIENCE), looks.get(timeout=LOOK_PATIENCE)
    except Empty:  # it doesn't come round at all
        return 1.0
    return min(1.0, (after - before) / (ended - begun))


def _wanted() -> float:
    """Seconds that this thread computed or waited for a core; only those that it computed where the kernel doesn't tell."""
    with suppress(OSError, ValueError):
        computed, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
        return (int(computed) + int(waited)) * 1e-9
    return time.thread_time()


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))
