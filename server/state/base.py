"""The seam behind which lies what must outlive a restart: documents by room and key, and a log of events that only grows.

An implementation blocks and may be called from any thread; the event loop calls it through an executor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

Document: TypeAlias = Mapping[str, Any]
"""Plain JSON: what the admin API set for a model, where a canary stands."""

MOST_EVENTS = 10_000
"""Events that are kept; the oldest go first."""
MOST_TEXT = 1024
"""Characters of each of an event's texts; more is cut."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed: who did it when (Unix time), to which model, `what` it was, from and to what, and why.

    `who` is a principal's name, or the part of the server that decided. `number` is the store's: it rises, and
    none is given twice.
    """

    at: float
    who: str
    what: str
    model: str = ""
    was: str = ""
    now: str = ""
    why: str = ""
    number: int = 0

    def cut(self) -> Event:
        """With texts of MOST_TEXT characters at the most."""
        texts = {name: getattr(self, name)[:MOST_TEXT] for name in ("who", "what", "model", "was", "now", "why")}
        return replace(self, **texts)


class StateStore(Protocol):
    """All raise Unavailable where the store can't be read or written now: nothing changed then."""

    def read(self, room: str) -> dict[str, Document]:
        """All documents of a room by key."""
        ...

    def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        """Put a document in the place of what was there, None takes it away, and log the event: both happen or neither does. The event as
        it's kept."""
        ...

    def put(self, room: str, key: str, document: Document) -> None:
        """Put a document in the place of what was there and log nothing: for what is noted again and again."""
        ...

    def append(self, event: Event) -> Event:
        """Log an event; as it is kept: with its number, and its texts cut."""
        ...

    def events(self, after: int = 0, most: int = 1000) -> Sequence[Event]:
        """The oldest events with a number above `after`, at most so many, in order."""
        ...

    def close(self) -> None:
        """Give everything back. Twice is once."""
        ...
