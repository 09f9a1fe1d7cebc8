"""Compressed bodies, one step at a time: a bomb costs at most its limit, and no call holds the caller long.

`deflate` is the zlib format (RFC 1950), as the clients send it. Several gzip members in a row are one body (RFC 1952).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from server.errors import BodyTooLarge, InvalidRequest, Unsupported

Encoding: TypeAlias = Literal["gzip", "deflate", "identity"]

STEP = 1 << 18
"""Most bytes that one step yields."""
MAX_MEMBERS = 4096

_SLICE = 1 << 16  # zlib hands back a copy of the input that a step leaves: in slices, many steps on a big chunk stay linear

_WINDOW: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # tensors hardly compress; a higher level costs three times the time for a few percent


class Inflater:
    """Inflates one body as it arrives. `limit` is the most bytes it may hold once inflated."""

    def __init__(self, encoding: str, limit: int) -> None:
        """Raises Unsupported for an encoding other than gzip and deflate."""
        self.encoding = encoding.strip().lower()
        if self.encoding not in _WINDOW:
            raise Unsupported(f"Content-Encoding {encoding[:64]!r} isn't supported; expected gzip or deflate")
        self._limit = limit
        self._stream = zlib.decompressobj(_WINDOW[self.encoding])
        self._total = 0
        self._members = 1

    def feed(self, chunk: bytes) -> bytes:
        """All that `chunk` inflates to. Raises as `steps` does."""
        return b"".join(self.steps(chunk))

    def steps(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` inflates to, at most STEP bytes at a time. Raises BodyTooLarge over the limit and InvalidRequest for data
        that isn't of the encoding; the inflater is of no use after that."""
        for start in range(0, len(chunk), _SLICE):
            yield from self._slice(chunk[start : start + _SLICE])

    def _slice(self, rest: bytes) -> Iterator[bytes]:
        while True:
            if self._stream.eof:
                if not rest:
                    return
                self._next_member(len(rest))
            out, rest = self._step(rest)
            if out:
                yield out
            if not rest and len(out) < STEP:  # a full step may leave output in zlib after its input is used up
                return

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        try:
            out = self._stream.decompress(data, STEP)
        except zlib.error as error:
            raise InvalidRequest(f"the {self.encoding} body is corrupt: {error}") from None
        self._total += len(out)
        if self._total > self._limit:
            raise BodyTooLarge(f"the {self.encoding} body inflates to more than {self._limit} bytes")
        return out, self._stream.unconsumed_tail or self._stream.unused_data

    def _next_member(self, left: int) -> None:
        self._members += 1
        if self.encoding != "gzip" or self._members > MAX_MEMBERS:
            raise InvalidRequest(f"{left} or more bytes follow the end of the {self.encoding} body (member {self._members})")
        self._stream = zlib.decompressobj(_WINDOW["gzip"])

    def finish(self) -> None:
        """Says that the body is over. Raises InvalidRequest where it was cut short."""
        if not self._stream.eof:
            raise InvalidRequest(f"the {self.encoding} body is cut short")


def deflate(encoding: str, parts: Iterable[bytes | memoryview]) -> bytes:
    """The parts as one compressed body; `encoding` is gzip or deflate. zlib lets other threads run meanwhile."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    pieces = [stream.compress(part) for part in parts]
    pieces.append(stream.flush())
    return b"".join(pieces)


def accepted(header: str) -> Encoding:
    """The encoding for an answer, by the request's Accept-Encoding: the greatest q, gzip before deflate before identity where equal.
    What can't be read is passed over. Only an encoding that is named is used: `*` asks for nothing, so it gets identity."""
    weights: dict[str, float] = {}
    for item in header.split(","):
        coding, *attributes = item.split(";")
        weights[coding.strip().lower()] = _weight(attributes)
    best: Encoding = "identity"
    best_weight = weights.get("identity", 0.0)
    for name in ("deflate", "gzip"):
        weight = weights.get(name, 0.0)
        if weight > 0 and weight >= best_weight:
            best, best_weight = name, weight
    return best


def _weight(attributes: list[str]) -> float:
    for attribute in attributes:
        key, _, value = attribute.partition("=")
        if key.strip().lower() == "q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0 <= weight <= 1 else 0.0
    return 1.0
