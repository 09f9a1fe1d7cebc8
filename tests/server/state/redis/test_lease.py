"""One acts, whatever dies or hangs: the lease by made-up clocks that differ and run apart from each other by nothing but their start."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.state.redis.lease import TERM, Held, Lease

STEP = 0.125
SERVERS = 3


class Store:
    """What the script of a pulse does, as a table."""

    def __init__(self) -> None:
        self.held = Held("", 0, 0)

    def pulse(self, lease: Lease, may_take: bool) -> Held:
        if self.held.holder == lease.me:
            self.held = self.held._replace(beat=self.held.beat + 1)
        elif not self.held.holder or (may_take and self.held == lease.seen):
            self.held = Held(lease.me, self.held.token + 1, 1)
        return self.held


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ask", "sleep", "lost", "late"])), min_size=20, max_size=150))
def test_never_two_act_at_once(turns: list[tuple[int, str]]) -> None:
    """`lost`: the answer never comes. `late`: it comes a while after it was sent. Each server's clock began at another time."""
    store, now = Store(), 0.0
    leases = [Lease(str(number), "l") for number in range(SERVERS)]
    late: list[tuple[int, Held, float]] = []
    for number, what in turns:
        clock, lease = now + 1000.0 * number, leases[number]
        now += STEP
        if what in ("ask", "lost", "late"):
            held = store.pulse(lease, lease.may_take(clock))
            if what == "ask":
                lease.read(held, clock, clock)
            elif what == "late":
                late.append((number, held, clock))
        elif late and what == "sleep":
            whose, held, sent = late.pop(0)
            leases[whose].read(held, sent, now + 1000.0 * whose)
        leading = [lease for index, lease in enumerate(leases) if lease.leads(now + 1000.0 * index)]
        assert len(leading) <= 1
        fences = [lease.fence(now + 1000.0 * index) for index, lease in enumerate(leases)]
        assert sum(fence is not None for fence in fences) == len(leading)


def test_who_goes_is_followed_after_a_term() -> None:
    store, first, second = Store(), Lease("a", "l"), Lease("b", "l")
    for lease in (first, second):
        lease.read(store.pulse(lease, lease.may_take(10.0)), 10.0, 10.0)
    assert (first.leads(10.0), second.leads(10.0)) == (True, False)
    assert not second.may_take(10.0 + TERM - 0.01)
    assert first.leads(10.0 + TERM - 0.01)
    assert not first.leads(10.0 + TERM)
    second.read(store.pulse(second, second.may_take(10.0 + TERM)), 10.0 + TERM, 10.0 + TERM)
    assert second.leads(10.0 + TERM)
    fence = second.fence(10.0 + TERM)
    assert fence is not None
    assert fence.token == 2
    first.read(store.pulse(first, first.may_take(20.0)), 20.0, 20.0)
    assert not first.leads(20.0)
