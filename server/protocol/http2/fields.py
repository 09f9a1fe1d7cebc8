"""Header blocks: decoded by the hpack library, checked as RFC 9113 (section 8.2, 8.3) has it; and the meaning of blocks that come again.

A block's meaning hangs on the decoder's dynamic table. One that leaves it unchanged is kept under its bytes until the table changes.
"""

from __future__ import annotations

from hpack import Decoder, HPACKError, OversizedHeaderListError

from server.protocol.http2.codes import ConnectionFault, ErrorCode, StreamFault

KEPT = 256
KEPT_BYTES = 1024  # of one block
REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
NEEDED_PSEUDO = REQUEST_PSEUDO - {b":authority"}
OF_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
Fields = tuple[tuple[bytes, bytes], ...]


class FieldDecoder:
    """Of one connection. `limit` bounds a decoded list (name, value and 32 bytes each: RFC 7541, section 4.1)."""

    def __init__(self, limit: int) -> None:
        self._decoder = Decoder(limit)
        self._kept: dict[bytes, Fields] = {}
        self.hits = 0

    def decode(self, block: bytes) -> Fields:
        """The fields of a whole block. Raises ConnectionFault: after a block that wasn't decoded, no other can be."""
        found = self._kept.get(block)
        if found is not None:
            self.hits += 1
            return found
        before = self._mark()
        try:
            found = tuple((name, value) for name, value in self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header list over SETTINGS_MAX_HEADER_LIST_SIZE") from error
        except (HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"a header block can't be decoded: {error}") from error
        if self._mark() != before:
            self._kept.clear()
        elif len(block) <= KEPT_BYTES and len(self._kept) < KEPT:
            self._kept[block] = found
        return found

    def _mark(self) -> tuple[int, int, int]:
        """What changes whenever the dynamic table does: an entry that's added is a new object, at its head."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), id(entries[0]) if entries else 0


def check_request(stream: int, fields: Fields) -> None:
    """Raises StreamFault for a request that is malformed."""
    pseudo: set[bytes] = set()
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name in pseudo or name not in REQUEST_PSEUDO:
                raise _malformed(stream, f"the pseudo-header field {name!r} is unknown, twice, or after others")
            pseudo.add(name)
        else:
            regular = True
            check_field(stream, name, value)
    if missing := NEEDED_PSEUDO - pseudo:
        raise _malformed(stream, f"a request needs {', '.join(sorted(each.decode() for each in missing))}")


def check_trailers(stream: int, fields: Fields) -> None:
    """Raises StreamFault for trailers that are malformed."""
    for name, value in fields:
        if name[:1] == b":":
            raise _malformed(stream, f"the pseudo-header field {name!r} in trailers")
        check_field(stream, name, value)


def check_field(stream: int, name: bytes, value: bytes) -> None:
    """Raises StreamFault for a name or value that HTTP/2 doesn't have."""
    if not name or name != name.lower() or any(byte <= 0x20 or byte >= 0x7F or byte == 0x3A for byte in name):
        raise _malformed(stream, f"the field name {name!r}")
    if name in OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
        raise _malformed(stream, f"the field {name!r}, which is one of connections")
    if b"\0" in value or b"\r" in value or b"\n" in value or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        raise _malformed(stream, f"the value of {name!r}")


def content_length(stream: int, fields: Fields) -> int | None:
    """What the field says. Raises StreamFault where it's no number, or two."""
    found = {value for name, value in fields if name == b"content-length"}
    if not found:
        return None
    value = found.pop()
    if found or not value.isdigit():
        raise _malformed(stream, "content-length")
    return int(value)


def _malformed(stream: int, what: str) -> StreamFault:
    return StreamFault(stream, ErrorCode.PROTOCOL_ERROR, f"a malformed request: {what}")
