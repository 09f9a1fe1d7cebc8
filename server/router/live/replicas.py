"""The replicas that share a state: each hears of what the others decide, and one of them acts for all (Fleet)."""

from __future__ import annotations

import asyncio

from server.config import Settings
from server.errors import Unavailable
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.router.live.fleet import Alone, Fleet
from server.state.base import Fence
from server.state.changes import watch_of
from server.state.events import Events
from server.state.news import News


class Replicas(Alone):
    """As Fleet says, for a server among others."""

    def __init__(self, settings: Settings, events: Events, journal: Journal) -> None:
        """Raises ConfigError for a state that can't be used."""
        loop = asyncio.get_running_loop()
        watch = watch_of(settings, lambda news: _in(loop, self, news))
        assert watch is not None, "only a shared state has replicas"
        super().__init__(events, watch.source)
        self._watch = watch
        self._journal = journal
        self._known: tuple[bool, bool] | None = None
        self._catching: asyncio.Task[None] | None = None

    @property
    def reachable(self) -> bool:
        return self._watch.reachable

    @property
    def leads(self) -> bool:
        return self._watch.leads

    @property
    def fence(self) -> Fence | None:
        return self._watch.fence

    def start(self) -> None:
        self._watch.start()

    async def close(self) -> None:
        await asyncio.to_thread(self._watch.close)
        if self._catching is not None:
            await asyncio.gather(self._catching, return_exceptions=True)

    def hear(self, news: News) -> None:
        """Take news of the watch, in the event loop."""
        if (news.reachable, news.leads) != self._known or news.emptied:
            self._known = (news.reachable, news.leads)
            level = "info" if news.reachable and not news.emptied else "error"
            self._journal.lifecycle("fleet", level=level, reachable=news.reachable, leads=news.leads, emptied=news.emptied, why=news.why)
        self._catching = asyncio.ensure_future(self._catch_up(news, self._catching))
        self.on_change(news.emptied)

    async def _catch_up(self, news: News, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        try:
            await self._events.catch_up(news.number, emptied=news.emptied)
        except Unavailable as error:
            self._journal.lifecycle("events_not_told", level="warning", why=str(error))


def fleet_of(settings: Settings, events: Events, journal: Journal, recorder: Recorder) -> Fleet:
    """Those that share the state that the settings name. In the event loop. Raises ConfigError."""
    if not isinstance(settings.state, str):
        return Alone(events)
    replicas = Replicas(settings, events, journal)
    recorder.gauge("tidegate_state_reachable", {}, lambda: float(replicas.reachable))
    recorder.gauge("tidegate_fleet_leader", {}, lambda: float(replicas.leads))
    return replicas


def _in(loop: asyncio.AbstractEventLoop, replicas: Replicas, news: News) -> None:
    """Into the event loop, unless that is over."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(replicas.hear, news)
