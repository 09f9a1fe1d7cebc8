"""Events: logged before they're told, in order, to listeners that may be slow or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from threading import Event as Flag

import pytest

from server.errors import Unavailable
from server.state.base import Event
from server.state.events import MOST_WAITING, Events, as_json
from server.state.memory import MemoryState

SET = Event(12.5, "ann", "precision", model="m", now="int8")


class Held(MemoryState):
    """A store that writes only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = Flag()

    def append(self, event: Event) -> Event:
        assert self.may.wait(10)
        return super().append(event)


@pytest.fixture
async def events() -> AsyncIterator[Events]:
    events = Events(MemoryState())
    yield events
    events.close()


async def test_who_listens_hears_what_is_kept(events: Events) -> None:
    await events.append(SET)
    with events.listening() as one, events.listening() as other:
        kept = [await events.append(SET), await events.write("precision", "m", {"active": "int8"}, SET)]
        assert [await one.next(), await one.next()] == [await other.next(), await other.next()] == kept
    await events.append(SET)
    assert [event.number for event in await events.since(1)] == [2, 3, 4]
    assert await events.read("precision") == {"m": {"active": "int8"}}
    assert not one.behind


async def test_a_slow_listener_costs_nobody_and_knows_that_it_fell_behind(events: Events) -> None:
    with events.listening() as slow:
        for _ in range(MOST_WAITING + 5):
            await events.append(SET)
        heard = [await slow.next() for _ in range(MOST_WAITING)]
    assert slow.behind
    last = heard[-1]
    assert last is not None
    assert len(await events.since(last.number)) == 5


async def test_a_caller_that_goes_away_takes_nothing_back() -> None:
    store = Held()
    events = Events(store)
    with events.listening() as listener:
        asking = asyncio.create_task(events.append(SET))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        store.may.set()
        heard = await asyncio.wait_for(listener.next(), 10)
    assert heard is not None
    assert heard.number == 1
    events.close()


async def test_what_could_not_be_written_is_not_told(events: Events) -> None:
    with events.listening() as listener:
        events._store.close()
        with pytest.raises(Unavailable):
            await events.append(SET)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.next(), 0.01)


async def test_the_end_wakes_all_who_listen_and_those_who_come_later(events: Events) -> None:
    with events.listening() as listener:
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        events.end()
        assert await waiting is None
        assert listener.ended
    with events.listening() as late:
        assert late.ended


def test_as_json_leaves_out_what_is_empty() -> None:
    assert as_json(SET) == {"number": 0, "at": 12.5, "who": "ann", "what": "precision", "model": "m", "now": "int8"}
