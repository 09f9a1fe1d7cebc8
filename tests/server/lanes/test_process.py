"""What only a process lane does: it's lost and opened again, it's found hung, it's bounded, and it ends with whoever started it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import numpy as np
import pytest
import pytest_asyncio

from server.errors import BackendFailure, ModelDefect
from server.lanes.base import Loss, LossReason
from server.lanes.process.lane import Patience, ProcessLane
from server.lanes.process.messages import Job
from server.lanes.process.segments import FREE_BLOCKS, AnswerBlocks, OutputBlocks, map_segment, new_segment
from tests.architecture.house import ROOT
from tests.server.lanes.scripted import DIES, HANGS, KILLED, LOST, NAP, SLEEPS, spec_of
from tests.server.lanes.test_lanes import NAME, pairs, run, started

Open: TypeAlias = Callable[..., Awaitable[ProcessLane]]
SOON = Patience(run=0.3, times=20.0, silence=5.0, tick=0.05)
DEAF = Patience(run=60.0, times=20.0, silence=0.3, tick=0.05)


@pytest_asyncio.fixture
async def opened(scripted: str) -> AsyncIterator[Open]:
    loop = asyncio.get_running_loop()
    made: list[ProcessLane] = []

    async def build(patience: Patience = Patience(), memory_limit: int = 0, **options: object) -> ProcessLane:  # noqa: B008 - frozen
        job = Job(spec_of(**options), (1,), trust_batch_axis=True, memory_limit=memory_limit)
        made.append(await loop.run_in_executor(None, ProcessLane.open, NAME, job, loop, patience))
        return made[-1]

    yield build
    for lane in made:
        await loop.run_in_executor(None, lane.close)


async def renewed(lane: ProcessLane) -> ProcessLane:
    return await asyncio.get_running_loop().run_in_executor(None, lane.renew, lambda: True)


@pytest.mark.parametrize(("value", "how"), [(DIES, "ended with status 7"), (KILLED, "was ended by SIGKILL")])
async def test_a_death_in_a_run_is_a_result_that_says_so(opened: Open, value: float, how: str) -> None:
    lane = await opened()
    result = await run(lane, pairs(value), 1)
    assert result.loss == Loss(LossReason.DIED, f"its process {how}")
    assert isinstance(result.error, BackendFailure)
    assert how in str(result.error)
    again = await run(lane, pairs(0.0), 1)  # a lost lane answers each batch so
    assert again.loss == result.loss


async def test_a_lost_lane_is_opened_again(opened: Open) -> None:
    lane = await opened()
    await run(lane, pairs(DIES), 1)
    fresh = await renewed(lane)
    assert (await run(fresh, pairs(3.0), 1)).outputs["y"][0, 0] == 3.0
    assert fresh.name == lane.name
    assert fresh.pid != lane.pid
    await asyncio.get_running_loop().run_in_executor(None, fresh.close)


async def test_a_lost_gpu_ends_the_process_for_a_new_context(opened: Open) -> None:
    lane = await opened()
    result = await run(lane, pairs(LOST), 1)
    assert result.loss == Loss(LossReason.DIED, "its process ended with status 1")
    fresh = await renewed(lane)
    assert (await run(fresh, pairs(3.0), 1)).outputs["y"][0, 0] == 3.0
    await asyncio.get_running_loop().run_in_executor(None, fresh.close)


async def test_a_death_while_idle_is_told(opened: Open) -> None:
    lane = await opened()
    told: asyncio.Queue[Loss] = asyncio.Queue()
    lane.watch(told.put_nowait)
    os.kill(lane.pid, signal.SIGKILL)
    assert await told.get() == Loss(LossReason.DIED, "its process was ended by SIGKILL")
    lane.watch(told.put_nowait)  # too late to see it happen
    assert (await told.get()).reason is LossReason.DIED
    assert told.empty()


async def test_a_run_without_end_is_a_hang(opened: Open) -> None:
    lane = await opened(SOON)
    begun = monotonic()
    result = await run(lane, pairs(HANGS), 1)
    assert result.loss == Loss(LossReason.HUNG, "its process hung and was killed")
    assert monotonic() - begun >= SOON.run


async def test_a_process_that_answers_no_ping_is_a_hang(opened: Open) -> None:
    lane = await opened(DEAF)
    result = started(lane, pairs(HANGS), 1)
    os.kill(lane.pid, signal.SIGSTOP)
    loss = (await result).loss
    assert loss is not None
    assert loss.reason is LossReason.HUNG


async def test_a_long_run_that_answers_pings_is_none(opened: Open) -> None:
    lane = await opened(Patience(run=60.0, silence=NAP / 2, tick=NAP / 10))
    assert (await run(lane, pairs(SLEEPS), 1)).error is None


async def test_what_took_long_once_may_take_as_long_again(opened: Open) -> None:
    lane = await opened(Patience(run=NAP / 4, times=2.0, silence=5.0, tick=NAP / 20))
    lane._slowest = NAP  # seconds a byte, as a run at warm-up would have taught it
    assert (await run(lane, pairs(SLEEPS), 1)).error is None


async def test_a_defect_crosses_with_its_text(opened: Open) -> None:
    with pytest.raises(ModelDefect, match=r"^the file is bad, here$"):
        await opened(fail_open="the file is bad, here")


async def test_a_death_while_opening_is_a_defect(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(ModelDefect, match=r"model 'm' version 1: its process ended with status 9 while it opened the model"):
        await opened(die_at_open=str(tmp_path))


async def test_a_hang_while_opening_is_a_defect(opened: Open) -> None:
    with pytest.raises(ModelDefect, match=r"its process hung while it opened the model: no CPU time and nothing read for 1 s"):
        await opened(Patience(idle=1.0), hang_at_open=True)


async def test_opening_stops_when_nobody_wants_it(opened: Open) -> None:
    lane = await opened()
    with pytest.raises(ModelDefect, match="while it opened"):
        await asyncio.get_running_loop().run_in_executor(None, lane.renew, lambda: False)


async def test_signals_are_the_parents(opened: Open) -> None:
    lane = await opened()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(lane.pid, number)
    assert (await run(lane, pairs(1.0), 1)).error is None


async def test_priority_is_normal_once_it_serves(opened: Open) -> None:
    lane = await opened()
    tasks = [int(task) for task in os.listdir(f"/proc/{lane.pid}/task")]
    assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks} == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert all(os.sched_getaffinity(task) == os.sched_getaffinity(0) for task in tasks)


async def test_a_pinned_lane_stays_pinned(opened: Open) -> None:
    lane = await opened()
    core = max(os.sched_getaffinity(0))
    lane.pin((core,))
    assert os.sched_getaffinity(lane.pid) == {core}
    fresh = await renewed(lane)
    assert os.sched_getaffinity(fresh.pid) == {core}
    await asyncio.get_running_loop().run_in_executor(None, fresh.close)


async def test_over_its_memory_limit_a_run_fails_and_the_lane_lives_on(opened: Open) -> None:
    lane = await opened(memory_limit=400 << 20, width=1000)
    good = {"x": np.zeros((10, 1000), np.float32)}
    assert (await run(lane, good, 10)).error is None
    large = await run(lane, {"x": np.zeros((120_000, 1000), np.float32)}, 120_000)
    assert isinstance(large.error, BackendFailure)
    assert "MemoryError" in str(large.error)
    assert (await run(lane, good, 10)).error is None


async def test_a_closed_lane_leaves_no_process_and_no_memory(opened: Open) -> None:
    def shared() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))

    before = shared()
    lane = await opened(width=1000)
    x = lane.buffer("x", (20_000, 1000))
    x[:] = 1
    result = await run(lane, {"x": x}, 20_000)
    assert result.outputs["y"].all()
    assert shared() - before > 70_000
    pid = lane.pid
    await asyncio.get_running_loop().run_in_executor(None, lane.close)
    assert str(pid) not in os.listdir("/proc")
    assert result.outputs["y"].all()  # who holds an answer may still read it
    del x, result
    assert shared() - before < 1000


async def test_answer_memory_is_used_again(opened: Open) -> None:
    lane = await opened(width=1000)
    for _ in range(20):
        await run(lane, {"x": np.ones((100, 1000), np.float32)}, 100)
    assert len(lane._answers._memory) <= 2


ORPHAN = """
import asyncio, sys
from server.lanes.process.lane import ProcessLane
from server.lanes.process.messages import Job
from tests.server.lanes.scripted import HANGS, spec_of
from tests.server.lanes.test_lanes import pairs

async def main():
    loop = asyncio.get_running_loop()
    lane = await loop.run_in_executor(None, ProcessLane.open, "m", Job(spec_of(), (1,), True), loop)
    lane.submit(pairs(HANGS), 1, print)
    print(lane.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_it_dies_with_a_parent_that_is_killed(scripted: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    try:
        child = os.pidfd_open(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    gone, _, _ = select.select([child], [], [], 20)
    os.close(child)
    assert gone


def test_blocks_that_come_back_are_kept_up_to_a_few() -> None:
    blocks = OutputBlocks()
    lent = [blocks.write({"y": np.zeros(1 << size, np.uint8)})[0].segment for size in range(17, 17 + FREE_BLOCKS + 2)]
    blocks.give(lent)
    assert blocks.closed == lent[:2]
    assert blocks.write({"y": np.zeros(8, np.uint8)})[0].segment == lent[2]
    blocks.sent()


def test_a_segment_that_could_shrink_is_refused() -> None:
    fd = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(OSError, match="expected a segment sealed at 4096 bytes"):
        map_segment(fd, 4096)
    with pytest.raises(OSError, match="expected a segment sealed at 8192 bytes, got one of 4096"):
        map_segment(new_segment(4096), 8192)


def test_a_block_is_the_childs_again_when_the_last_view_dies() -> None:
    blocks, answers = OutputBlocks(), AnswerBlocks()
    parts = blocks.write({"a": np.arange(4, dtype=np.float32), "b": np.array([[b"x", b"yz"]], object)})
    answers.open(blocks.opened, blocks.fds)
    found = answers.tensors(parts)
    assert found["b"].tolist() == [[b"x", b"yz"]]
    view = found["a"][1:3].data
    del found
    assert not answers.returned
    assert view.tolist() == [1.0, 2.0]
    del view
    assert list(answers.returned) == [parts[0].segment]
