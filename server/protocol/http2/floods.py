"""Frames that cost more to answer than to send, counted: beyond a rate they end the connection with ENHANCE_YOUR_CALM.

Each kind has a bucket that fills at its rate (token bucket). What came of their absence: CVE-2019-9512 (ping), 9514 (reset), 9515
(settings), 9518 (empty frames), CVE-2023-44487 (rapid reset), CVE-2024-27316 (continuation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from server.protocol.http2.codes import ConnectionFault, ErrorCode


class Costly(StrEnum):
    """What is counted."""

    RESET = "resets"
    PING = "pings"
    SETTINGS = "settings"
    EMPTY = "empty frames"
    WINDOW = "window updates"
    UNKNOWN = "frames of no use"


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, then `each_second`."""

    burst: float
    each_second: float


RATES: Mapping[Costly, Rate] = MappingProxyType(
    {
        Costly.RESET: Rate(200, 50),
        Costly.PING: Rate(50, 10),
        Costly.SETTINGS: Rate(20, 2),
        Costly.EMPTY: Rate(100, 20),
        Costly.WINDOW: Rate(20_000, 20_000),
        Costly.UNKNOWN: Rate(100, 10),
    }
)


class Floods:
    """The buckets of one connection."""

    def __init__(self, now: float, rates: Mapping[Costly, Rate] = RATES) -> None:
        self._rates = rates
        self._left = {kind: rate.burst for kind, rate in rates.items()}
        self._at = dict.fromkeys(rates, now)

    def count(self, kind: Costly, now: float) -> None:
        """Note one. Raises ConnectionFault where they are too many. A clock that stands still or goes back gives nothing."""
        rate = self._rates[kind]
        passed = max(0.0, now - self._at[kind])
        self._at[kind] = max(now, self._at[kind])
        left = min(rate.burst, self._left[kind] + passed * rate.each_second) - 1
        if left < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {kind}: more than {rate.each_second:g} a second")
        self._left[kind] = left
