"""Whose turn it is, and what a tenant may send."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.decide.turns import QUANTUM, Quotas, Tenant, Turns, rank
from tests.server.engine.tickets import queue_of, ticket


@pytest.mark.parametrize(
    ("priority", "deadline", "now", "expected"),
    [
        (1, None, 0.0, 1),
        (4, None, 0.0, 4),
        (4, None, 1.5, 3),  # a second without a deadline
        (4, None, 9.0, 1),
        (3, 0.1, 0.04, 3),
        (3, 0.1, 0.06, 2),  # half of its time
        (3, 0.0, 0.0, 1),
    ],
)
def test_waiting_raises_a_priority(priority: int, deadline: float | None, now: float, expected: int) -> None:
    (line,) = queue_of([ticket(priority=priority, deadline=deadline)]).lines.values()
    assert rank(line, now) == expected


def test_the_most_urgent_of_the_highest_priority_goes_first() -> None:
    queue = queue_of(
        [
            ticket(group="low", priority=2, deadline=0.1),
            ticket(group="late", priority=1, deadline=0.9),
            ticket(group="soon", priority=1, deadline=0.3),
        ]
    )
    assert Turns({}).pick(queue.lines.values(), 0.0).group == "soon"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2), st.lists(st.integers(1, 16), min_size=4)
)
def test_no_tenant_is_ahead_of_its_share(weights: dict[str, float], sizes: list[int]) -> None:
    turns = Turns({name: Tenant(weight) for name, weight in weights.items()})
    queue = queue_of([ticket(tenant=name) for name in weights])
    served = Counter[str]()
    for number in range(400):
        line = turns.pick(queue.lines.values(), 0.0)
        rows = sizes[number % len(sizes)]
        served[line.tenant] += rows
        turns.spend(line.tenant, rows)
    shares = [served[name] / weight for name, weight in weights.items()]
    assert max(shares) - min(shares) <= 2 * (QUANTUM + max(sizes) / min(weights.values()))


def test_a_tenant_with_nothing_waiting_saves_no_credit() -> None:
    turns, both = Turns({}), queue_of([ticket(tenant="a"), ticket(tenant="b")])
    alone = queue_of([ticket(tenant="a")])
    for _ in range(1000):
        turns.spend(turns.pick(alone.lines.values(), 0.0).tenant, 1)
    served = Counter[str]()
    for _ in range(4 * QUANTUM):
        tenant = turns.pick(both.lines.values(), 0.0).tenant
        served[tenant] += 1
        turns.spend(tenant, 1)
    assert served == {"a": 2 * QUANTUM, "b": 2 * QUANTUM}


def test_a_quota_lets_a_second_of_it_through_and_then_as_it_refills() -> None:
    quotas = Quotas({"t": Tenant(rows_per_s=10, bytes_per_s=1000)})
    assert quotas.charge("t", 10, 0, 0.0) is None
    assert quotas.charge("t", 5, 0, 0.0) == ("rows_per_s", 0.5)
    assert quotas.charge("t", 5, 0, 0.5) is None
    assert quotas.charge("t", 1, 2000, 1.0) is None  # larger than a second of it: passes when the bucket is full
    assert quotas.charge("t", 1, 1, 1.0) == ("bytes_per_s", 1.001)
    assert quotas.charge("other", 10**6, 10**9, 0.0) is None
    assert (bool(quotas), bool(Quotas({"t": Tenant(2.0)}))) == (True, False)


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 0.5)), max_size=60))
def test_no_more_than_the_quota_passes(asked: list[tuple[int, float]]) -> None:
    quotas, now, passed = Quotas({"t": Tenant(rows_per_s=10)}), 0.0, 0
    for rows, pause in asked:
        now += pause
        passed += rows if quotas.charge("t", rows, 0, now) is None else 0
    assert passed <= 10 * now + 10 + 20 + 1e-6
