"""What replicas share of an experiment: evidence is added up once, whatever fails on the way, and read as it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import NotFound, Unavailable
from server.router.evidence import MOST_BLOCKS, Arm, Evidence, Sums
from server.router.live.fleet import Alone, as_counts, cell_of
from server.state.base import Counts
from server.state.events import Events
from server.state.memory import MemoryState

SEEN = st.tuples(
    st.sampled_from(["errors", "latency"]),
    st.sampled_from([0.5, 1.0, 50.0]),
    st.sampled_from(list(Arm)),
    st.floats(0, 1),
    st.integers(0, 4 * MOST_BLOCKS).map(float),
)


class Flaky(MemoryState):
    """A store that counts and says that it didn't, or doesn't: as a connection that is lost before or after."""

    lost = ""

    def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        if self.lost == "before":
            raise Unavailable("lost before it was counted")
        super().count(tally, source, number, counts)
        if self.lost == "after":
            raise Unavailable("lost after it was counted")


@pytest.fixture
def store() -> Flaky:
    return Flaky()


@pytest.fixture
async def events(store: Flaky) -> AsyncIterator[Events]:
    events = Events(store)
    yield events
    events.close()


def seen(n: int, failed: int, now: float = 3.0) -> Evidence:
    found = Evidence()
    found.count("errors", 5.0, Arm.CANARY, Sums.of_events(n, failed), now)
    return found


@given(st.lists(SEEN, min_size=1, max_size=30))
def test_cells_have_names(found: list[tuple[str, float, Arm, float, float]]) -> None:
    whole = Evidence()
    for one in found:
        whole.add(*one)
    for name, sums in as_counts(whole).items():
        width, cell = cell_of(name)
        assert width == whole.width
        assert whole.cells[cell] == sums


async def test_replicas_evidence_adds_up(events: Events) -> None:
    one, other = Alone(events), Alone(events)
    await one.begin("x")
    await one.publish("x", seen(10, 1))
    assert (await other.gathered("x")) == seen(10, 1)
    await other.publish("x", seen(5, 2))
    await one.publish("x", seen(5, 0, now=9.0))
    whole = seen(15, 3).merged(seen(5, 0, now=9.0))
    assert await other.gathered("x") == await one.gathered("x") == await one.gathered("x") == whole


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_what_was_lost_on_its_way_counts_once(store: Flaky, events: Events, lost: str) -> None:
    fleet = Alone(events)
    await fleet.begin("x")
    store.lost = lost
    for now in (3.0, 4.0):
        with pytest.raises(Unavailable):
            await fleet.publish("x", seen(1, 1, now))
    store.lost = ""
    await fleet.publish("x", seen(1, 0, 4.0))
    assert await fleet.gathered("x") == seen(1, 1).merged(seen(1, 1, 4.0)).merged(seen(1, 0, 4.0))


async def test_an_experiment_that_is_over_takes_nothing_more(store: Flaky, events: Events) -> None:
    one, other = Alone(events), Alone(events)
    for use in (lambda: one.publish("x", seen(1, 0)), lambda: one.gathered("x")):
        with pytest.raises(NotFound):
            await use()
    await one.begin("x")
    await other.publish("x", seen(1, 0))
    await one.end("x")
    with pytest.raises(NotFound):
        await other.publish("x", seen(1, 0))


async def test_a_store_with_less_than_was_read_is_read_anew(store: Flaky, events: Events) -> None:
    fleet = Alone(events)
    await fleet.begin("x")
    for _ in range(3):
        await fleet.publish("x", seen(1, 1))
    assert await fleet.gathered("x") == seen(3, 3)
    store.begin("x")
    store.count("x", "else", 1, as_counts(seen(2, 0)))
    assert await fleet.gathered("x") == seen(2, 0)


async def test_a_long_experiment_leaves_few_cells(store: Flaky, events: Events) -> None:
    fleet, whole, n = Alone(events), Evidence(), 12 * MOST_BLOCKS
    await fleet.begin("x")
    for second in range(0, n, 8):
        now = Evidence()
        for at in range(second, second + 8):
            now.count("errors", 5.0, Arm.CANARY, Sums.of_events(1, at % 2), 1e9 + at)
        await fleet.publish("x", now)
        whole.merge(now)
    assert await fleet.gathered("x") == whole
    assert len(store.counted("x").counts) < 3.5 * MOST_BLOCKS
