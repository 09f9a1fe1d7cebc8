"""What a server of a fleet hears of the state that it shares: the seam between whoever listens and whoever acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.state.base import Fence


@dataclass(frozen=True, slots=True)
class News:
    """What is so now. `reachable`: others' decisions are heard, else `why` not. `leads`: this server acts for all. `emptied`: all of the
    state, or the latest of it, was lost since the last time. `number` is the last event's."""

    reachable: bool
    leads: bool
    emptied: bool = False
    number: int = 0
    why: str = ""


class Watching(Protocol):
    """Calls back, in a thread of its own, with News: whenever something changed, never for nothing."""

    source: str
    """This server's name among those that share the state: no other has had it, nor it before it was started."""

    @property
    def reachable(self) -> bool: ...

    @property
    def leads(self) -> bool: ...

    @property
    def fence(self) -> Fence | None:
        """What the acts of the one that leads are fenced by."""
        ...

    def start(self) -> None: ...

    def close(self) -> None:
        """Stop, and let another lead. Blocks. Twice is once."""
        ...
