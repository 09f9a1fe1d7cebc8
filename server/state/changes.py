"""Writes down what changed in what is served, and by whom: into the state's log of events. A log that can't be written stops no change."""

from __future__ import annotations

from dataclasses import replace
from time import time

from server.config import Settings
from server.errors import Unavailable
from server.logs import Journal
from server.state.base import Document, Event
from server.state.events import Events
from server.state.memory import MemoryState
from server.state.sqlite import SqliteState


def events_of(settings: Settings) -> Events:
    """In the file that the settings name, else in memory. Raises ConfigError for a file that can't be used."""
    return Events(SqliteState(settings.state) if settings.state is not None else MemoryState())


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
