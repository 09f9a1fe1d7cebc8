"""The batcher is pure: every case is a queue, a `now` and the cut that follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.batcher import Batcher, BatchPolicy, CloseReason, Cut, DropReason
from server.engine.cost_model import CostModel
from server.engine.decide.turns import Tenant
from server.engine.request_queue import RequestQueue, Ticket
from tests.server.engine.tickets import LOWEST, queue_of, ticket, waiting

AFFINE = {rows: 0.002 + 0.001 * rows for rows in (1, 8, 64)}  # 1 row takes 3 ms, 64 take 66: 24 rows reach 95 % of the best rows/s
FLAT = {rows: 0.010 * rows for rows in (1, 8, 64)}


def batcher(latency: dict[int, float] | None = None, **policy: object) -> Batcher:
    return Batcher(replace(BatchPolicy(max_rows=8, priorities=LOWEST), **policy), CostModel(latency or {}))  # type: ignore[arg-type]


def test_takes_all_that_waits() -> None:
    tickets = [ticket(2), ticket(3)]
    queue = queue_of(tickets)
    cut = batcher().cut(queue, 0.0)
    assert (cut.tickets, cut.rows, cut.reason) == (tickets, 5, CloseReason.IDLE)
    assert queue.rows == 0
    assert not queue.lines


def test_stops_before_max_rows_is_passed() -> None:
    queue = queue_of([ticket(3), ticket(3), ticket(3)])
    cut = batcher().cut(queue, 0.0)
    assert (cut.rows, cut.reason, queue.rows) == (6, CloseReason.FULL, 3)


@pytest.mark.parametrize(
    ("latency", "rows", "reason"),
    [
        ({}, 64, CloseReason.FULL),
        ({1: 0.001, 8: 0.0015, 64: 0.004}, 64, CloseReason.FULL),  # 53 would do, but two runs of that wait
        (FLAT, 1, CloseReason.PREFERRED),  # a CPU with one thread: nothing gained
        (AFFINE, 25, CloseReason.PREFERRED),  # 100 in four runs, of at least 24
    ],
)
def test_without_deadlines_stops_where_rows_per_second_gain_nothing(latency: dict[int, float], rows: int, reason: CloseReason) -> None:
    cut = batcher(latency, max_rows=64).cut(queue_of([ticket() for _ in range(100)]), 0.0)
    assert (cut.rows, cut.reason) == (rows, reason)


def test_a_request_larger_than_preferred_runs_alone() -> None:
    cut = batcher(FLAT).cut(queue_of([ticket(6), ticket(1)]), 0.0)
    assert [one.rows for one in cut.tickets] == [6]


def test_shapes_never_mix_and_the_oldest_goes_first() -> None:
    queue = queue_of([ticket(group="b", queued=2.0), ticket(group="a", queued=1.0), ticket(group="b", queued=3.0)])
    one = batcher()
    first, second = one.cut(queue, 3.0), one.cut(queue, 3.0)
    assert ([each.group for each in first.tickets], first.reason) == (["a"], CloseReason.SHAPE)
    assert ([each.group for each in second.tickets], second.reason) == (["b", "b"], CloseReason.IDLE)


def test_cancelled_and_expired_never_reach_a_lane() -> None:
    gone, late, hopeless, live = ticket(), ticket(deadline=1.0), ticket(deadline=2.001), ticket(deadline=3.0)
    queue = queue_of([gone, late, hopeless, live])
    gone.cancel()
    assert queue.rows == 3
    cut = batcher(AFFINE).cut(queue, 2.0)
    assert (cut.tickets, cut.rows) == ([live], 1)
    assert cut.dropped == [(late, DropReason.EXPIRED), (hopeless, DropReason.HOPELESS)]


def test_nothing_to_run_is_an_empty_cut() -> None:
    queue = queue_of([ticket(deadline=1.0)])
    cut = batcher().cut(queue, 2.0)
    assert (cut.tickets, len(cut.dropped)) == ([], 1)
    assert batcher().cut(queue, 2.0) == Cut()


def test_an_urgent_deadline_bounds_the_run_and_the_plan_gives_up_who_costs_more_than_he_brings() -> None:
    urgent, others = ticket(deadline=0.0035), [ticket(deadline=0.060) for _ in range(40)]
    cut = batcher(AFFINE, max_rows=64, latency_objective=0.060, on_late="reject").cut(queue_of([urgent, *others]), 0.0)
    assert cut.dropped == [(urgent, DropReason.GIVEN_UP)]
    assert (cut.tickets, cut.reason) == (others, CloseReason.PLANNED)


def test_on_several_lanes_who_is_passed_over_waits_for_another() -> None:
    urgent, others = ticket(deadline=0.0035), [ticket(deadline=0.060) for _ in range(40)]
    one = batcher(AFFINE, max_rows=64, latency_objective=0.060, on_late="reject", lanes=2)
    queue = queue_of([urgent, *others])
    cut = one.cut(queue, 0.0, [0.1])
    assert (cut.tickets, cut.dropped) == (others, [])
    assert one.cut(queue, 0.0, [0.043]).tickets == [urgent]  # the other lane was free early after all


def test_with_another_lane_free_soon_nobody_is_passed_over() -> None:
    urgent, others = ticket(deadline=0.0035), [ticket(deadline=0.060) for _ in range(40)]
    one = batcher(AFFINE, max_rows=64, latency_objective=0.060, on_late="reject", lanes=2)
    assert one.cut(queue_of([urgent, *others]), 0.0, [0.0001]).tickets == [urgent]


def test_an_objective_without_rejection_drops_nobody_and_keeps_runs_large() -> None:
    tickets = [ticket(queued=0.0, patience=0.030) for _ in range(60)]
    one = batcher(AFFINE, max_rows=64, latency_objective=0.030)
    early = one.cut(queue_of(tickets), 0.0)
    assert (early.reason, early.dropped) == (CloseReason.DEADLINE, [])
    assert 20 < early.rows < 28  # what ends within 30 ms
    late = one.cut(queue_of([ticket(patience=0.030) for _ in range(60)]), 5.0)
    assert (late.dropped, late.rows) == ([], 12)  # b*, not one by one: T(12)·(2 − 1/12) is the objective, with the margin


def test_preferred_sizes_are_taken_exactly() -> None:
    one = batcher(max_rows=64, preferred_rows=(8, 32))
    queue = queue_of([ticket() for _ in range(45)])
    assert [(cut.rows, cut.reason) for cut in (one.cut(queue, 0.0) for _ in range(3))] == [
        (32, CloseReason.PREFERRED),
        (8, CloseReason.PREFERRED),
        (5, CloseReason.IDLE),
    ]


def test_max_wait_holds_for_a_fuller_batch_and_no_longer() -> None:
    one, queue = batcher(max_wait=0.005), queue_of([ticket(queued=1.0), ticket(queued=1.002)])
    assert one.cut(queue, 1.002).wake == 1.005
    assert queue.rows == 2
    cut = one.cut(queue, 1.005)
    assert (cut.rows, cut.reason, cut.wake) == (2, CloseReason.HOLD, None)


def test_max_wait_ends_with_a_full_batch_and_below_a_millisecond() -> None:
    one = batcher(max_wait=0.005)
    assert one.cut(queue_of([ticket() for _ in range(8)]), 0.0).reason == CloseReason.FULL
    assert one.cut(queue_of([ticket()]), 0.0045).wake is None


def test_a_hold_ends_before_it_could_make_anyone_late() -> None:
    one = batcher(AFFINE, max_wait=0.100)
    wake = one.cut(queue_of([ticket(deadline=0.020)]), 0.0).wake
    assert wake is not None
    assert wake + one.costs.estimate(2) == pytest.approx(0.020)


def test_one_lane_never_waits_and_several_wait_for_the_size_that_keeps_up() -> None:
    def first(lanes: int) -> Cut:
        one = batcher(AFFINE, max_rows=64, latency_objective=0.060, lanes=lanes)
        queue, now = RequestQueue(), 0.0
        for _ in range(400):  # 800 rows/s: 3 ms alone, so two lanes need runs of more
            now += 1 / 800
            queue.push(ticket(queued=now, patience=0.060))
            cut = one.cut(queue, now, [now] * (lanes - 1))
        return cut

    assert first(1).tickets
    held = first(2)
    assert held.wake is not None or held.rows > 1


def test_priorities_go_first_and_waiting_raises() -> None:
    low, high = ticket(priority=4, queued=0.0, group="low"), ticket(priority=1, queued=0.5, group="high")
    assert batcher().cut(queue_of([low, high]), 0.6).tickets == [high]
    assert batcher().cut(queue_of([low, ticket(priority=1, queued=3.5, group="high")]), 3.6).tickets == [low]


def test_lower_priorities_fill_what_higher_leave() -> None:
    low, high = [ticket(priority=2) for _ in range(10)], [ticket(priority=1, queued=0.1) for _ in range(3)]
    cut = batcher().cut(queue_of([*low, *high]), 0.2)
    assert (cut.tickets, cut.rows) == ([*high, *low[:5]], 8)


def test_tenants_share_by_weight() -> None:
    tickets = [ticket(tenant=name) for name in ("a", "b") for _ in range(600)]
    one, queue, served = batcher(tenants={"a": tenant(3.0), "b": tenant(1.0)}), queue_of(tickets), Counter[str]()
    for _ in range(80):
        served.update(each.tenant for each in one.cut(queue, 0.0).tickets)
    assert served["a"] / served["b"] == pytest.approx(3, rel=0.1)


def tenant(weight: float) -> Tenant:
    return Tenant(weight)


# Padded requests: 1 cell takes 0.1 ms, a run 1 ms by itself.
CELLS = {rows: 0.001 + 0.0001 * rows * 16 for rows in (1, 4, 16)}


def ragged() -> Batcher:
    return Batcher(BatchPolicy(max_rows=8), CostModel(CELLS, length=16))


def test_neighbours_in_length_share_a_run_and_others_do_not() -> None:
    lengths = [20, 100, 21, 22, 50, 21]
    queue = queue_of([ticket(length=length, queued=number / 1e6) for number, length in enumerate(lengths)])
    cut = ragged().cut(queue, 0.001)
    assert sorted(each.length for each in cut.tickets) == [20, 21, 21, 22]
    assert (cut.length, cut.reason) == (22, CloseReason.SHAPE)
    assert ragged().cut(queue, 0.001).length == 100  # the oldest that is left decides


@pytest.mark.parametrize(("length", "together"), [(25, 2), (27, 1)])
def test_a_run_is_never_padded_when_that_costs_more_than_it_saves(length: int, together: int) -> None:
    queue = queue_of([ticket(length=16), ticket(length=length, queued=1e-6)])
    assert len(ragged().cut(queue, 0.0).tickets) == together  # 10 cells of padding cost what a run does by itself


@dataclass
class Step:
    """One thing that happens: a request, a cancellation of the n-th, or a cut."""

    rows: int
    group: str
    priority: int
    tenant: str
    length: int
    deadline: float | None
    cancel: bool


steps = st.lists(
    st.builds(
        Step,
        rows=st.integers(1, 8),
        group=st.sampled_from("ab"),
        priority=st.integers(0, LOWEST),
        tenant=st.sampled_from(["", "x", "y"]),
        length=st.sampled_from([1, 1, 5, 16, 17, 90]),
        deadline=st.none() | st.floats(0, 0.4),
        cancel=st.booleans(),
    ),
    max_size=50,
)
policies = st.builds(
    BatchPolicy,
    max_rows=st.integers(8, 16),
    latency_objective=st.none() | st.floats(0.005, 0.1),
    max_wait=st.none() | st.floats(0, 0.02),
    preferred_rows=st.sampled_from([(), (4,), (2, 8)]),
    length_buckets=st.sampled_from([(), (16, 64)]),
    priorities=st.just(LOWEST),
    lanes=st.integers(1, 3),
)
curves = st.sampled_from([{}, AFFINE, FLAT, CELLS])


@given(steps=steps, policy=policies, latency=curves, pause=st.sampled_from([0.0, 0.001, 0.02]))
def test_every_request_leaves_once_in_order_within_bounds(
    steps: list[Step], policy: BatchPolicy, latency: dict[int, float], pause: float
) -> None:
    one, queue, now = Batcher(policy, CostModel(latency)), RequestQueue(policy.length_buckets), 0.0
    live: dict[int, Ticket] = {}
    ran: list[Ticket] = []
    dropped: list[Ticket] = []

    def take(now: float) -> Cut:
        cut = one.cut(queue, now, [now] * (policy.lanes - 1))
        check(cut, policy, now)
        ran.extend(cut.tickets)
        dropped.extend(each for each, _ in cut.dropped)
        return cut

    for number, step in enumerate(steps):
        deadline = None if step.deadline is None else now + step.deadline
        made = ticket(step.rows, step.group, now, deadline, step.length, step.priority, step.tenant, policy.patience)
        queue.push(made)
        live[id(made)] = made
        if step.cancel:
            made.cancel()
            del live[id(made)]
        if number % 7 == 6:
            take(now)
        now += pause
    for _ in range(4 * len(steps) + 4):
        if not queue.lines:
            break
        cut = take(now)
        now = cut.wake if cut.wake is not None else now + 0.001
    assert not queue.lines
    assert (queue.rows, waiting(queue)) == (0, 0)
    assert Counter(map(id, [*ran, *dropped])) == Counter(live.keys())
    assert all(each.deadline is not None for each in dropped)


def check(cut: Cut, policy: BatchPolicy, now: float) -> None:
    """What holds for every cut."""
    assert cut.rows == sum(each.rows for each in cut.tickets) <= policy.max_rows
    assert not any(each.cancelled for each in cut.tickets)
    assert all(each.deadline is None or each.deadline > now for each in cut.tickets)
    assert len({each.group for each in cut.tickets}) <= 1
    assert cut.length == max((each.length for each in cut.tickets), default=1)
    assert cut.wake is None or (cut.wake > now and not cut.tickets)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, LOWEST)), min_size=1, max_size=60), st.integers(4, 16))
def test_order_is_kept_within_a_priority(sizes: list[tuple[int, int]], max_rows: int) -> None:
    tickets = [ticket(rows, queued=number * 1e-6, priority=priority) for number, (rows, priority) in enumerate(sizes)]
    queue, ran = queue_of(tickets), list[Ticket]()
    one = Batcher(BatchPolicy(max_rows=max_rows, priorities=LOWEST))
    while queue.lines:
        ran += one.cut(queue, 0.001).tickets
    assert len(ran) == len(tickets)
    for priority in range(1, LOWEST + 1):
        order = [each.queued for each in ran if each.priority == priority]
        assert order == sorted(order)


@given(st.integers(1, LOWEST), st.sampled_from(["", "x"]), st.sampled_from([1, 40]), st.booleans())
def test_nothing_starves_under_a_flood_of_higher_priority(priority: int, tenant: str, length: int, objective: bool) -> None:
    policy = BatchPolicy(max_rows=8, priorities=LOWEST, latency_objective=0.05 if objective else None)
    one, queue, now = Batcher(policy, CostModel(AFFINE)), RequestQueue(), 0.0
    poor = ticket(priority=priority, tenant=tenant, length=length, group="poor", patience=policy.patience)
    queue.push(poor)
    while now < 10:
        for _ in range(20):
            queue.push(ticket(priority=1, tenant="rich", queued=now, patience=policy.patience))
        if poor in one.cut(queue, now).tickets:
            return
        now += 0.01
    raise AssertionError(f"waited 10 s at priority {priority}")
