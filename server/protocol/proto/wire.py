"""Where the fields of a ModelInferRequest lie in its bytes, so that raw tensors can be viewed there instead of being copied out.

protobuf's own parser makes a copy of each `bytes` field and another when it's read. Here only the outermost fields are walked; what they
mean is for that parser. A message with more of them than MAX_FIELDS is refused before anything is made of it.
"""

from __future__ import annotations

from typing import NamedTuple

from server.errors import InvalidRequest

MAX_FIELDS = 4096

NAME, VERSION, ID, PARAMETER, INPUT, OUTPUT, RAW = 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A
"""The tags of the fields: number * 8 + 2 (length-delimited)."""

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class Fields(NamedTuple):
    """`head` bytes come before the first raw tensor. `raws` are (start, size) of each. `identity` is where the id lies, tag included, and
    where its text begins and ends; (0, 0, 0) without one. `plain`: the fields stand in the order of their numbers, and no unknown one is
    among them, so that `head` and `raws` say it all."""

    head: int
    raws: list[tuple[int, int]]
    identity: tuple[int, int, int]
    plain: bool


def walk(body: bytes) -> Fields:
    """Find the fields. Raises InvalidRequest where the bytes are no message, or one of too many fields."""
    try:
        fields, end = _walk(body)
    except IndexError:
        end = -1
    if end != len(body):
        raise InvalidRequest(f"the request's {len(body)} bytes aren't a valid inference.ModelInferRequest (protobuf)")
    return fields


def _walk(body: bytes) -> tuple[Fields, int]:
    at, last, length = 0, 0, len(body)
    left = MAX_FIELDS
    head, identity, plain = length, (0, 0, 0), True
    raws: list[tuple[int, int]] = []
    while at < length:
        tag, size, start = body[at], body[at + 1], at + 2
        if size > 127 or tag not in _KNOWN:
            tag, size, start = _uncommon(body, at)
        if tag == RAW:
            if not raws:
                head = at
            raws.append((start, size))
        elif tag == ID:
            plain = plain and last < ID
            identity = (at, start, start + size)
        plain = plain and last <= tag in _KNOWN
        last = tag
        at = start + size
        left -= 1
        if not left:
            raise InvalidRequest(f"a request takes at most {MAX_FIELDS} parameters, inputs, outputs and raw_input_contents together")
    return Fields(head, raws, identity, plain), at


_KNOWN = frozenset((NAME, VERSION, ID, PARAMETER, INPUT, OUTPUT, RAW))


def _uncommon(body: bytes, at: int) -> tuple[int, int, int]:
    """A field whose tag isn't known or whose size takes several bytes: its tag, how long it is and where that begins."""
    tag, start = varint(body, at)
    kind = tag & 7
    if kind == _DELIMITED:
        size, start = varint(body, start)
        return tag, size, start
    if kind == _VARINT:
        _, end = varint(body, start)
        return tag, end - start, start
    if kind in (_FIXED32, _FIXED64):
        return tag, 4 if kind == _FIXED32 else 8, start
    raise IndexError  # a group, which proto3 doesn't have


def varint(body: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next thing begins. Raises IndexError where it's longer than 10 bytes or than `body`."""
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def as_varint(number: int) -> bytes:
    """A number >= 0 as it is written."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def delimited(tag: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return bytes((tag,)) + as_varint(len(content)) + content
