"""Which priorities a model takes just now: what an operator, or an alert's action, sheds for a while. In the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

from server.errors import InvalidRequest, NotFound
from server.router.table import ServedVersion, ServingTable
from server.state.base import Event

MOST_TTL = 86400.0  # seconds


@dataclass(frozen=True, slots=True)
class Shed:
    """Only priorities up to `min_priority` (1 is the highest) are taken, until `end`."""

    min_priority: int
    end: float
    timer: asyncio.TimerHandle


class Admissions:
    """By model's name; over reloads, until the time is over."""

    def __init__(self, table: ServingTable) -> None:
        self._table = table
        self._shed: dict[str, Shed] = {}

    def read(self, name: str) -> dict[str, int | float | None]:
        """What holds now. Raises NotFound."""
        self._engines(name)
        shed = self._shed.get(name)
        if shed is None:
            return {"min_priority": None, "ttl_s": None}
        return {"min_priority": shed.min_priority, "ttl_s": round(max(0.0, shed.end - monotonic()), 3)}

    def set(self, name: str, min_priority: int, ttl: float, who: str) -> Event:
        """Take only priorities up to `min_priority` for `ttl` seconds, in the place of what was asked for before; the event to be logged.
        Raises NotFound, and InvalidRequest for a priority that the model doesn't have."""
        served = self._engines(name)
        levels = min(version.config.queue.priorities for version in served)
        if not 1 <= min_priority <= levels:
            raise InvalidRequest(f"model '{name}' has priorities 1 (the highest) to {levels}: min_priority can't be {min_priority}")
        if not 0 < ttl <= MOST_TTL:
            raise InvalidRequest(f"ttl_s must be more than 0 and at most {MOST_TTL:g}, got {ttl:g}")
        was = self._end(name)
        timer = asyncio.get_running_loop().call_later(ttl, self.clear, name, "")
        self._shed[name] = Shed(min_priority, monotonic() + ttl, timer)
        for version in served:
            self.renew(version)
        return Event(0.0, who, "admission", name, was, f"priorities 1 to {min_priority} for {ttl:g} s", "asked for through the admin API")

    def clear(self, name: str, who: str) -> Event:
        """Take all priorities again; the event to be logged."""
        return Event(0.0, who, "admission", name, self._end(name), "all priorities", "asked for through the admin API")

    def renew(self, served: ServedVersion) -> None:
        """Have a version that was just loaded shed what its model does."""
        shed = self._shed.get(served.model)
        if served.engine is not None and shed is not None:
            served.engine.shed(shed.min_priority)

    def _end(self, name: str) -> str:
        shed = self._shed.pop(name, None)
        if shed is None:
            return "all priorities"
        shed.timer.cancel()
        for served in self._table.versions(name):
            if served.engine is not None:
                served.engine.shed(None)
        return f"priorities 1 to {shed.min_priority}"

    def _engines(self, name: str) -> list[ServedVersion]:
        """Raises NotFound where no version of that name runs a model of its own."""
        served = [version for version in self._table.versions(name) if version.engine is not None]
        if not served:
            raise NotFound(f"no version of a model '{name[:255]}' serves here with a queue of its own")
        return served
