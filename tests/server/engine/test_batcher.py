"""The batcher is pure: every case is a queue, a `now` and the cut that follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.batcher import Batcher, CloseReason, preferred_rows
from server.engine.request_queue import COMPACT_AT, RequestQueue, Ticket
from server.messages import InferRequest, Layout

NO_LAYOUT = Layout(())


def ticket(rows: int = 1, group: str = "a", queued: float = 0.0, deadline: float | None = None) -> Ticket:
    request = InferRequest("m", {"x": np.zeros((rows, 1), np.float32)}, NO_LAYOUT, rows=rows, queued=queued, deadline=deadline)
    return Ticket(request, lambda response, final: None, group)


def queue_of(tickets: Sequence[Ticket]) -> RequestQueue:
    queue = RequestQueue()
    for one in tickets:
        queue.push(one)
    return queue


def test_takes_all_that_waits() -> None:
    tickets = [ticket(2), ticket(3)]
    queue = queue_of(tickets)
    cut = Batcher(8).cut(queue, 0.0)
    assert (cut.tickets, cut.rows, cut.reason) == (tickets, 5, CloseReason.IDLE)
    assert queue.rows == 0
    assert not queue.groups


def test_stops_before_max_rows_is_passed() -> None:
    queue = queue_of([ticket(3), ticket(3), ticket(3)])
    cut = Batcher(8).cut(queue, 0.0)
    assert (cut.rows, cut.reason, queue.rows) == (6, CloseReason.FULL, 3)


def test_stops_at_the_preferred_size() -> None:
    queue = queue_of([ticket() for _ in range(9)])
    cut = Batcher(64, preferred=4).cut(queue, 0.0)
    assert (cut.rows, cut.reason) == (4, CloseReason.PREFERRED)


def test_a_request_larger_than_preferred_runs_alone() -> None:
    queue = queue_of([ticket(6), ticket(1)])
    cut = Batcher(8, preferred=2).cut(queue, 0.0)
    assert [one.rows for one in cut.tickets] == [6]


def test_shapes_never_mix_and_the_oldest_goes_first() -> None:
    queue = queue_of([ticket(group="b", queued=2.0), ticket(group="a", queued=1.0), ticket(group="b", queued=3.0)])
    batcher = Batcher(8)
    first, second = batcher.cut(queue, 9.0), batcher.cut(queue, 9.0)
    assert ([one.group for one in first.tickets], first.reason) == (["a"], CloseReason.SHAPE)
    assert ([one.group for one in second.tickets], second.reason) == (["b", "b"], CloseReason.IDLE)


def test_cancelled_and_expired_never_reach_a_lane() -> None:
    gone, late, live = ticket(), ticket(deadline=1.0), ticket(deadline=3.0)
    queue = queue_of([gone, late, live])
    gone.cancel()
    assert queue.rows == 2
    cut = Batcher(8).cut(queue, 2.0)
    assert (cut.tickets, cut.expired, cut.rows) == ([live], [late], 1)


def test_nothing_to_run_is_an_empty_cut() -> None:
    queue = queue_of([ticket(deadline=1.0)])
    cut = Batcher(8).cut(queue, 2.0)
    assert (cut.tickets, len(cut.expired)) == ([], 1)
    assert Batcher(8).cut(queue, 2.0).tickets == []


def test_tombstones_are_swept_when_they_prevail() -> None:
    tickets = [ticket() for _ in range(2 * COMPACT_AT + 8)]
    queue = queue_of(tickets)
    for one in tickets[:-4]:
        one.cancel()
    assert queue.rows == 4
    assert sum(map(len, queue.groups.values())) < COMPACT_AT + 8
    assert list(queue.clear()) == tickets[-4:]


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        ({}, 64),
        ({1: 0.001, 8: 0.0015, 64: 0.004}, 64),  # grows with size: the whole batch is worth it
        ({1: 0.010, 8: 0.080, 64: 0.640}, 1),  # a CPU with one thread: nothing gained
        ({1: 0.010, 4: 0.020, 16: 0.060, 64: 0.250}, 16),
    ],
)
def test_preferred_rows(latency: dict[int, float], expected: int) -> None:
    assert preferred_rows(latency, 64) == expected


@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=60),
    max_rows=st.integers(8, 16),
    preferred=st.integers(1, 16),
)
def test_every_request_leaves_once_in_order_within_bounds(sizes: list[tuple[int, str, bool, bool]], max_rows: int, preferred: int) -> None:
    tickets = [ticket(rows, group, queued=float(n), deadline=0.5 if late else None) for n, (rows, group, late, _) in enumerate(sizes)]
    queue = queue_of(tickets)
    for one, (_, _, _, cancelled) in zip(tickets, sizes, strict=True):
        if cancelled:
            one.cancel()
    batcher, ran, expired = Batcher(max_rows, preferred), [], []
    while queue.groups:
        cut = batcher.cut(queue, 1.0)
        assert cut.rows == sum(one.rows for one in cut.tickets) <= max_rows
        assert len({one.group for one in cut.tickets}) <= 1
        ran += cut.tickets
        expired += cut.expired
    assert queue.rows == 0
    live = [one for one in tickets if not one.cancelled]
    assert sorted(map(id, ran + expired)) == sorted(map(id, live))
    assert all(one.request.deadline is None for one in ran)
    for group in "abc":
        order = [one.request.queued for one in ran if one.group == group]
        assert order == sorted(order)
