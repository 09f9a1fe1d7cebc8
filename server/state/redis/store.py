"""Documents, events and tallies in a Redis: as StateStore says. What is found there is checked before it's believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson

from server.config import Settings
from server.state.base import MOST_EVENTS, Counted, Counts, Document, Event, Fence, Swap
from server.state.redis.desk import Desk
from server.state.redis.link import Place

LOW = 40
"""Bits of the lower part of squares."""
ANY, NONE, LEAVE, TAKE_AWAY = b"*", b"", b"*", b"-"
NO_FENCE = Fence("", "", 0)


class RedisState:
    """As StateStore says. Raises ConfigError where what is there can't be used; a Redis that can't be reached may come later."""

    def __init__(self, place: Place, most_events: int = MOST_EVENTS) -> None:
        self._most_events = most_events
        self._desk = Desk(place)

    def read(self, room: str) -> dict[str, Document]:
        key = self._desk.names.room(room)
        with self._desk.link.using() as client:
            rows: dict[bytes, bytes] = client.hgetall(key)  # type: ignore[assignment]
        return {name.decode(): self._document(key, name, found) for name, found in rows.items()}

    def put(self, room: str, key: str, document: Document) -> None:
        self._change(Swap(room, key, None, document), ANY, None, NO_FENCE)

    def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        return self._change(Swap(room, key, None, document), ANY, event, NO_FENCE)

    def swap(self, swap: Swap, event: Event, fence: Fence | None = None) -> Event:
        return self._change(swap, NONE if swap.was is None else _bytes(swap.was), event, fence or NO_FENCE)

    def begin(self, tally: str) -> None:
        self._desk.ask("begin", self._desk.names.tally(tally), ())

    def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        cells = (
            part for cell, (n, total, squares) in counts.items() for part in (cell, n, total, squares >> LOW, squares & ((1 << LOW) - 1))
        )
        self._desk.ask("count", self._desk.names.tally(tally), (source, number, *cells))

    def counted(self, tally: str, after: int = 0) -> Counted:
        keys = self._desk.names.tally(tally)
        revision, *rest = self._desk.ask("counted", keys, (after,))
        cells = zip(rest[::2], rest[1::2], strict=True)
        return Counted(int(revision), {cell.decode(): self._sums(keys[1], found) for cell, found in cells})

    def end(self, tally: str) -> None:
        self._desk.ask("end", self._desk.names.tally(tally), ())

    def append(self, event: Event) -> Event:
        return self._change(Swap("none", "", None, None), ANY, event, NO_FENCE, leave=True)

    def events(self, after: int = 0, most: int = 1000) -> Sequence[Event]:
        key = self._desk.names.events
        if most <= 0:
            return []
        with self._desk.link.using() as client:
            rows: list[Any] = client.xrange(key, f"{after + 1}-0", "+", most)  # type: ignore[assignment]
        return [self._event(key, number, fields) for number, fields in rows]

    def close(self) -> None:
        self._desk.close()

    def _change(self, swap: Swap, expected: bytes, event: Event | None, fence: Fence, *, leave: bool = False) -> Event:
        names, event = self._desk.names, None if event is None else event.cut()
        document = LEAVE if leave else TAKE_AWAY if swap.document is None else _bytes(swap.document)
        keys = (names.room(swap.room), names.events, names.number, names.revision, names.lease)
        logged = b"" if event is None else orjson.dumps({name: value for name, value in asdict(event).items() if name != "number"})
        said = (swap.key, document, expected, logged, self._most_events, names.channel, fence.holder, fence.token)
        (number,) = self._desk.ask("change", keys, said)
        return replace(event or _UNLOGGED, number=number)

    def _document(self, key: str, name: bytes, found: bytes) -> Document:
        try:
            document = orjson.loads(found)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise self._desk.foreign(key, f"{name.decode(errors='replace')!r} has {found[:80].decode(errors='replace')!r}")
        return document

    def _sums(self, key: str, found: bytes) -> tuple[int, int, int]:
        try:
            n, total, high, low = map(int, found.split())
        except ValueError as error:
            raise self._desk.foreign(key, found[:80].decode(errors="replace")) from error
        return n, total, (high << LOW) + low

    def _event(self, key: str, number: bytes, fields: dict[bytes, bytes]) -> Event:
        try:
            found = orjson.loads(fields.get(b"event", b""))
        except orjson.JSONDecodeError:
            found = None
        match found:
            case {"at": int() | float() as at, "who": str(), "what": str(), "model": str(), "was": str(), "now": str(), "why": str()}:
                who, what, model, was, now, why = (found[name] for name in ("who", "what", "model", "was", "now", "why"))
                return Event(float(at), who, what, model, was, now, why, int(number.partition(b"-")[0]))
        raise self._desk.foreign(key, f"{number.decode()} has {str(fields)[:80]}")


_UNLOGGED = Event(0.0, "", "")


def open_redis(settings: Settings) -> RedisState:
    """The Redis that the settings name. Raises ConfigError."""
    return RedisState(Place.from_settings(settings))


def _bytes(document: Document) -> bytes:
    """The one form of a document, so that what is the same is the same bytes."""
    return orjson.dumps(dict(document), option=orjson.OPT_SORT_KEYS)
