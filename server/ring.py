"""What happened last: bounded rings in memory of arrivals, batches, lane and routing events, always on, written out when asked for.

An event is a tuple of its time (time.monotonic) and the values of FIELDS: plain numbers and short text, so that noting one costs a tenth
of a microsecond and keeps nothing of a request alive. This file knows no request, no file and no edge.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson

Event: TypeAlias = tuple[Any, ...]

SCHEMA_VERSION = 1
FIELDS: Mapping[str, tuple[str, ...]] = {
    "arrival": ("model", "version", "rows", "length", "priority", "tenant", "deadline"),
    "batch": ("model", "version", "precision", "rows", "requests", "length", "reason", "lane", "compute_s"),
    "lane": ("lane", "what"),
    "routing": ("model", "version", "what"),
}
"""Kind → what an event of it holds after its time. Rare kinds have rings of their own, so that arrivals don't push them out."""

KEPT: Mapping[str, int] = {"arrival": 32_768, "batch": 8_192, "lane": 1_024, "routing": 1_024}
MAX_TEXT = 256


class Ring:
    """`arrival`, `batch`, `lane` and `routing` note an event; `lines` are all that are kept, as JSON lines in order of time."""

    __slots__ = ("_kept", "arrival", "batch", "lane", "routing")

    def __init__(self, kept: Mapping[str, int] = KEPT) -> None:
        self._kept: dict[str, deque[Event]] = {kind: deque(maxlen=kept[kind]) for kind in FIELDS}
        self.arrival, self.batch, self.lane, self.routing = (self._kept[kind].append for kind in FIELDS)

    def lines(self, server: str) -> Iterator[bytes]:
        """A head that says what this is, then the events. Times become Unix time. Any thread; O(all that is kept)."""
        events = [(event[0], kind, event) for kind, kept in self._kept.items() for event in kept.copy()]
        events.sort(key=lambda item: item[0])
        yield head("incident", server, events=len(events))
        offset = unix_offset()
        for _, kind, event in events:
            yield line(kind, event, offset)


def head(kind: str, server: str, **facts: Any) -> bytes:
    """The first line of a file of events: what it is, by which version of the server, since when."""
    return orjson.dumps({"event": kind, "schema": SCHEMA_VERSION, "server": server, "at": datetime.now(UTC).isoformat(), **facts}) + b"\n"


def line(kind: str, event: Event, offset: float, **more: Any) -> bytes:
    """One event as a line of JSON; `offset` makes Unix time of its time."""
    values = dict(zip(FIELDS[kind], event[1:], strict=True))
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value[:MAX_TEXT]
    return orjson.dumps({"t": round(event[0] + offset, 6), "event": kind, **values, **more}) + b"\n"


def unix_offset() -> float:
    """Unix time less time.monotonic, now."""
    return time.time() - time.monotonic()
