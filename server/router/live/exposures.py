"""Who was given which arm of an experiment, remembered for a while so that what becomes of it can be reported. Bounded; no I/O."""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum

from server.router.evidence import Arm

MOST = 1 << 16
"""Request ids and sticky keys of each experiment that are remembered: the oldest go first."""
MOST_TEXT = 256
"""Characters of an id or a key; longer ones aren't remembered."""


class Report(StrEnum):
    """What became of a report."""

    COUNTED = "counted"
    UNKNOWN = "unknown"  # never exposed here, or too long ago
    REPEATED = "repeated"  # the metric was reported for it before


class Exposure:
    """The arm, the canary's share then in percent, and the metrics that were reported since."""

    __slots__ = ("arm", "reported", "stratum")

    def __init__(self, arm: Arm, stratum: float) -> None:
        self.arm = arm
        self.stratum = stratum
        self.reported: frozenset[str] = frozenset()


class Exposures:
    """By request id, and by sticky key. A key that comes again under another arm or share is a new exposure; else it's one, however
    many requests it sends."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._by_id: OrderedDict[str, Exposure] = OrderedDict()
        self._by_key: OrderedDict[str, Exposure] = OrderedDict()

    def add(self, request_id: str, key: str, arm: Arm, stratum: float) -> None:
        """Remember a request, by what it has of both."""
        if request_id and len(request_id) <= MOST_TEXT:
            self._keep(self._by_id, request_id, Exposure(arm, stratum))
        if key and len(key) <= MOST_TEXT:
            known = self._by_key.get(key)
            if known is None or known.arm is not arm or known.stratum != stratum:
                self._keep(self._by_key, key, Exposure(arm, stratum))

    def report(self, metric: str, *, request_id: str = "", key: str = "") -> tuple[Report, Exposure | None]:
        """Whose a report is, and whether it's to be counted: once for each metric and exposure."""
        found = self._by_id.get(request_id) if request_id else self._by_key.get(key)
        if found is None:
            return Report.UNKNOWN, None
        if metric in found.reported:
            return Report.REPEATED, found
        found.reported |= {metric}
        return Report.COUNTED, found

    def _keep(self, room: OrderedDict[str, Exposure], name: str, exposure: Exposure) -> None:
        room.pop(name, None)
        if len(room) >= self._most:
            room.popitem(last=False)
        room[name] = exposure
