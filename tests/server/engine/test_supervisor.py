"""The engine over process lanes that die: nobody's request is lost, the one that kills is found, and the lanes come back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
import pytest
import pytest_asyncio

from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.engine import Engine
from server.errors import BackendFailure, DeadlineExceeded, Draining, ModelUnavailable
from server.lanes.process.lane import Patience, ProcessLane
from server.lanes.process.messages import Job
from server.messages import InferRequest, InferResponse, Layout, ModelKey
from server.metrics.recorder import Recorder
from tests.server.lanes.scripted import DIES, HANGS, KILLED, PID, spec_of

KEY = ModelKey("m", "1", "fp32")
Open: TypeAlias = Callable[..., Awaitable[Engine]]
QUICK = Patience(run=0.3, times=20.0, silence=5.0, tick=0.05)


def request(value: float, second: float = 0.0, **changes: Any) -> InferRequest:
    inputs = {"x": np.array([[value, second]], np.float32)}
    return InferRequest("m", inputs, Layout((("x", "FP32", (1, 2)),)), **changes)


def ask(engine: Engine, value: float, second: float = 0.0, **changes: Any) -> asyncio.Future[InferResponse]:
    future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
    engine.submit(request(value, second, **changes), lambda response, final: future.set_result(response))
    return future


@pytest_asyncio.fixture
async def opened(scripted: str) -> AsyncIterator[Open]:
    loop = asyncio.get_running_loop()
    made: list[Engine] = []

    async def build(count: int = 1, patience: Patience = QUICK, **options: object) -> Engine:
        job = Job(spec_of(**options), (1,), trust_batch_axis=True)
        lanes = [await loop.run_in_executor(None, ProcessLane.open, f"m/1/fp32#{number}", job, loop, patience) for number in range(count)]
        made.append(Engine(KEY, lanes, Batcher(BatchPolicy()), Recorder().figures(KEY), terms=Terms(), batched=True))
        return made[-1]

    yield build
    for engine in made:
        engine.abandon()
        await loop.run_in_executor(None, engine.close)


def pids(engine: Engine) -> list[int]:
    return [lane.pid for lane in engine.lanes if isinstance(lane, ProcessLane)]


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = monotonic() + seconds
    while not holds():
        assert monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.01)


async def test_a_killed_lane_costs_no_request(opened: Open) -> None:
    engine = await opened(count=2)
    for _ in range(3):
        waiting = [ask(engine, float(number)) for number in range(40)]
        await asyncio.sleep(0)
        killed = pids(engine)[0]
        os.kill(killed, signal.SIGKILL)
        waiting += [ask(engine, float(number)) for number in range(40, 80)]
        answers = await asyncio.gather(*waiting)
        assert [answer.error for answer in answers] == [None] * 80
        assert [answer.outputs["y"][0, 0] for answer in answers] == list(range(80))
        await until(partial(lambda pid: pid not in pids(engine), killed))
    assert engine.supervisor.restarts["died"] == 3


async def test_a_lane_that_dies_idle_is_back_by_itself(opened: Open) -> None:
    engine = await opened()
    old = pids(engine)
    events: list[str] = []
    engine.supervisor.on_event = lambda event, facts: events.append(event)
    os.kill(old[0], signal.SIGKILL)
    await until(lambda: pids(engine) != old and "lane_restarted" in events)
    assert events == ["lane_lost", "lane_restarted"]
    assert (await ask(engine, 1.0)).error is None


@pytest.mark.parametrize(
    ("value", "how"), [(DIES, "ended with status 7"), (KILLED, "was ended by SIGKILL"), (HANGS, "hung and was killed")]
)
@pytest.mark.parametrize("neighbours", [0, 20])
async def test_only_the_request_that_kills_fails(opened: Open, value: float, how: str, neighbours: int) -> None:
    engine = await opened()
    waiting = [ask(engine, float(number)) for number in range(neighbours)]
    killer = ask(engine, value, id="bad")
    waiting += [ask(engine, float(number)) for number in range(neighbours, 2 * neighbours)]
    answers = await asyncio.gather(*waiting)
    assert [answer.error for answer in answers] == [None] * 2 * neighbours
    assert [answer.outputs["y"][0, 0] for answer in answers] == list(range(2 * neighbours))
    error = (await killer).error
    assert isinstance(error, BackendFailure)
    assert f"the model's process was killed by this input: its process {how}" in str(error)
    with pytest.raises(BackendFailure, match="this very input killed the model's process; it's refused for"):
        ask(engine, value)
    assert (await ask(engine, value - 0.5)).error is None


async def test_others_are_served_while_the_killer_is_sought(opened: Open) -> None:
    engine = await opened(count=2)
    killers = [ask(engine, DIES, float(number)) for number in range(3)]
    await until(lambda: engine.queue_rows == 0)
    answered = 0
    while not all(killer.done() for killer in killers):
        assert (await ask(engine, 1.0)).error is None
        answered += 1
        await asyncio.sleep(0.005)
    assert all(isinstance(answer.error, BackendFailure) for answer in await asyncio.gather(*killers))
    assert answered > 20


async def test_the_quarantine_lane_goes_when_its_work_is_done(opened: Open) -> None:
    others = _children()  # of tests that ran before in this process
    engine = await opened()
    await ask(engine, DIES)
    await until(lambda: engine.supervisor._quarantine is None and not engine.supervisor.busy)
    assert (await ask(engine, PID)).outputs["y"][0, 0] == pids(engine)[0]
    await until(lambda: _children() == others + len(pids(engine)))


def _children() -> int:
    found = 0
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += len(file.read().split())
    return found


async def test_while_no_lane_is_left_deadlines_are_kept(opened: Open, tmp_path: Path) -> None:
    engine = await opened(die_at_open=str(tmp_path / "broken"))
    (tmp_path / "broken").touch()
    first = ask(engine, DIES, deadline=monotonic() + 0.3)
    await asyncio.sleep(0.05)
    second = ask(engine, 1.0, deadline=monotonic() + 0.3)
    assert isinstance((await first).error, DeadlineExceeded)
    assert isinstance((await second).error, DeadlineExceeded)


async def test_lanes_that_cant_be_opened_take_the_model_down_until_they_can(opened: Open, tmp_path: Path) -> None:
    engine = await opened(die_at_open=str(tmp_path / "broken"))
    events: list[str] = []
    engine.supervisor.on_event = lambda event, facts: events.append(event)
    (tmp_path / "broken").touch()
    os.kill(pids(engine)[0], signal.SIGKILL)
    await until(lambda: "lane_lost" in events)
    waiting = ask(engine, 1.0)
    error = (await waiting).error
    assert isinstance(error, ModelUnavailable)
    assert "lane restarting: 3 losses in a row, the next try in 1.0 s" in str(error)
    with pytest.raises(ModelUnavailable, match="lane restarting"):
        ask(engine, 1.0)
    (tmp_path / "broken").unlink()
    await until(lambda: "lanes_up" in events)
    assert (await ask(engine, 1.0)).error is None
    assert events.count("lanes_down") == 1


async def test_a_drain_waits_for_what_is_tried_again(opened: Open) -> None:
    engine = await opened()
    waiting = [ask(engine, float(number)) for number in range(4)]
    await asyncio.sleep(0)
    os.kill(pids(engine)[0], signal.SIGKILL)
    await engine.drain()
    assert [(await answer).error for answer in waiting] == [None] * 4


async def test_what_waits_for_a_lane_is_answered_at_the_end(opened: Open, tmp_path: Path) -> None:
    engine = await opened(die_at_open=str(tmp_path / "broken"))
    (tmp_path / "broken").touch()
    waiting = ask(engine, DIES)
    await until(lambda: engine.supervisor.busy)
    engine.abandon()
    assert isinstance((await waiting).error, Draining)
    await asyncio.wait_for(engine.drain(), 5.0)


async def test_a_cancelled_request_isnt_tried_again(opened: Open) -> None:
    engine = await opened()
    answers: list[InferResponse] = []
    ticket = engine.submit(request(DIES), lambda response, final: answers.append(response))
    await asyncio.sleep(0.001)
    ticket.cancel()
    await until(lambda: any(engine.supervisor.restarts.values()) and not engine.supervisor.busy)
    assert (await ask(engine, 1.0)).error is None
    assert engine.supervisor.restarts["died"] == 1
    assert answers == []
