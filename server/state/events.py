"""What changed, by whom and why: kept in the state and told to whoever listens. In the event loop; the store has a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from server.state.base import Counted, Counts, Document, Event, Fence, StateStore, Swap

MOST_WAITING = 256
"""Events that wait for one listener; a slower one is told that it fell behind, and reads the rest from the store."""

T = TypeVar("T")


class Listener:
    """What one listener hasn't taken yet. `behind`: some were left out, so that it must read from the store after the last it has.
    `ended`: no more will come."""

    def __init__(self) -> None:
        self.behind = self.ended = False
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue(MOST_WAITING)

    def tell(self, event: Event) -> None:
        """Note an event for it."""
        if self._waiting.full():
            self.behind = True
        else:
            self._waiting.put_nowait(event)

    def end(self) -> None:
        """No more will come: wake it, whatever it waits for."""
        self.ended = True
        if self._waiting.empty():
            self._waiting.put_nowait(None)

    async def next(self) -> Event | None:
        """The next event, when there is one; None at the end."""
        return await self._waiting.get()


class Events:
    """The state's documents and its log, for the event loop. Where the store is `shared`, others write to it as well: listeners are told
    of everything in order then, with what `catch_up` finds."""

    def __init__(self, store: StateStore, *, shared: bool = False) -> None:
        self._store = store
        self._shared = shared
        self._last = -1  # the number of the last event that was told, where the store is shared
        self._listeners: set[Listener] = set()
        self._ended = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")

    async def read(self, room: str) -> dict[str, Document]:
        """All documents of a room by key. Raises Unavailable."""
        return await self._run(partial(self._store.read, room))

    async def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        """Keep a document (None: take it away) and log why, then tell. Raises Unavailable, and nothing changed."""
        return await self._run(partial(self._store.write, room, key, document, event), self._told)

    async def put(self, room: str, key: str, document: Document) -> None:
        """Keep a document, and tell nobody. Raises Unavailable."""
        await self._run(partial(self._store.put, room, key, document))

    async def swap(self, swap: Swap, event: Event, fence: Fence | None = None) -> Event:
        """As `write`, where the document still is what it was. Raises Unavailable, and Superseded where another changed it."""
        return await self._run(partial(self._store.swap, swap, event, fence), self._told)

    async def begin(self, tally: str) -> None:
        """Count under this name from now on, from nothing. Raises Unavailable."""
        await self._run(partial(self._store.begin, tally))

    async def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        """Add to a tally, once for each number of a source. Raises Unavailable, NotFound."""
        await self._run(partial(self._store.count, tally, source, number, counts))

    async def counted(self, tally: str, after: int = 0) -> Counted:
        """What changed in a tally after a revision. Raises Unavailable, NotFound."""
        return await self._run(partial(self._store.counted, tally, after))

    async def end_tally(self, tally: str) -> None:
        """Forget a tally. Raises Unavailable."""
        await self._run(partial(self._store.end, tally))

    async def append(self, event: Event) -> Event:
        """Log an event, then tell. Raises Unavailable."""
        return await self._run(partial(self._store.append, event), self._told)

    async def since(self, after: int = 0, most: int = 1000) -> Sequence[Event]:
        """The oldest events with a number above `after`. Raises Unavailable."""
        return await self._run(partial(self._store.events, after, most))

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Hear of every event that is logged while the block runs."""
        listener = Listener()
        listener.ended = self._ended
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def catch_up(self, number: int, *, emptied: bool = False) -> None:
        """Tell of what is logged up to a number, at least, and wasn't told. Where the log was emptied numbers begin anew. Raises
        Unavailable."""
        if self._last < 0 or emptied:
            self._last = number
        while self._listeners and self._last < number:
            logged = [event for event in await self.since(self._last) if event.number > self._last]
            if not logged:
                break
            self._last = logged[-1].number
            for event in logged:
                for listener in self._listeners:
                    listener.tell(event)
        self._last = max(self._last, number)

    def end(self) -> None:
        """Let all who listen go: the server drains."""
        self._ended = True
        for listener in self._listeners:
            listener.end()

    def close(self) -> None:
        """Finish what is being written, close the store. Blocks."""
        self._thread.shutdown()
        self._store.close()

    def _told(self, logged: asyncio.Future[Event]) -> None:
        """Tell of an event that is on disk, before whoever asked for it goes on; also if nobody waits for it any more."""
        if self._shared or logged.cancelled() or logged.exception() is not None:
            return
        for listener in self._listeners:
            listener.tell(logged.result())

    async def _run(self, call: Callable[[], T], then: Callable[[asyncio.Future[T]], None] | None = None) -> T:
        """In the order of the calls: there's one thread. A caller that goes away doesn't take back what it asked for."""
        done = asyncio.get_running_loop().run_in_executor(self._thread, call)
        if then is not None:
            done.add_done_callback(then)
        return await asyncio.shield(done)


def as_json(event: Event) -> dict[str, Any]:
    """The form that people and programs read; what is empty is left out."""
    return {"number": event.number, **{name: value for name, value in asdict(event).items() if name != "number" and value != ""}}
