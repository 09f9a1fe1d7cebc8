"""Calls that come close to each other are begun in one turn of the loop, so that they can share a batch.

HTTP's requests are all there once the sockets were read. grpc.aio hands over one call at a time, each some turns of the loop after the one
before, and a model that runs in microseconds would run for each alone. So a call waits for PATIENCE turns after the last that came, where
that has paid, and the more turns the more it has paid; a client that sends one call after the other doesn't wait. What it is worth is
tried out every PROBE-th time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

PATIENCE = 12  # turns of the loop without another call; an idle turn takes some 10 µs
KEENNESS = 2  # turns more for each call that came while one waited, on average
MOST_PATIENCE = 36
LONGEST = 3e-3  # seconds that the first of them waits at most, where others come all the time
MOST = 64  # calls that are held at most
PROBE = 31  # a prime: groups of calls whose size divides it would be tried at their last one again and again
MEMORY = 1 / 8  # weight of the newest trial in what waiting is worth
WORTH = 0.1  # calls that must have come while one waited, on average


class Gathering:
    """`add` a call's beginning; it's called in this turn or some turns later. `worth` is how many others came while one waited."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.worth = 0.0
        self._loop = loop
        self._held: list[Callable[[], None]] = []
        self._since = 0.0
        self._patience = PATIENCE
        self._left = 0
        self._count = 0

    def add(self, begin: Callable[[], None]) -> None:
        """Have `begin` called, at once where waiting isn't worth it."""
        if not self._held:
            self._count += 1
            if self.worth < WORTH and self._count % PROBE:
                begin()
                return
            self._since = monotonic()
            self._patience = min(MOST_PATIENCE, PATIENCE + int(KEENNESS * self.worth))
            self._loop.call_soon(self._turn)
        self._held.append(begin)
        self._left = self._patience

    def _turn(self) -> None:
        self._left -= 1
        if self._left > 0 and len(self._held) < MOST and monotonic() - self._since < LONGEST:
            self._loop.call_soon(self._turn)
            return
        held, self._held = self._held, []
        self.worth += MEMORY * (len(held) - 1 - self.worth)
        for begin in held:
            begin()
