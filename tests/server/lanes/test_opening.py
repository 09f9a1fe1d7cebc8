"""From a plan to open lanes: of the kind asked for, or of the kind that what was measured calls for; and why."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import pytest_asyncio

from server.backends.base import VariantSpec
from server.errors import ModelDefect
from server.lanes.opening import LanePlan, Opened, cores_of, loop_busy, open_lanes, usable_cores
from server.lanes.process.lane import ProcessLane
from tests.server.lanes.scripted import spec_of
from tests.server.lanes.test_lanes import run
from tests.server.models import linear_model, slow_model

Open: TypeAlias = Callable[..., Awaitable[Opened]]


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    loop = asyncio.get_running_loop()
    made: list[Opened] = []

    async def build(path: Path, **plan: Any) -> Opened:
        spec = VariantSpec("m", "1", "fp32", "onnxruntime", path)
        made.append(await loop.run_in_executor(None, open_lanes, spec, LanePlan(**plan), loop))
        return made[-1]

    yield build
    for found in made:
        for lane in found.lanes:
            await loop.run_in_executor(None, lane.close)


async def test_a_model_of_short_runs_is_inline(opened: Open, tmp_path: Path) -> None:
    found = await opened(linear_model(tmp_path / "model.onnx"))
    assert [lane.kind for lane in found.lanes] == ["inline"]
    assert "a run is inline up to 200 µs" in found.why


@pytest.mark.parametrize("kind", ["auto", "thread", "process"])
async def test_count_and_threads_are_measured(opened: Open, tmp_path: Path, kind: str) -> None:
    found = await opened(slow_model(tmp_path / "model.onnx", width=512), kind=kind, rows=(1, 8))
    assert {lane.kind for lane in found.lanes} == {"thread" if kind == "auto" else kind}
    assert found.why.startswith(f"{len(found.lanes)} x {found.lanes[0].kind} with {found.threads} threads: ")
    assert found.warmup.latency.keys() == {1, 8}
    if usable_cores() > 1:
        assert "rows/s measured at warm-up: 1 x " in found.why
    x = np.ones((3, 512), np.float32)
    for lane in found.lanes:
        np.testing.assert_array_equal((await run(lane, {"x": x}, 3)).outputs["y"], x)


@pytest.mark.parametrize("kind", ["thread", "process"])
async def test_what_the_settings_say_isnt_measured(opened: Open, tmp_path: Path, kind: str) -> None:
    found = await opened(linear_model(tmp_path / "model.onnx"), kind=kind, count=3, threads=1)
    assert [(lane.kind, lane.name) for lane in found.lanes] == [(kind, f"m/1/fp32#{number}") for number in range(3)]
    assert found.threads == 1
    assert found.why == f"3 x {kind} with 1 threads: as model.yaml says"


async def test_process_lanes_have_processes_of_their_own(opened: Open, tmp_path: Path) -> None:
    found = await opened(linear_model(tmp_path / "model.onnx"), kind="process", count=2, threads=1, pin=True)
    pids = {lane.pid for lane in found.lanes if isinstance(lane, ProcessLane)}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {frozenset(os.sched_getaffinity(pid)) for pid in pids} == {frozenset(cores_of(number, 1)) for number in range(2)}


async def test_what_is_wrong_with_the_model_is_said_from_the_process_too(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(ModelDefect) as here:
        await opened(tmp_path / "none.onnx", kind="thread")
    with pytest.raises(ModelDefect) as there:
        await opened(tmp_path / "none.onnx", kind="process")
    assert str(here.value) == str(there.value)


async def test_a_second_lane_that_cant_be_opened_closes_the_first(scripted: str) -> None:
    loop = asyncio.get_running_loop()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ModelDefect):
        await loop.run_in_executor(None, open_lanes, spec_of(fail_open="bad"), LanePlan("process", count=2, threads=1), loop)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_a_busy_loop_calls_for_process_lanes(opened: Open, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def hog() -> None:
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass
        if not stop.is_set():
            loop.call_soon(hog)

    loop.call_soon(hog)
    try:
        found = await opened(linear_model(tmp_path / "model.onnx"))
    finally:
        stop.set()
    assert [lane.kind for lane in found.lanes] == ["process"]
    assert "the event loop was busy for" in found.why


def test_a_loop_that_doesnt_run_isnt_busy() -> None:
    loop = asyncio.new_event_loop()
    assert loop_busy(loop) == 0.0
    loop.close()


def test_pinned_lanes_take_cores_in_turn() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert cores_of(0, 1) == (cores[0],)
    assert cores_of(len(cores), 1) == (cores[0],)
    assert cores_of(0, 2 * len(cores)) == tuple(cores)
