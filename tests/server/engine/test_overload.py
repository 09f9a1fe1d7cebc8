"""The engine under overload: refusals are early, name their limit and say when to come back; who is late or gone reaches no lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.cost_model import CostModel
from server.engine.decide.turns import Tenant
from server.engine.engine import Engine
from server.engine.request_queue import QueueLimits
from server.errors import DeadlineExceeded, Overloaded
from server.lanes.thread import ThreadLane
from server.messages import InferRequest, InferResponse
from server.metrics.recorder import Recorder
from tests.server.engine.test_engine import KEY, Gated, ask, request

POLICY = BatchPolicy(max_rows=8, priorities=3, tenants={"small": Tenant(rows_per_s=4), "narrow": Tenant(bytes_per_s=64)})
SLOW = {1: 3600.0, 8: 3600.0}  # whoever waits for a run of this has lost


def row(rows: int = 1, **more: object) -> InferRequest:
    return request(np.zeros((rows, 2), np.float32), **more)


def engine_of(policy: BatchPolicy, costs: CostModel | None = None, limits: QueueLimits | None = None) -> tuple[Engine, Gated]:
    backend = Gated()
    lane = ThreadLane("gated#0", backend, asyncio.get_running_loop())
    return Engine(KEY, [lane], Batcher(policy, costs), Recorder().figures(KEY), terms=Terms(limits or QueueLimits()), batched=True), backend


async def end(engine: Engine, backend: Gated) -> None:
    backend.go.set()
    await engine.drain()
    engine.close()


@pytest_asyncio.fixture
async def gated() -> AsyncIterator[tuple[Engine, Gated]]:
    engine, backend = engine_of(POLICY, limits=QueueLimits(rows=100, bytes=512))
    yield engine, backend
    await end(engine, backend)


async def occupy(engine: Engine) -> asyncio.Future[InferResponse]:
    """Have a run in the lane that lasts until the test opens the gate."""
    running = asyncio.ensure_future(ask(engine, row(8)))
    await asyncio.sleep(0)
    while engine.queue_rows:
        await asyncio.sleep(0)
    return running


async def test_a_request_that_cannot_be_in_time_is_refused_on_arrival() -> None:
    engine, backend = engine_of(POLICY, CostModel(SLOW))
    with pytest.raises(DeadlineExceeded, match="can't be answered by its deadline") as refused:
        await ask(engine, row(deadline=time.monotonic() + 60))
    assert refused.value.retry_after >= 0
    assert (engine.figures.drops["hopeless"], engine.queue_rows, engine.offered_rows) == (1, 0, 1)
    await end(engine, backend)
    assert backend.runs == []


async def test_who_expires_while_he_waits_is_answered_and_never_runs(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    running = await occupy(engine)
    deadline = time.monotonic() + 0.02
    late, live = (asyncio.ensure_future(ask(engine, row(n, deadline=d))) for n, d in ((1, deadline), (2, None)))
    await asyncio.sleep(0)
    while time.monotonic() <= deadline:
        await asyncio.sleep(0.001)
    backend.go.set()
    assert isinstance((await late).error, DeadlineExceeded)
    assert ((await live).error, (await running).error) == (None, None)
    assert backend.runs == [(8, 2), (2, 2)]
    assert engine.figures.drops["expired"] == 1


async def test_who_expires_is_told_at_his_deadline_though_the_lane_is_busy(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    running = await occupy(engine)
    now = time.monotonic()
    late = [asyncio.ensure_future(ask(engine, row(deadline=now + seconds))) for seconds in (0.03, 0.01, 0.02)]
    live = asyncio.ensure_future(ask(engine, row(deadline=now + 3600)))
    answers = await asyncio.wait_for(asyncio.gather(*late), 10)  # and not when the gate opens, which nobody does meanwhile
    assert all(isinstance(answer.error, DeadlineExceeded) for answer in answers)
    assert not running.done()
    assert engine.figures.drops["expired"] == 3
    backend.go.set()
    assert ((await live).error, (await running).error) == (None, None)
    assert backend.runs == [(8, 2), (1, 2)]


async def test_who_leaves_while_his_run_lasts_gets_no_answer(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    answers: list[InferResponse] = []
    ticket = engine.submit(row(), lambda response, final: answers.append(response))
    while engine.queue_rows:
        await asyncio.sleep(0)
    ticket.cancel()
    backend.go.set()
    await engine.drain()
    assert (answers, backend.runs) == ([], [(1, 2)])


async def test_the_queue_is_bounded_in_bytes(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    running = await occupy(engine)
    waiting = [asyncio.ensure_future(ask(engine, row(8))) for _ in range(8)]  # 64 bytes each
    await asyncio.sleep(0)
    assert engine.queue_bytes == 512
    with pytest.raises(Overloaded, match=r"maximum queue size of 512 bytes \(limit: queue\.max_bytes\)"):
        await ask(engine, row())
    backend.go.set()
    assert {answer.error for answer in await asyncio.gather(running, *waiting)} == {None}
    assert engine.queue_bytes == 0


@pytest.mark.parametrize(
    ("tenant", "size", "limit"), [("small", 4, r"queue\.tenants\.small\.rows_per_s"), ("narrow", 8, r"queue\.tenants\.narrow\.bytes_per_s")]
)
async def test_a_tenant_has_his_quota(gated: tuple[Engine, Gated], tenant: str, size: int, limit: str) -> None:
    engine, backend = gated
    backend.go.set()
    assert (await ask(engine, row(size, tenant=tenant))).error is None
    with pytest.raises(Overloaded, match=limit) as refused:
        await ask(engine, row(size, tenant=tenant))
    assert 0 < refused.value.retry_after <= 1
    assert (await ask(engine, row(size, tenant="other"))).error is None


async def test_low_priorities_can_be_shed_and_taken_again(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    running = await occupy(engine)
    low, high = (asyncio.ensure_future(ask(engine, row(priority=priority))) for priority in (0, 1))
    await asyncio.sleep(0)
    engine.shed(2)
    assert "min_priority" in str((await low).error)
    with pytest.raises(Overloaded, match=r"takes only priorities up to 2 now, got 3 \(limit: min_priority\)"):
        await ask(engine, row(priority=3))
    engine.shed(None)
    again = asyncio.ensure_future(ask(engine, row(priority=3)))
    await asyncio.sleep(0)
    backend.go.set()
    assert [(await one).error for one in (running, high, again)] == [None] * 3


async def test_a_held_batch_runs_when_its_wait_is_over() -> None:
    engine, backend = engine_of(replace(POLICY, max_wait=0.02))
    backend.go.set()
    first = asyncio.ensure_future(ask(engine, row()))
    await asyncio.sleep(0.002)
    answers = await asyncio.gather(first, ask(engine, row()))
    assert backend.runs == [(2, 2)]
    assert {answer.batch.reason for answer in answers if answer.batch is not None} == {"hold"}
    await end(engine, backend)


async def test_a_held_batch_that_fills_runs_at_once() -> None:
    engine, backend = engine_of(replace(POLICY, max_wait=3600.0))
    backend.go.set()
    answers = await asyncio.gather(*(ask(engine, row()) for _ in range(8)))
    assert {answer.batch.reason for answer in answers if answer.batch is not None} == {"full"}
    await end(engine, backend)


async def test_the_engine_learns_from_its_runs(gated: tuple[Engine, Gated]) -> None:
    engine, backend = gated
    backend.go.set()
    for rows in (1, 4):
        await ask(engine, row(rows))
    await engine.drain()
    assert (engine.batcher.costs.runs, engine.offered_rows) == (2, 5)
    assert engine.batcher.costs.mean(8) >= engine.batcher.costs.mean(1) > 0
