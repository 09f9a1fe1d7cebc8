"""The seam behind which lies what must outlive a restart: documents by room and key, a log of events that only grows, and tallies.

An implementation blocks and may be called from any thread; the event loop calls it through an executor. Several servers may share what lies
behind one (a file of one machine's, a Redis): a document that another may have changed is swapped, and a tally adds up what all count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

Document: TypeAlias = Mapping[str, Any]
"""Plain JSON: what the admin API set for a model, where a canary stands."""

MOST_EVENTS = 10_000
"""Events that are kept; the oldest go first."""
MOST_TEXT = 1024
"""Characters of each of an event's texts; more is cut."""

Counts: TypeAlias = Mapping[str, tuple[int, int, int]]
"""By cell: a count, a sum (each below 2⁶³) and a sum of squares, none negative, to be added up."""


class Counted(NamedTuple):
    """Cells of a tally as they are now, and the tally's revision: they're the ones that changed after the revision that was asked for."""

    revision: int
    counts: dict[str, tuple[int, int, int]]


class Swap(NamedTuple):
    """One document in the place of another; None is none."""

    room: str
    key: str
    was: Document | None
    document: Document | None


class Fence(NamedTuple):
    """Who is allowed to swap: whoever holds a lease, as long as nobody took it after them."""

    lease: str
    holder: str
    token: int


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

    def swap(self, swap: Swap, event: Event, fence: Fence | None = None) -> Event:
        """As `write`, where the document still is what it was. Raises Superseded where it isn't, or where the fence's lease was taken by
        another (only a store that many servers share looks at it)."""
        ...

    def begin(self, tally: str) -> None:
        """Count under this name from now on, from nothing."""
        ...

    def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        """Add to a tally. A source's numbers rise: what it counted under this number, or a higher one, isn't counted again, so that a call
        may be repeated where it isn't known whether it was done. Raises NotFound where the tally never began, or ended."""
        ...

    def counted(self, tally: str, after: int = 0) -> Counted:
        """What changed after a revision; all of it after 0. Raises NotFound."""
        ...

    def end(self, tally: str) -> None:
        """Forget a tally. Twice is once."""
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
