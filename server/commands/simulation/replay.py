"""Arrivals through the real queue, batcher and cost model, under simulated time and on simulated lanes: what a setting would have done.

Pure: nothing waits, no clock is read. What isn't simulated: the server's own overhead (some 0.1 ms a run), clients that go away, other
models on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from typing import Any, Protocol

import numpy as np

from server.backends.latency_table import Curve
from server.engine.batcher import Batcher, BatchPolicy, Cut
from server.engine.cost_model import Capacity, CostModel
from server.engine.request_queue import RequestQueue, Ticket
from server.messages import InferRequest, Layout
from server.recording import Arrival

LAYOUT = Layout(())
SEED = 1
WARMUP_ROWS = (1, 8, 64)
QUEUE_FULL = "queue_full"
TOO_LARGE = "too_large"
LEAST_WAKE = 1e-6  # seconds: simulated time always goes on
TICK = 256  # arrivals between two reports of progress


class Device(Protocol):
    """Where runs happen."""

    def warmup(self) -> Mapping[int, float]:
        """Seconds by rows that the cost model starts from, with `length` cells a row."""
        ...

    @property
    def length(self) -> int: ...

    def seconds(self, rows: int, length: int) -> float:
        """What the next run takes."""
        ...


class TableDevice:
    """A published table's times, with its noise; they don't depend on length."""

    length = 1

    def __init__(self, curve: Curve, seed: int = SEED) -> None:
        self._curve = curve
        self._random = np.random.default_rng(seed)

    def warmup(self) -> Mapping[int, float]:
        return {rows: self._curve.seconds(rows) for rows in WARMUP_ROWS}

    def seconds(self, rows: int, length: int) -> float:
        return self._curve.noisy_seconds(rows, self._random)


@dataclass(frozen=True, slots=True)
class FittedDevice:
    """T = a + c1·x + c2·x·length with x = rows·length cells, without noise: what was learned elsewhere. `length` is what is usual."""

    a: float
    c1: float
    c2: float
    length: int = 1

    def warmup(self) -> Mapping[int, float]:
        return {rows: self.seconds(rows, self.length) for rows in WARMUP_ROWS}

    def seconds(self, rows: int, length: int) -> float:
        cells = rows * length
        return self.a + self.c1 * cells + self.c2 * cells * length


@dataclass(frozen=True, slots=True)
class Setting:
    """What is tried. `device` makes a fresh one, so that settings see the same noise. `objective` takes the place of recorded deadlines:
    as a deadline where policy.on_late is reject, else as an aim. `speed` is how much faster than recorded the arrivals come."""

    name: str
    policy: BatchPolicy
    device: Callable[[], Device]
    max_queue_rows: int = 1024
    speed: float = 1.0


@dataclass(slots=True)
class Outcome:
    """What came of a setting; times in seconds. `in_time` counts answers within their deadline or the objective, all without either."""

    name: str
    requests: int = 0
    answered: int = 0
    in_time: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    rows: int = 0
    busy: float = 0.0
    seconds: float = 0.0
    lanes: int = 1
    capacity: Capacity = field(default_factory=lambda: Capacity(0, 0.0))

    def figures(self) -> dict[str, Any]:
        """Plain data, for people and programs."""
        span = max(self.seconds, 1e-9)
        return {
            "name": self.name,
            "requests": self.requests,
            "answered": self.answered,
            "in_time": self.in_time,
            "in_time_share": self.in_time / max(1, self.requests),
            "late": self.answered - self.in_time,
            "dropped": dict(self.dropped),
            "goodput_per_s": self.in_time / span,
            "p50_ms": _quantile(self.latencies, 0.5),
            "p99_ms": _quantile(self.latencies, 0.99),
            "mean_rows": self.rows / max(1, self.batches),
            "batches": self.batches,
            "reasons": dict(self.reasons),
            "utilisation": self.busy / (span * self.lanes),
            "capacity_rows": self.capacity.rows,
            "capacity_rows_per_s": self.capacity.rate * self.lanes,
        }


def replay(arrivals: Sequence[Arrival], setting: Setting, progress: Callable[[int], None] = lambda done: None) -> Outcome:
    """Try a setting on arrivals in order of time; `progress` is told how many were seen, now and then."""
    run = _Run(setting)
    begun = arrivals[0].t if arrivals else 0.0
    for number, arrival in enumerate(arrivals):
        at = (arrival.t - begun) / setting.speed
        run.until(at)
        run.arrive(arrival, at)
        if number + 1 == len(arrivals) or (arrivals[number + 1].t - begun) / setting.speed > at:
            run.dispatch(at)
        if number % TICK == 0:
            progress(number)
    run.until(inf)
    progress(len(arrivals))
    return run.outcome()


class _Run:
    """One setting under way. `running` is a heap of runs by their end; `free` counts idle lanes."""

    def __init__(self, setting: Setting) -> None:
        self.policy = setting.policy
        self.setting = setting
        self.device = setting.device()
        self.costs = CostModel(self.device.warmup(), self.device.length)
        self.batcher = Batcher(setting.policy, self.costs)
        self.queue = RequestQueue(setting.policy.length_buckets)
        self.running: list[tuple[float, int, float, Cut, float]] = []
        self.free = setting.policy.lanes
        self.wake = inf
        self.ended = 0.0
        self.order = count()
        self.found = Outcome(setting.name, lanes=setting.policy.lanes)

    def outcome(self) -> Outcome:
        self.found.seconds = self.ended
        self.found.latencies.sort()
        self.found.capacity = self.costs.capacity(self.policy.latency_objective, self.policy.max_rows, self.device.length)
        return self.found

    def until(self, moment: float) -> None:
        """All that happens before `moment` by itself: runs end, holds are over."""
        while (now := min(self.running[0][0] if self.running else inf, self.wake)) <= moment and now < inf:
            while self.running and self.running[0][0] <= now:
                self._end(*heappop(self.running))
            if self.wake <= now:
                self.wake = inf
            self.dispatch(now)

    def arrive(self, arrival: Arrival, now: float) -> None:
        """What Engine.submit does: refuse at the door, or let it wait."""
        found, request = self.found, self._request(arrival, now)
        found.requests += 1
        self.ended = max(self.ended, now)
        if request.rows > self.policy.max_rows:
            found.dropped[TOO_LARGE] += 1
            return
        ticket = Ticket(request, _nobody, "", self.policy.priorities, self.policy.patience)
        if self.queue.rows + request.rows > self.setting.max_queue_rows:
            self.queue.arrived += request.rows
            found.dropped[QUEUE_FULL] += 1
        elif self.batcher.hopeless(ticket, self.queue, now if self.free else max(now, self._busy()[0])):
            self.queue.arrived += request.rows
            found.dropped["hopeless"] += 1
        else:
            self.queue.push(ticket)

    def _request(self, arrival: Arrival, now: float) -> InferRequest:
        limit, objective = arrival.deadline, self.policy.latency_objective
        if objective is not None:
            limit = objective if self.policy.on_late == "reject" else None
        return InferRequest(
            arrival.model,
            {},
            LAYOUT,
            received=now,
            queued=now,
            deadline=None if limit is None else now + limit,
            rows=arrival.rows,
            length=arrival.length,
            priority=arrival.priority,
            tenant=arrival.tenant,
        )

    def dispatch(self, now: float) -> None:
        """What Scheduler does at the end of a turn: a cut for each free lane, until nothing may run."""
        while self.free and self.queue.lines:
            cut = self.batcher.cut(self.queue, now, (*self._busy(), *(now for _ in range(self.free - 1))))
            for _, why in cut.dropped:
                self.found.dropped[str(why)] += 1
            self.wake = inf if cut.wake is None else max(cut.wake, now + LEAST_WAKE)
            if not cut.tickets:
                return
            self._begin(cut, now)

    def _busy(self) -> tuple[float, ...]:
        """When the lanes that run will be free, as the cost model has it: their ends aren't known beforehand."""
        return tuple(sorted(expected for _, _, expected, _, _ in self.running))

    def _begin(self, cut: Cut, now: float) -> None:
        seconds = self.device.seconds(cut.rows, cut.length)
        expected = now + self.costs.mean(cut.rows, cut.length)
        self.free -= 1
        heappush(self.running, (now + seconds, next(self.order), expected, cut, seconds))

    def _end(self, now: float, _: int, __: float, cut: Cut, seconds: float) -> None:
        found = self.found
        self.free += 1
        self.ended = max(self.ended, now)
        self.costs.observe(cut.rows, seconds, cut.length)
        found.batches += 1
        found.rows += cut.rows
        found.busy += seconds
        found.reasons[str(cut.reason)] += 1
        for ticket in cut.tickets:
            limit = ticket.deadline if ticket.deadline is not None else ticket.queued + (self.policy.latency_objective or inf)
            found.answered += 1
            found.in_time += now <= limit
            found.latencies.append(now - ticket.queued)


def _nobody(*_: object) -> None:
    """Nobody waits for an answer here."""


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Of sorted seconds, in ms."""
    return round(values[max(0, ceil(share * len(values)) - 1)] * 1e3, 3) if values else None


def highest_priority(arrivals: Iterable[Arrival]) -> int:
    """The number of priorities that a trace needs."""
    return max(1, max((arrival.priority for arrival in arrivals), default=1))
