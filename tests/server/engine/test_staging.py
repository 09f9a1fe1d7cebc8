"""A lane that takes two batches gets the second shortly before the first is expected to end, in memory of its own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from server.engine.admission import Terms
from server.engine.batcher import Batcher, BatchPolicy
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.lanes.thread import ThreadLane
from server.messages import InferResponse
from server.metrics.recorder import Recorder
from tests.server.engine.test_engine import KEY, Gated, ask, request

EXPECTED = {1: 0.03, 8: 0.03}  # seconds of a run: long enough to be worth it


def engine_of(depth: int) -> tuple[Engine, Gated]:
    backend = Gated()
    lane = ThreadLane("gated#0", backend, asyncio.get_running_loop(), depth)
    return Engine(
        KEY, [lane], Batcher(BatchPolicy(max_rows=4), CostModel(EXPECTED)), Recorder().figures(KEY), terms=Terms(), batched=True
    ), backend


def asked(engine: Engine, value: float) -> list[asyncio.Future[InferResponse]]:
    """Two requests that make a batch."""
    return [asyncio.ensure_future(ask(engine, request(np.full((2, 2), value + part, np.float32)))) for part in (0.0, 0.5)]


def waiting(engine: Engine) -> int:
    return engine.queue_rows


async def end(engine: Engine, backend: Gated) -> None:
    backend.go.set()
    await engine.drain()
    engine.close()


async def test_the_second_batch_is_in_the_lane_before_the_first_ends() -> None:
    engine, backend = engine_of(depth=2)
    first = asked(engine, 1.0)
    await asyncio.sleep(0)
    while waiting(engine):
        await asyncio.sleep(0)
    second = asked(engine, 3.0)
    await asyncio.sleep(0)
    assert waiting(engine) == 4
    async with asyncio.timeout(10):
        while waiting(engine):  # the gate is shut: only staging takes them out
            await asyncio.sleep(0.001)
    third = asked(engine, 5.0)
    await asyncio.sleep(0)
    assert (waiting(engine), backend.runs) == (4, [])
    backend.go.set()
    answers = await asyncio.gather(*first, *second, *third)
    assert [answer.outputs["y"].tolist() for answer in answers] == [[[value] * 2] * 2 for value in (1.0, 1.5, 3.0, 3.5, 5.0, 5.5)]
    assert backend.runs == [(4, 2)] * 3
    await end(engine, backend)


@pytest.mark.parametrize("depth", [1, 2])
async def test_all_are_answered_whatever_the_depth(depth: int) -> None:
    engine, backend = engine_of(depth)
    backend.go.set()
    for value in range(20):
        answers = await asyncio.gather(*asked(engine, value), *asked(engine, value + 100))
        assert [answer.outputs["y"][0, 0] for answer in answers] == [value, value + 0.5, value + 100, value + 100.5]
    await end(engine, backend)
    assert sum(rows for rows, _ in backend.runs) == 160
