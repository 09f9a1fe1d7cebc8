"""The body of one inference request while it arrives: counted, bounded, and kept in the form that what follows can use without a copy.

Small bodies stay in the pieces they came in, a body whose length is known is received into one block, big JSON goes straight to the
helper process. The block lies so that the first tensor behind the head is aligned: a runtime reads it where it is. What is compressed
is inflated at the end, in a thread when it could take long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from server.edges.infer_edge import InferEdge
from server.edges.offload.json_worker import BodySink
from server.errors import BodyTooLarge, InvalidRequest, TidegateError
from server.protocol.inflate import Inflater

Bytes: TypeAlias = bytes | memoryview

ONE_PIECE = 64 * 1024  # a body known to be larger is received into one block
ALIGNMENT = 64  # of the bytes behind the head: a cache line, and the widest vector that a kernel loads
INFLATE_INLINE = 4 * 1024  # compressed bytes that are inflated in the loop: at most 4 MiB come out (deflate's ratio is below 1032)


class Body:
    """`size` is the bytes counted as in flight, `head_length` the JSON head of a binary request, -1 where the client sent none."""

    __slots__ = ("_block", "_chunks", "_edge", "_inflater", "_length", "head_length", "sink", "size")

    def __init__(self, edge: InferEdge) -> None:
        self.size = 0
        self.head_length = -1
        self.sink: BodySink | None = None
        self._edge = edge
        self._length = -1
        self._inflater: Inflater | None = None
        self._chunks: list[bytes] = []
        self._block: memoryview | None = None

    def begin(self, fields: dict[bytes, bytes]) -> None:
        """All headers are there. Raises what can be refused before the body comes."""
        self._length = length = int(fields.get(b"content-length", b"-1"))  # the parser has checked the digits
        encoding = fields.get(b"content-encoding")
        if encoding is not None and (text := encoding.decode("latin-1").lower()) != "identity":
            self._inflater = Inflater(text, self._edge.limits.max_body)
        if (head := fields.get(b"inference-header-content-length")) is not None:
            self.head_length = self._checked_head_length(head.strip())
        if length > ONE_PIECE:
            self._begin_large(length)

    def is_whole(self, chunk: bytes, head_length: int) -> None:
        """All of it at once, with a head that was checked before."""
        self.size = len(chunk)
        self.head_length = head_length
        self._chunks.append(chunk)
        self._edge.inflight.take(self.size)

    def _checked_head_length(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 18:
            raise bad_head_length(text.decode("latin-1"), self._length)
        value = int(text)
        if self._inflater is None and 0 <= self._length < value:
            raise bad_head_length(text.decode("latin-1"), self._length)
        return value

    def _begin_large(self, length: int) -> None:
        limits = self._edge.limits
        if length > limits.max_body:
            raise _too_large(length, limits.max_body)
        if self._inflater is None and self.head_length in (-1, length):
            self._refuse_big_json(length)
            if length > limits.json_offload:
                self.sink = BodySink()
                return
        self._block = _block(length, max(self.head_length, 0))

    def _refuse_big_json(self, size: int) -> None:
        limit = self._edge.limits.max_json_body
        if size > limit:
            raise BodyTooLarge(
                f"a JSON body takes at most {limit} bytes (limits.max_json_body), got {size}; "
                "send large tensors by the binary tensor extension"
            )

    def add(self, chunk: bytes) -> bool:
        """A piece. False where the bytes in flight have passed their limit and reading should pause. Raises BodyTooLarge."""
        start = self.size
        self.size = end = start + len(chunk)
        within = self._edge.inflight.take(len(chunk))
        if self._block is not None:
            self._block[start:end] = chunk
        elif self.sink is not None:
            self.sink.write(chunk)
        else:
            if end > self._edge.limits.max_body:
                raise _too_large(end, self._edge.limits.max_body)
            self._chunks.append(chunk)
        return within

    @property
    def missing(self) -> int:
        """The bytes still to come of a body that can be received in place, 0 for any other."""
        return self._length - self.size if self._block is not None or self.sink is not None else 0

    def room(self, most: int) -> memoryview:
        """Where the next `most` bytes, at most PIECE, are to be written; after release, somewhere harmless."""
        if self._block is not None:
            return self._block[self.size : self.size + most]
        return self._edge.scratch[:most]

    def filled(self, count: int) -> bool:
        """`count` bytes were written to `room`. False where reading should pause. Raises Unavailable."""
        if self.sink is not None:
            self.sink.write(self._edge.scratch[:count])
        self.size += count
        return self._edge.inflight.take(count)

    def finish(self, whole: Callable[[Bytes | TidegateError], None]) -> None:
        """The last piece has come: `whole` gets the plain body, at once or, where it is inflated in a thread, later in the loop."""
        body = self._block if self._block is not None else self._joined()
        if self._inflater is None:
            whole(body)
        elif len(body) <= INFLATE_INLINE:
            whole(self._counted(_inflate(self._inflater, body)))
        else:
            future = self._edge.loop.run_in_executor(None, _inflate, self._inflater, body)
            future.add_done_callback(lambda done: whole(self._counted(done.result())))

    def _joined(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def _counted(self, body: bytes | TidegateError) -> bytes | TidegateError:
        if isinstance(body, bytes) and self.size:
            self._edge.inflight.take(len(body) - self.size)
            self.size = len(body)
        return body

    def offloaded(self, body: Bytes, json_bytes: int) -> BodySink | None:
        """The sink that holds a body whose JSON is too big to be decoded here, None for a small one. Raises BodyTooLarge."""
        if self.sink is None:
            if json_bytes <= self._edge.limits.json_offload:
                return None
            self._refuse_big_json(json_bytes)
            return BodySink((body,))
        sink, self.sink = self.sink, None
        return sink

    def release(self) -> None:
        """Give back the memory and the count."""
        if self.size:
            self._edge.inflight.give(self.size)
            self.size = 0
        self._chunks.clear()
        self._block = None
        if self.sink is not None:
            self.sink.close()
            self.sink = None


def _block(length: int, head_length: int) -> memoryview:
    """Memory for a body, not zeroed: it is filled before anyone reads it. What follows the head is aligned."""
    memory = np.empty(length + ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + head_length) % ALIGNMENT
    return memory.data[start : start + length]


def _inflate(inflater: Inflater, body: Bytes) -> bytes | TidegateError:
    try:
        plain = inflater.feed(bytes(body))
        inflater.finish()
        return plain
    except TidegateError as error:
        return error


def bad_head_length(got: str, length: int) -> InvalidRequest:
    return InvalidRequest(f"inference header size should be in range (0, {max(length, 0)}), got: {got[:40]}")


def _too_large(got: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"a request body takes at most {limit} bytes (limits.max_body), got {got}")


def head_size(data: bytes, *, begins: bool) -> int:
    """How much of what was read is a request's head, which begins there or before. None is where the break that ends it may have begun
    before too: better a few bytes over the limit than a body taken for a head."""
    if not begins and data.startswith((b"\n", b"\r\n")):
        return 0
    ends = data.find(b"\r\n\r\n")
    if ends < 0:
        ends = data.find(b"\n\n")
    return len(data) if ends < 0 else ends + 4
