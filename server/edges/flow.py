"""When a connection is read: only while nobody has a reason to hold it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


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

    def release_all(self) -> None:
        for holder in tuple(self._holders):
            self.release(holder)

    def held_by(self, holder: str) -> bool:
        return holder in self._holders

    def pause_reading(self) -> None:
        self.hold("cold")

    def resume_reading(self) -> None:
        self.release("cold")
