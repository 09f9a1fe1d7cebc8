"""Trials as the state has them: each is written in the place of what was last seen there, so that no server overwrites another's."""

from __future__ import annotations

from server.control.routing.trial import Trial, as_document, trial_of
from server.errors import Superseded
from server.logs import Journal
from server.state.base import Document, Event, Fence, Swap
from server.state.events import Events

ROOM = "trials"
"""Of the state: documents by model."""


class Written:
    """By model's name. All raise Unavailable where the state can't be reached."""

    def __init__(self, events: Events, journal: Journal) -> None:
        self._events = events
        self._journal = journal
        self._seen: dict[str, Document] = {}

    async def read(self) -> dict[str, Trial]:
        """All that make sense; of the others it's told, and they're left."""
        found = await self._events.read(ROOM)
        trials = {}
        for model, document in found.items():
            try:
                trials[model] = trial_of(model, document)
            except ValueError as error:
                self._journal.lifecycle("experiment_not_restored", level="error", model=model, reason=str(error))
        self._seen = {model: document for model, document in found.items() if model in trials}
        return trials

    async def put(self, trial: Trial, event: Event, fence: Fence | None = None) -> None:
        """Write one in the place of the one of its model that was last read or written here. Raises Superseded where another server has
        written since, or leads."""
        document = as_document(trial)
        await self._events.swap(Swap(ROOM, trial.model, self._seen.get(trial.model), document), event, fence)
        self._seen[trial.model] = document

    async def over(self, trial: Trial, event: Event) -> bool:
        """Write an end, whatever step another server has written meanwhile: whether it was this one's to write."""
        while True:
            known = (await self.read()).get(trial.model)
            if known is not None and (known.id != trial.id or not known.going):
                return False
            try:
                await self.put(trial, event)
            except Superseded:
                continue
            return True
