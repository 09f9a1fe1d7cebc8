"""Who of a fleet acts. A holder renews its lease; who sees for long that nobody does takes it. Pure: `now` is each one's monotonic clock.

No clock of another's is believed, nor Redis's: a lease has a counter and not a time, and "for long" is measured by whoever waits. Clocks
that jump move nothing. A holder stops acting before anyone may take over, counted from when it sent its last renewal; and what it may still
have on its way then is refused by its token (fencing), which each new holder raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.state.base import Fence

TERM = 2.0
"""Seconds without a renewal, after which a lease is taken by another."""


class Held(NamedTuple):
    """A lease as it's read: `beat` rises with each renewal, `token` with each holder."""

    holder: str
    token: int
    beat: int


@dataclass(slots=True)
class Lease:
    """What one server, `me`, knows of the lease."""

    me: str
    name: str
    term: float = TERM
    seen: Held = field(default_factory=lambda: Held("", 0, 0))
    since: float = 0.0

    def may_take(self, now: float) -> bool:
        """Whether nobody has renewed what was seen for a whole term."""
        return self.seen.holder != self.me and now - self.since >= self.term

    def read(self, held: Held, sent: float, now: float) -> None:
        """Note what an attempt that was sent at a time found, now that it's answered."""
        if held != self.seen:
            self.seen, self.since = held, sent if held.holder == self.me else now

    def leads(self, now: float) -> bool:
        """Whether this server may act."""
        return self.seen.holder == self.me and now - self.since < self.term

    def fence(self, now: float) -> Fence | None:
        """What its acts are to be fenced by, None where it mayn't act."""
        return Fence(self.name, self.me, self.seen.token) if self.leads(now) else None
