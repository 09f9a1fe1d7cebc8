"""Switches a model that serves to another precision, or back, without a request that notices."""

from __future__ import annotations

from server.control.overrides import Wish
from server.control.precision.precisions import not_switched, switched
from server.control.precision.stepping import AUTOMATIC
from server.control.versions import Versions
from server.logs import Journal
from server.state.changes import Changes

ASKED = "asked for through the admin API"


class Switching:
    def __init__(self, versions: Versions, journal: Journal, changes: Changes) -> None:
        self._versions = versions
        self._precisions = versions.precisions
        self._journal = journal
        self._changes = changes

    async def switch(self, name: str, precision: str | None, who: str, why: str) -> None:
        """As ControlPlane.switch."""
        turn = self._precisions.ask(name)
        async with self._versions.lock(name):
            self._precisions.check_newest(name, turn, precision)
            rows, before = self._precisions.checked(name, precision), self._precisions.held(name)
            _, listing = await self._versions.find(name, Wish())
            self._precisions.hold(name, *((None, precision) if who in AUTOMATIC else (precision, None)))
            faults = await self._versions.apply(name, listing)
            if faults:
                self._precisions.hold(name, *before)
                await self._versions.apply(name, listing)  # those versions that had switched, back
                raise not_switched(name, rows, precision, faults)
            now = [row.active for row in self._precisions.rows(name)]
            await self._changes.note(switched(name, rows, now, (who, why)))
            self._journal.lifecycle("precision_switched", model=name, before=[row.active for row in rows], now=now)
