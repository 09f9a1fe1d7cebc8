"""The batcher and what others do, under one simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np

from benchmarks.batcher_grid import MAX_ROWS, Case, Device, Times
from server.engine.batcher import Batcher, BatchPolicy, CloseReason, Cut, DropReason
from server.engine.cost_model import CostModel
from server.engine.request_queue import RequestQueue, Ticket
from server.messages import InferRequest, Layout

MARGIN = 1.05  # on the true service time, which the other policies are told
TIMEOUT = 5e-3
EPSILON = 1e-12


class Policy(Protocol):
    """Takes the next run out of the queue, as the batcher does."""

    def cut(self, queue: RequestQueue, now: float) -> Cut: ...


@dataclass(slots=True)
class Outcome:
    """What became of a trace's requests. Latencies of those answered, in seconds."""

    good: int = 0
    late: int = 0
    dropped: int = 0
    runs: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) if self.latencies else 0.0


class _Eager:
    """Takes what waits, first come first served: Triton without delay."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def cut(self, queue: RequestQueue, now: float) -> Cut:
        return _first(queue, MAX_ROWS)


class _Timeout:
    """Waits for a full run, but no longer than 5 ms: Ray Serve, LitServe, TensorFlow Serving."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def cut(self, queue: RequestQueue, now: float) -> Cut:
        until = next(iter(queue.lines.values())).tickets[0].queued + TIMEOUT
        return Cut(wake=until) if queue.rows < MAX_ROWS and now < until - EPSILON else _first(queue, MAX_ROWS)


class _Window:
    """Drops the oldest until a run of b* rows, or of all that wait, answers its first in time: Nexus."""

    def __init__(self, case: Case) -> None:
        model = case.model
        self.costs = [model.seconds(rows) * MARGIN for rows in range(MAX_ROWS + 1)]
        self.target = max(b for b in range(1, MAX_ROWS + 1) if self.costs[b] * (2 - 1 / b) <= model.objective)

    def cut(self, queue: RequestQueue, now: float) -> Cut:
        dropped: list[tuple[Ticket, DropReason]] = []
        while queue.lines:
            line = next(iter(queue.lines.values()))
            rows = min(self.target, line.rows)
            if now + self.costs[rows] <= line.tickets[0].due:
                cut = _first(queue, rows)
                cut.dropped = dropped
                return cut
            dropped.append((queue.pop(line), DropReason.GIVEN_UP))
        return Cut(dropped=dropped)


def _first(queue: RequestQueue, most: int) -> Cut:
    line = next(iter(queue.lines.values()))
    tickets = [queue.pop(line) for _ in range(min(most, line.rows))]
    return Cut(tickets, len(tickets), reason=CloseReason.IDLE)


class Tidegate:
    """The batcher with the cost model that it learns by."""

    def __init__(self, case: Case) -> None:
        self.costs = CostModel(Device(case).warmup())
        objective = case.model.objective
        self.batcher = Batcher(BatchPolicy(max_rows=MAX_ROWS, latency_objective=objective, on_late="reject"), self.costs)

    def cut(self, queue: RequestQueue, now: float) -> Cut:
        return self.batcher.cut(queue, now)


POLICIES: Mapping[str, Callable[[Case], Policy]] = MappingProxyType(
    {"tidegate": Tidegate, "eager": _Eager, "timeout": _Timeout, "window": _Window}
)

NO_LAYOUT = Layout(())


def play(case: Case, arrivals: Times, policy: Policy) -> Outcome:
    """Run a trace on one lane."""
    outcome, queue, device = Outcome(), RequestQueue(), Device(case)
    device.warmup()
    times = arrivals.tolist()
    now, came = 0.0, 0
    while came < len(times) or queue.lines:
        if not queue.lines:
            now = max(now, times[came])
        while came < len(times) and times[came] <= now:
            queue.push(_ticket(times[came], case.model.objective))
            came += 1
        cut = policy.cut(queue, now)
        outcome.dropped += len(cut.dropped)
        if cut.tickets:
            now = _serve(outcome, cut, device, policy, now)
        elif cut.wake is not None:
            now = min(cut.wake, times[came]) if came < len(times) else cut.wake
    return outcome


def _serve(outcome: Outcome, cut: Cut, device: Device, policy: Policy, now: float) -> float:
    """Run a batch; the time at its end."""
    seconds = device.run(cut.rows)
    if isinstance(policy, Tidegate):
        policy.costs.observe(cut.rows, seconds, cut.length)
    outcome.runs.append(cut.rows)
    outcome.reasons[cut.reason] = outcome.reasons.get(cut.reason, 0) + 1
    now += seconds
    for ticket in cut.tickets:
        late = now > ticket.due + EPSILON
        outcome.late += late
        outcome.good += not late
        outcome.latencies.append(now - ticket.queued)
    return now


def _ticket(arrival: float, objective: float) -> Ticket:
    request = InferRequest("m", {}, NO_LAYOUT, rows=1, queued=arrival, deadline=arrival + objective)
    return Ticket(request, _ignore, "g", 1, objective)


def _ignore(response: object, final: bool) -> None:
    """Nobody waits for simulated answers."""
