"""When a connection is read: only while nobody has a reason to hold it, and a large body only as fast as the others can bear."""

from __future__ import annotations

import asyncio
from functools import partial

from uvicorn.protocols.http.flow_control import FlowControl

LARGE_PIECE = 32 * 1024  # bytes of a body in one read, from which on the other connections are served before the next
UNRESTED = 640 * 1024  # bytes of a body that come without rests, unless it is big JSON: what an image has
REST = 0.001  # seconds between later pieces while others are served: a machine has few cores, and copying takes one whole


class Flow(FlowControl):
    """Reading pauses while anyone holds it. uvicorn's own pause and resume are the holder `cold`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._holders: set[str] = set()

    def hold(self, holder: str) -> None:
        if not self._holders:
            super().pause_reading()
        self._holders.add(holder)

    def release(self, holder: str) -> None:
        if holder in self._holders:
            self._holders.discard(holder)
            if not self._holders and not self._transport.is_closing():
                super().resume_reading()

    def pace(self, loop: asyncio.AbstractEventLoop, size: int, *, rests: bool) -> None:
        """A piece of `size` bytes has come; before the next others may be served, or it `rests`.

        libuv reads up to 32 pieces from one socket before it looks at the others: one large piece a turn is fair.
        """
        if size < LARGE_PIECE:
            return
        self.hold("pace")
        release = partial(self.release, "pace")
        if rests:
            loop.call_later(REST, release)
        else:
            loop.call_soon(release)

    def release_all(self) -> None:
        for holder in tuple(self._holders):
            self.release(holder)

    def held_by(self, holder: str) -> bool:
        return holder in self._holders

    def pause_reading(self) -> None:
        self.hold("cold")

    def resume_reading(self) -> None:
        self.release("cold")
