"""Two servers' routing on one real Redis: evidence adds up, each hears the other's events in order, the Redis's end is told and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from server.config import Settings, load_settings
from server.errors import NotFound, Unavailable
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.router.evidence import Arm, Evidence, Sums
from server.router.live.fleet import Alone
from server.router.live.replicas import Replicas, fleet_of
from server.state.base import Event
from server.state.changes import events_of
from server.state.events import Events
from tests.server.state.redis.serving import RedisServer, redis_server

SET = Event(12.5, "ann", "canary", model="m", now="5 %")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


class Replica(NamedTuple):
    fleet: Replicas
    events: Events
    changes: asyncio.Queue[bool]


def settings_of(server: RedisServer, tmp_path: Path) -> Settings:
    return load_settings(None, {"repository": tmp_path, "state": server.url, "log_level": "error"}, {})


@asynccontextmanager
async def replica(settings: Settings) -> AsyncIterator[Replica]:
    events, journal = events_of(settings), Journal(settings.log)
    fleet = fleet_of(settings, events, journal, Recorder())
    assert isinstance(fleet, Replicas)
    changes: asyncio.Queue[bool] = asyncio.Queue()
    fleet.on_change = changes.put_nowait
    fleet.start()
    try:
        yield Replica(fleet, events, changes)
    finally:
        await fleet.close()
        events.close()
        journal.close()


def seen(n: int, failed: int, now: float = 3.0) -> Evidence:
    found = Evidence()
    found.count("errors", 5.0, Arm.CANARY, Sums.of_events(n, failed), now)
    return found


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def test_evidence_of_two_replicas_adds_up(server: RedisServer, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path)
    async with replica(settings) as one, replica(settings) as other:
        await one.fleet.begin("x")
        await asyncio.gather(*(each.fleet.publish("x", seen(3, 1)) for each in (one, other) for _ in range(5)))
        assert await one.fleet.gathered("x") == await other.fleet.gathered("x") == seen(30, 10)
        await until(lambda: one.fleet.leads + other.fleet.leads == 1)
        await other.fleet.end("x")
        with pytest.raises(NotFound):
            await one.fleet.publish("x", seen(1, 0))


async def test_each_hears_what_the_other_did_in_order(server: RedisServer, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path)
    async with replica(settings) as one, replica(settings) as other:
        await until(lambda: one.fleet.reachable and other.fleet.reachable)
        for each in (one, other):
            await asyncio.wait_for(each.changes.get(), 30)
        with one.events.listening() as here, other.events.listening() as there:
            kept = [await (one, other)[number % 2].events.append(SET) for number in range(6)]
            for listener in (here, there):
                heard = [await asyncio.wait_for(listener.next(), 30) for _ in kept]
                assert [event.number for event in heard if event is not None] == [event.number for event in kept]
        assert not await asyncio.wait_for(other.changes.get(), 30)


async def test_without_its_redis_nothing_is_lost_and_it_says_so(server: RedisServer, tmp_path: Path) -> None:
    async with replica(settings_of(server, tmp_path)) as one:
        await one.fleet.begin("x")
        await until(lambda: one.fleet.reachable)
        server.kill()
        with pytest.raises(Unavailable):
            await one.fleet.publish("x", seen(2, 1))
        await until(lambda: not one.fleet.reachable)
        server.start()
        await until(lambda: one.fleet.reachable)
        await one.fleet.publish("x", seen(1, 0))
        assert await one.fleet.gathered("x") == seen(3, 1)


async def test_a_server_with_a_state_of_its_own_is_alone(tmp_path: Path) -> None:
    settings = load_settings(None, {"repository": tmp_path}, {})
    events, journal = events_of(settings), Journal(settings.log)
    fleet = fleet_of(settings, events, journal, Recorder())
    assert isinstance(fleet, Alone)
    assert not isinstance(fleet, Replicas)
    assert (fleet.reachable, fleet.leads, fleet.fence) == (True, True, None)
    fleet.start()
    await fleet.close()
    events.close()
    journal.close()
