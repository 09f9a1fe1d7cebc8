"""State that ends with the process: where no file was named, and for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock

from server.errors import NotFound, Superseded, Unavailable
from server.state.base import MOST_EVENTS, Counted, Counts, Document, Event, Fence, Swap


@dataclass(slots=True)
class _Tally:
    """Cells with the revision that each changed at last, and each source's last number."""

    revision: int = 0
    cells: dict[str, tuple[int, tuple[int, int, int]]] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)


class MemoryState:
    """As StateStore says."""

    def __init__(self, most_events: int = MOST_EVENTS) -> None:
        self._rooms: dict[str, dict[str, Document]] = {}
        self._tallies: dict[str, _Tally] = {}
        self._events: deque[Event] = deque(maxlen=most_events)
        self._last = 0
        self._lock = Lock()
        self._closed = False

    def read(self, room: str) -> dict[str, Document]:
        with self._open():
            return dict(self._rooms.get(room, {}))

    def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        with self._open():
            return self._put(room, key, document, event)

    def swap(self, swap: Swap, event: Event, fence: Fence | None = None) -> Event:
        with self._open():
            if self._rooms.get(swap.room, {}).get(swap.key) != swap.was:
                raise Superseded(f"{swap.room} of {swap.key!r} has changed meanwhile")
            return self._put(swap.room, swap.key, swap.document, event)

    def begin(self, tally: str) -> None:
        with self._open():
            self._tallies[tally] = _Tally()

    def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        with self._open():
            kept = self._tally(tally)
            if number <= kept.sources.get(source, 0):
                return
            kept.sources[source], kept.revision = number, kept.revision + 1
            for cell, (n, total, squares) in counts.items():
                _, before = kept.cells.get(cell, (0, (0, 0, 0)))
                kept.cells[cell] = (kept.revision, (before[0] + n, before[1] + total, before[2] + squares))

    def counted(self, tally: str, after: int = 0) -> Counted:
        with self._open():
            kept = self._tally(tally)
            return Counted(kept.revision, {cell: sums for cell, (revision, sums) in kept.cells.items() if revision > after})

    def end(self, tally: str) -> None:
        with self._open():
            self._tallies.pop(tally, None)

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

    def _put(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        if document is None:
            self._rooms.get(room, {}).pop(key, None)
        else:
            self._rooms.setdefault(room, {})[key] = dict(document)
        return self._log(event)

    def _tally(self, name: str) -> _Tally:
        kept = self._tallies.get(name)
        if kept is None:
            raise NotFound(f"nothing is counted under {name!r}")
        return kept

    def _log(self, event: Event) -> Event:
        self._last += 1
        self._events.append(kept := replace(event.cut(), number=self._last))
        return kept

    def _open(self) -> Lock:
        if self._closed:
            raise Unavailable("the state is closed: the server is going down")
        return self._lock
