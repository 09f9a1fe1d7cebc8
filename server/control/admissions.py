"""Which priorities a model takes just now: what an operator, or an alert's action, sheds for a while. In the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic, time

from server.errors import InvalidRequest, NotFound, Unavailable
from server.logs import Journal
from server.router.table import ServedVersion, ServingTable, engines_of
from server.state.base import Document, Event
from server.state.changes import Changes

MOST_TTL = 86400.0  # seconds
ROOM = "admission"
ALL = "all priorities"
ASKED = "asked for through the admin API"


@dataclass(frozen=True, slots=True)
class Shed:
    """Only priorities up to `min_priority` (1 is the highest) are taken, until `end`."""

    min_priority: int
    end: float
    timer: asyncio.TimerHandle


class Admissions:
    """By model's name; over reloads and restarts, until the time is over."""

    def __init__(self, table: ServingTable, journal: Journal, changes: Changes) -> None:
        self._table = table
        self._journal = journal
        self._changes = changes
        self._shed: dict[str, Shed] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Have what was kept hold for the rest of its time. Before any model is loaded. Raises Unavailable."""
        for name, document in (await self._changes.events.read(ROOM)).items():
            try:
                self._begin(name, int(document["min_priority"]), float(document["until"]) - time())
            except (KeyError, TypeError, ValueError) as error:
                self._journal.lifecycle("state_not_understood", level="error", room=ROOM, model=name, why=repr(error))

    def read(self, name: str) -> dict[str, int | float | None]:
        """What holds now. Raises NotFound."""
        self._engines(name)
        shed = self._shed.get(name)
        if shed is None:
            return {"min_priority": None, "ttl_s": None}
        return {"min_priority": shed.min_priority, "ttl_s": round(max(0.0, shed.end - monotonic()), 3)}

    async def set(self, name: str, min_priority: int, ttl: float, who: str) -> None:
        """Take only priorities up to `min_priority` for `ttl` seconds, in the place of what was asked for before. Raises NotFound,
        InvalidRequest for a priority that the model doesn't have."""
        served = self._engines(name)
        levels = min(version.config.queue.priorities for version in served)
        if not 1 <= min_priority <= levels:
            raise InvalidRequest(f"model '{name}' has priorities 1 (the highest) to {levels}: min_priority can't be {min_priority}")
        if not 0 < ttl <= MOST_TTL:
            raise InvalidRequest(f"ttl_s must be more than 0 and at most {MOST_TTL:g}, got {ttl:g}")
        now = f"priorities 1 to {min_priority} for {ttl:g} s"
        event = Event(0.0, who, "admission", name, self._now(name), now, ASKED)
        self._end(name)
        self._begin(name, min_priority, ttl)
        for version in self._table.versions(name):
            self.renew(version)
        await self._kept(event, {"min_priority": min_priority, "until": time() + ttl})

    async def clear(self, name: str, who: str, why: str = ASKED) -> None:
        """Take all priorities again."""
        event = Event(0.0, who, "admission", name, self._now(name), ALL, why)
        self._end(name)
        await self._kept(event)

    def close(self) -> None:
        """Watch no time any more."""
        for shed in self._shed.values():
            shed.timer.cancel()
        for task in self._work:
            task.cancel()

    def _begin(self, name: str, min_priority: int, ttl: float) -> None:
        timer = asyncio.get_running_loop().call_later(max(0.0, ttl), self._over, name)
        self._shed[name] = Shed(min_priority, monotonic() + ttl, timer)

    def _over(self, name: str) -> None:
        """Its time is over, whether that can be written down or not."""
        event = Event(0.0, "", "admission", name, self._now(name), ALL, "its ttl_s is over")
        self._end(name)
        task = asyncio.ensure_future(self._kept(event))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _kept(self, event: Event, document: Document | None = None) -> None:
        """Keep what holds now. A load isn't taken on again because that can't be written down."""
        try:
            await self._changes.keep(ROOM, event.model, document, event)
        except Unavailable as error:
            self._journal.lifecycle("event_not_kept", level="error", what=event.what, model=event.model, why=str(error))

    def _now(self, name: str) -> str:
        shed = self._shed.get(name)
        return ALL if shed is None else f"priorities 1 to {shed.min_priority}"

    def renew(self, served: ServedVersion) -> None:
        """Have all of a version that is loaded shed what its model does."""
        shed = self._shed.get(served.model)
        for engine in engines_of(served):
            if shed is not None or engine.min_priority is not None:
                engine.shed(None if shed is None else shed.min_priority)

    def _end(self, name: str) -> None:
        shed = self._shed.pop(name, None)
        if shed is not None:
            shed.timer.cancel()
        for served in self._table.versions(name):
            self.renew(served)

    def _engines(self, name: str) -> list[ServedVersion]:
        """Raises NotFound where no version of that name runs a model of its own."""
        served = [version for version in self._table.versions(name) if version.engine is not None]
        if not served:
            raise NotFound(f"no version of a model '{name[:255]}' serves here with a queue of its own")
        return served
