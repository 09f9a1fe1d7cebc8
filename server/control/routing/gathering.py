"""What the replicas that serve one trial share, as far as the trials' owner asks: the evidence of all, and who acts on it."""

from __future__ import annotations

from typing import Protocol

from server.errors import NotFound
from server.router.evidence import Evidence


class Gathering(Protocol):
    """All that reach the store raise Unavailable where it can't be reached."""

    @property
    def reachable(self) -> bool:
        """Whether what the others decide is heard. Where it isn't, the baseline answers everything."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this replica is the one that judges and steps."""
        ...

    async def begin(self, experiment: str) -> None:
        """Gather evidence under this id, which nobody used before."""
        ...

    async def publish(self, experiment: str, seen: Evidence) -> None:
        """Add what was seen here since the last time. Raises NotFound where nothing is gathered under this id any more."""
        ...

    async def gathered(self, experiment: str) -> Evidence:
        """What all have published, as of now: it's changed by the next call, and by nobody else. Raises NotFound."""
        ...

    async def end(self, experiment: str) -> None:
        """Forget the evidence."""
        ...


class Here:
    """What one server gathers in its own memory."""

    reachable = leads = True

    def __init__(self) -> None:
        self._evidence: dict[str, Evidence] = {}

    async def begin(self, experiment: str) -> None:
        self._evidence[experiment] = Evidence()

    async def publish(self, experiment: str, seen: Evidence) -> None:
        self._of(experiment).merge(seen)

    async def gathered(self, experiment: str) -> Evidence:
        return self._of(experiment)

    async def end(self, experiment: str) -> None:
        self._evidence.pop(experiment, None)

    def _of(self, experiment: str) -> Evidence:
        try:
            return self._evidence[experiment]
        except KeyError:
            raise NotFound(f"nothing is gathered of experiment {experiment[:80]!r}") from None
