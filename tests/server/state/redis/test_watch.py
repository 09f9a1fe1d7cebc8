"""Servers of a fleet hear of each other's changes at once, one of them leads, and each knows when the Redis is gone or lost its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Condition
from time import monotonic

import pytest

from server.errors import Superseded
from server.state.base import Event, Swap
from server.state.news import News
from server.state.redis.lease import TERM
from server.state.redis.store import RedisState
from server.state.redis.watch import LOST_AFTER, Watch
from tests.server.state.redis.serving import RedisServer, redis_server

SET = Event(12.5, "ann", "canary", model="m", now="5 %")
PATIENCE = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


class Heard:
    """What one watch told."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self._more = Condition()

    def __call__(self, news: News) -> None:
        with self._more:
            self.news.append(news)
            self._more.notify_all()

    def until(self, holds: Callable[[], bool]) -> float:
        """Wait until news make something so; how long that took."""
        began = monotonic()
        with self._more:
            assert self._more.wait_for(holds, PATIENCE), self.news
        return monotonic() - began

    def last(self, **facts: object) -> Callable[[], bool]:
        """Whether the last news say this."""
        return lambda: bool(self.news) and all(getattr(self.news[-1], name) == value for name, value in facts.items())


@contextmanager
def watching(server: RedisServer, beat: float = 0.05) -> Iterator[tuple[Watch, Heard]]:
    heard = Heard()
    watch = Watch(server.place, heard, beat)
    watch.start()
    try:
        yield watch, heard
    finally:
        watch.close()
        watch.close()


def test_a_change_is_heard_within_a_second_and_once(server: RedisServer) -> None:
    with closing(RedisState(server.place)) as store, watching(server) as (_, one), watching(server, beat=20.0) as (_, by_channel):
        for heard in (one, by_channel):
            heard.until(heard.last(reachable=True))
        store.append(SET)  # before the channel may be listened to: by_channel hears it with the next one at the latest
        for step in range(2, 5):
            store.write("canary", "m", {"step": step}, SET)
            assert one.until(one.last(number=step)) < 1
            if step > 2:
                assert by_channel.until(by_channel.last(number=step)) < 1
        told = len(one.news)
        store.put("canary", "m", {"step": 9})  # what is only noted is no news
        store.begin("x")
        store.append(SET)
        one.until(one.last(number=5))
        assert len(one.news) == told + 1
        assert not any(news.emptied for news in one.news)


def test_one_leads_and_who_goes_in_order_is_followed_at_once(server: RedisServer) -> None:
    with watching(server) as (first, one):
        one.until(one.last(leads=True))
        with watching(server) as (second, other):
            other.until(other.last(reachable=True))
            assert (first.leads, second.leads, second.fence) == (True, False, None)
            fence = first.fence
            first.close()
            assert other.until(other.last(leads=True)) < TERM
            with closing(RedisState(server.place)) as store:
                store.swap(Swap("canary", "m", None, {"step": 0}), SET, second.fence)
                with pytest.raises(Superseded, match="another server has taken the lease"):
                    store.swap(Swap("canary", "m", {"step": 0}, {"step": 1}), SET, fence)


def test_a_leader_that_dies_is_followed(server: RedisServer) -> None:
    """A holder that nobody hears of any more; the Redis's own clock says nothing."""
    with closing(RedisState(server.place)):
        server.client().hset("tidegate:lease", mapping={"holder": "dead", "token": 7, "beat": 3})
        server.client().set("tidegate:tokens", 7)
    with watching(server) as (watch, heard):
        waited = heard.until(heard.last(leads=True))
        assert waited > TERM / 2
        fence = watch.fence
        assert fence is not None
        assert fence.token == 8


def test_a_redis_that_is_gone_and_comes_back(server: RedisServer) -> None:
    with closing(RedisState(server.place)) as store, watching(server) as (watch, heard):
        store.write("canary", "m", {"step": 1}, SET)
        heard.until(heard.last(reachable=True, leads=True))
        server.kill()
        assert heard.until(heard.last(reachable=False)) < LOST_AFTER + 2
        assert str(server.port) in heard.news[-1].why
        heard.until(heard.last(leads=False))
        server.start()
        heard.until(heard.last(reachable=True, leads=True))
        assert watch.reachable
        assert not any(news.emptied for news in heard.news)


@pytest.mark.parametrize("how", ["flushed", "older copy", "started empty"])
def test_what_was_lost_is_told(tmp_path: Path, how: str) -> None:
    with redis_server(tmp_path, forgets=True) as server, closing(RedisState(server.place)) as store, watching(server) as (_, heard):
        for _ in range(3):
            store.write("canary", "m", {"step": 1}, SET)
        heard.until(heard.last(reachable=True, number=3))
        match how:
            case "flushed":
                server.client().flushall()
            case "older copy":
                server.client().set("tidegate:revision", 2)
            case _:
                server.kill()
                server.start()
        heard.until(lambda: any(news.emptied for news in heard.news))
        assert sum(news.emptied for news in heard.news) == 1
        store.append(SET)
        heard.until(heard.last(reachable=True, emptied=False))


def test_a_redis_that_is_not_there_yet(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.kill()
        with watching(server) as (watch, heard):
            assert not watch.reachable
            server.start()
            heard.until(heard.last(reachable=True, leads=True))
            assert not any(news.emptied for news in heard.news)
