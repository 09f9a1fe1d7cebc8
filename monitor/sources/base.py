"""The seam of sources: whatever can be asked for readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from monitor.series.window import Reading


class Source(Protocol):
    """Something that is read once a tick. A target that doesn't answer is a reading with its error: a source never raises for one."""

    async def read(self) -> Sequence[Reading]:
        """What its targets say now."""

    async def close(self) -> None:
        """Let go of what it holds."""
