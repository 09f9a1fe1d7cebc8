"""Asks as planned and notes what came of it. In an open loop a request goes out when it's due, however many are still unanswered.

A thread keeps the time: an event loop's timers are whole milliseconds, which is more than a small model takes. What the generator itself
is late by is part of the figures; a run in which it fell behind says so.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import monotonic, process_time, sleep
from typing import Protocol

import numpy as np

from loadtests.clients.base import Answer, Client
from loadtests.running.plan import Plan, Shot
from loadtests.samples import Floats, Outcome, RunFacts, Samples

GRACE = 1.0  # seconds over the client's patience that answers may take after the end
TICK = 1.0  # seconds between progress reports
MOST_REASONS = 20
PAUSE = 0.05  # seconds that a user of a closed loop waits after a failure: one that can't connect would ask without end


@dataclass(frozen=True, slots=True)
class Progress:
    """How a run goes. `at` and `end` are seconds from its begin."""

    at: float
    end: float
    sent: int
    answered: int
    failed: int
    in_flight: int


class Tell(Protocol):
    """Is told how a run goes, once a second."""

    def __call__(self, progress: Progress) -> None: ...


class _Notes:
    """What came of each request so far. In a closed loop it grows."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.due: list[float] = []
        self.sent: list[float] = []
        self.done: list[float] = []
        self.outcome: list[int] = []
        self.kind: list[int] = []
        self.rows: list[int] = []
        self.runs: list[RunFacts] = []
        self.why: Counter[str] = Counter()
        self.counts = [0] * len(Outcome)

    def sends(self, shot: Shot, due: float, now: float) -> int:
        """Note that a request goes out; its number."""
        self.due.append(due)
        self.sent.append(now - self.begun)
        self.done.append(float("nan"))
        self.outcome.append(Outcome.UNSENT)
        self.kind.append(shot.kind)
        self.rows.append(shot.rows)
        return len(self.due) - 1

    def ends(self, number: int, answer: Answer) -> None:
        self.done[number] = monotonic() - self.begun
        self.outcome[number] = answer.outcome
        self.counts[answer.outcome] += 1
        if answer.run is not None:
            self.runs.append(answer.run)
        if answer.why and (answer.why in self.why or len(self.why) < MOST_REASONS):
            self.why[answer.why] += 1

    def progress(self, end: float) -> Progress:
        answered = self.counts[Outcome.ANSWERED]
        over = sum(self.counts)
        return Progress(monotonic() - self.begun, end, len(self.due), answered, over - answered, len(self.due) - over)

    def samples(self, plan: Plan, cpu: float) -> Samples:
        return Samples(
            plan.kinds,
            plan.warmup,
            plan.end,
            np.asarray(self.due),
            np.asarray(self.sent),
            np.asarray(self.done),
            np.asarray(self.outcome, np.int8),
            np.asarray(self.kind, np.int16),
            np.asarray(self.rows, np.int32),
            self.runs,
            dict(self.why.most_common()),
            cpu,
        )


async def run(plan: Plan, client: Client, users: int, patience: float, tell: Tell) -> Samples:
    """Ask all that is planned: by due times, or in a closed loop of `users`. Cancelled, it gives nothing."""
    gc.collect()
    gc.freeze()  # what is planned isn't walked through again while time is taken
    begun, cpu = monotonic(), process_time()
    notes = _Notes(begun)
    telling = asyncio.ensure_future(_tell(notes, plan.end, tell))
    try:
        if len(plan.due):
            await _OpenLoop(plan, client, notes).run(patience)
        else:
            await _closed_loop(plan, client, notes, users)
    finally:
        gc.unfreeze()
        telling.cancel()
    return notes.samples(plan, (process_time() - cpu) / max(1e-9, monotonic() - begun))


class _OpenLoop:
    """Requests as they fall due. `fire` is called in the loop, by the thread that keeps the time."""

    def __init__(self, plan: Plan, client: Client, notes: _Notes) -> None:
        self._plan = plan
        self._client = client
        self._notes = notes
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[Outcome]] = set()
        self._every_sent = asyncio.Event()
        self._stop = threading.Event()
        self._upto = 0

    def fire(self, upto: int) -> None:
        now = monotonic()
        for index in range(self._upto, upto):
            shot = self._plan.shots[index]
            number = self._notes.sends(shot, float(self._plan.due[index]), now)
            task = self._loop.create_task(_ask(self._client, shot, self._notes, number))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        self._upto = upto
        if upto == len(self._plan.due):
            self._every_sent.set()

    async def run(self, patience: float) -> None:
        """Until every request is answered, or `patience` seconds after the last was sent."""
        due = partial(_in_loop, self._loop, self.fire)
        pacer = threading.Thread(target=_pace, args=(self._plan.due, self._notes.begun, self._stop, due), daemon=True)
        pacer.start()
        try:
            await self._every_sent.wait()
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=patience + GRACE)
        finally:
            self._stop.set()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            await asyncio.to_thread(pacer.join)


def _in_loop(loop: asyncio.AbstractEventLoop, fire: Callable[[int], None], upto: int) -> None:
    loop.call_soon_threadsafe(fire, upto)


def _pace(due: Floats, begun: float, stop: threading.Event, fire: Callable[[int], object]) -> None:
    """Say how many are due, each time that more are, until all are or `stop` is set. A thread of its own."""
    upto = 0
    while upto < len(due) and not stop.is_set():
        now = monotonic() - begun
        found = int(np.searchsorted(due, now, side="right"))
        if found > upto:
            fire(upto := found)
        else:
            sleep(min(0.1, max(0.0, due[upto] - now)))


async def _closed_loop(plan: Plan, client: Client, notes: _Notes, users: int) -> None:
    turns = count()
    end = notes.begun + plan.end

    async def user() -> None:
        while (now := monotonic()) < end:
            shot = plan.shots[next(turns) % len(plan.shots)]
            outcome = await _ask(client, shot, notes, notes.sends(shot, now - notes.begun, now))
            if outcome is Outcome.FAILED:
                await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())


async def _ask(client: Client, shot: Shot, notes: _Notes, number: int) -> Outcome:
    answer = await client.ask(shot.prepared, shot.headers)
    notes.ends(number, answer)
    return answer.outcome


async def _tell(notes: _Notes, end: float, tell: Tell) -> None:
    while True:
        await asyncio.sleep(TICK)
        tell(notes.progress(end))
