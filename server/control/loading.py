"""The loader's thread: whatever blocks on a model's files or lanes runs there, one thing at a time.

Process lanes' children end with the thread that started them: this one lives as long as the lanes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from server.config import Settings
from server.engine.engine import Engine
from server.ensemble import Ensemble
from server.lanes.opening import LanePlan, Opened, open_lanes
from server.repository.declare.said import Loadable
from server.repository.loader import describe
from server.repository.store import Entry
from server.router.table import ServedVersion, engines_of
from server.sequences import Sequences
from server.timeslice import LONG, take_turns

DRAIN_POLL = 0.005  # seconds
T = TypeVar("T")
Ready: TypeAlias = tuple[Loadable, Opened | None]
"""What to serve, and its lanes; an ensemble has none."""


class Loader:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=take_turns, initargs=(LONG,))

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns or raises, in the loader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def open(self, entry: Entry, version: str) -> Ready:
        """Describe a version and open its lanes. Raises ModelDefect. Whoever no longer waits for that leaves nothing open."""
        opening = self._thread.submit(self._open, entry, version, asyncio.get_running_loop())
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)
            raise

    def _open(self, entry: Entry, version: str, loop: asyncio.AbstractEventLoop) -> Ready:
        loadable = describe(entry, version, self._settings)
        if loadable.config.ensemble is not None:
            return loadable, None
        lanes, batching, warmup = loadable.config.lanes, loadable.config.batching, loadable.config.warmup
        rows = () if warmup.skip or loadable.config.decoupled else warmup.rows or (1, 4, 16, batching.max_rows)
        plan = LanePlan(
            kind=lanes.kind,
            count=lanes.count or self._settings.lanes.count,
            threads=lanes.threads or self._settings.lanes.threads,
            rows=tuple(sorted({row for row in rows if row <= batching.max_rows})),
            trust_batch_axis=loadable.trust_batch_axis,
            memory_limit=lanes.memory_limit or 0,
            pin=lanes.pin,
            run_limit=lanes.run_limit,
            decoupled=loadable.config.decoupled,
        )
        return loadable, open_lanes(loadable.spec, plan, loop)

    async def retire(self, served: ServedVersion, timeout: float) -> None:
        """Let a version that gets no more requests answer those that it has, for `timeout` seconds, and give its lanes back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while isinstance(served.front, Ensemble | Sequences) and served.front.running:
                    await asyncio.sleep(DRAIN_POLL)
        await asyncio.gather(*(self.retire_engine(engine, timeout) for engine in engines_of(served)))

    async def retire_engine(self, engine: Engine, timeout: float) -> None:
        """The same for one engine; whoever no longer waits for that has it done at once."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await engine.drain()
        finally:
            engine.abandon()
            await self.run(engine.close)

    def shutdown(self) -> None:
        """Wait for what runs, and end the thread."""
        self._thread.shutdown()


def _discard(opening: Future[Ready]) -> None:
    """Close lanes that nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        _, opened = opening.result()
        for lane in opened.lanes if opened is not None else ():
            lane.close()
