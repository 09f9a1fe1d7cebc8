"""The response cache: answers of one version, each precision's apart, by the content of what was asked, bounded in bytes, the longest
unused go first.

It stands before a version's engine and goes with it, so that nothing outlives a reload. A tenant's answers are its own. Requests that ask
to be explained, and those too large to be worth hashing in the event loop, go past it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import TypeAlias

import numpy as np

from server.engine.engine import Engine
from server.messages import BatchFacts, CancelHandle, InferRequest, InferResponse, OnResponse
from server.protocol.binary_codec import write_strings
from server.tensors import Tensor

MAX_HASHED = 1 << 20  # bytes of inputs: hashing as much takes the event loop 1 to 2 ms
ENTRY_BYTES = 512  # what an entry takes beside its arrays
HIT = "cache"

Key: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer: its rows, its arrays (which nobody may write), and the bytes that they take."""

    rows: int
    outputs: Mapping[str, Tensor]
    size: int


class Answers:
    """Answers by key, at most `max_bytes` of them, of all precisions of a version. Pure. `hits` and `misses` are its owners' counts."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Kept | None:
        """The answer for `key`, which counts as used now."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, rows: int, outputs: Mapping[str, Tensor]) -> None:
        """Keep a copy of an answer, unless it alone is larger than all may be."""
        size = ENTRY_BYTES + sum(_size(array) for array in outputs.values())
        if size > self.max_bytes:
            return
        self._drop(key)
        while self.bytes + size > self.max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[key] = Kept(rows, {name: _copy(array) for name, array in outputs.items()}, size)
        self.bytes += size

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.bytes -= kept.size


def key_of(request: InferRequest, precision: str = "") -> Key | None:
    """What makes two requests the same: tenant, outputs asked for, each input's name, datatype, shape and bytes, and the precision that
    answers. None: not worth it."""
    if sum(_size(array) for array in request.inputs.values()) > MAX_HASHED:
        return None
    digest = blake2b(digest_size=24)
    outputs = sorted(output.name for output in request.outputs)
    digest.update(repr((precision, request.tenant, outputs, sorted(request.layout.tensors))).encode())
    for name in sorted(request.inputs):
        array = request.inputs[name]
        # Each tensor's length follows from what was hashed before: shape and datatype, or the texts' own lengths.
        digest.update(write_strings(array) if array.dtype.hasobject else np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()


def _size(array: Tensor) -> int:
    return sum(len(text) + 64 for text in array.flat) if array.dtype.hasobject else array.nbytes


def _copy(array: Tensor) -> Tensor:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


class Cached:
    """What answers for a model with a cache, before its engine. See server.router.table.Front."""

    def __init__(self, engine: Engine, answers: Answers) -> None:
        self.key, self.terms, self.figures, self.max_rows = engine.key, engine.terms, engine.figures, engine.max_rows
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.answers = answers
        self._engine = engine

    def submit(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """Answer at once where the answer is known, else as the engine does."""
        begun = monotonic()
        key = None if request.explain else key_of(request, self.key.precision)
        if key is None:
            return self._engine.submit(request, on_response)
        kept = self.answers.get(key)
        if kept is None:
            return self._missed(key, request, on_response, monotonic() - begun)
        self.answers.hits += 1
        request.rows, request.queued = kept.rows, begun
        facts = BatchFacts(kept.rows, 1, HIT, self.key.precision, HIT, begun, begun, monotonic())
        wanted = [output.name for output in request.outputs] or kept.outputs
        outputs = {name: kept.outputs[name] for name in wanted}
        self.figures.hit(facts.finished - begun)
        on_response(InferResponse(self.key.name, self.key.version, request.id, outputs, batch=facts), True)
        return ANSWERED

    def _missed(self, key: Key, request: InferRequest, on_response: OnResponse, lookup: float) -> CancelHandle:
        def answered(response: InferResponse, final: bool) -> None:
            if response.error is None:
                self.answers.misses += 1
                begun = monotonic()
                self.answers.put(key, request.rows, response.outputs)
                self.figures.missed(lookup + monotonic() - begun)
            on_response(response, final)

        return self._engine.submit(request, answered)


class Answered:
    """The handle of a request that was answered before `submit` returned."""

    def cancel(self) -> None:
        """Nothing is left to cancel."""


ANSWERED = Answered()
