"""Writes down what changed in what is served, and by whom: into the state's log of events. A log that can't be written stops no change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from time import time
from typing import Any

from server.config import Settings
from server.errors import ConfigError, Unavailable
from server.logs import Journal
from server.state.base import Document, Event, StateStore
from server.state.events import Events
from server.state.memory import MemoryState
from server.state.news import News, Watching
from server.state.sqlite import SqliteState


def events_of(settings: Settings) -> Events:
    """In the file or the Redis that the settings name, else in memory. Raises ConfigError for one that can't be used."""
    return Events(_store(settings), shared=isinstance(settings.state, str))


def watch_of(settings: Settings, on_news: Callable[[News], None]) -> Watching | None:
    """Who hears of what other servers change in the state, None where it isn't shared. Raises ConfigError."""
    if not isinstance(settings.state, str):
        return None
    watch: Watching = _redis("watch").watch_redis(settings, on_news)
    return watch


def _store(settings: Settings) -> StateStore:
    if settings.state is None:
        return MemoryState()
    if isinstance(settings.state, str):
        store: StateStore = _redis("store").open_redis(settings)
        return store
    return SqliteState(settings.state)


def _redis(module: str) -> Any:
    """A module of the way to a Redis, which needs a client that most servers don't."""
    try:
        return import_module(f"server.state.redis.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"state: redis://… needs {error.name!r}, which isn't installed: pip install 'tidegate[redis]'") from error


class Changes:
    """`events` is the log; closed by whoever made it."""

    def __init__(self, events: Events, journal: Journal) -> None:
        self.events = events
        self._journal = journal

    async def keep(self, room: str, key: str, document: Document | None, event: Event) -> None:
        """Have a document hold from now on, and over a restart (None: no longer), and log why. Raises Unavailable; nothing changed then."""
        await self.events.write(room, key, document, replace(event, at=time()))

    async def note(self, event: Event) -> None:
        """Log an event as of now."""
        event = replace(event, at=time())
        try:
            await self.events.append(event)
        except Unavailable as error:
            self._journal.lifecycle("event_not_kept", level="error", what=event.what, model=event.model, why=str(error))
