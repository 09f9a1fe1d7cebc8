"""State that ends with the process: where no file was named, and for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from threading import Lock

from server.errors import Unavailable
from server.state.base import MOST_EVENTS, Document, Event


class MemoryState:
    """As StateStore says."""

    def __init__(self, most_events: int = MOST_EVENTS) -> None:
        self._rooms: dict[str, dict[str, Document]] = {}
        self._events: deque[Event] = deque(maxlen=most_events)
        self._last = 0
        self._lock = Lock()
        self._closed = False

    def read(self, room: str) -> dict[str, Document]:
        with self._open():
            return dict(self._rooms.get(room, {}))

    def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        with self._open():
            if document is None:
                self._rooms.get(room, {}).pop(key, None)
            else:
                self._rooms.setdefault(room, {})[key] = dict(document)
            return self._log(event)

    def put(self, room: str, key: str, document: Document) -> None:
        with self._open():
            self._rooms.setdefault(room, {})[key] = dict(document)

    def append(self, event: Event) -> Event:
        with self._open():
            return self._log(event)

    def events(self, after: int = 0, most: int = 1000) -> Sequence[Event]:
        with self._open():
            return list(islice((event for event in self._events if event.number > after), max(0, most)))

    def close(self) -> None:
        self._closed = True

    def _log(self, event: Event) -> Event:
        self._last += 1
        self._events.append(kept := replace(event.cut(), number=self._last))
        return kept

    def _open(self) -> Lock:
        if self._closed:
            raise Unavailable("the state is closed: the server is going down")
        return self._lock
