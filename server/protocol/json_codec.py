"""JSON values ↔ tensors, and requests whose whole body is JSON.

Values are taken as they are or refused: nothing wraps, rounds to an integer or turns from one kind into another. Answers are
written flat, floats as the shortest digits that read back to the same value, and NaN and Infinity as those literals.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import chain
from math import isinf
from typing import Any, NamedTuple

import numpy as np
import orjson

from server.errors import InvalidRequest
from server.messages import InferRequest
from server.protocol.head import Body, Head, Input, Layouts, parse_head, shown
from server.protocol.reply import Reply
from server.tensors import DTYPES, DType, Tensor

MAX_DEPTH = 100
MAX_STRINGS = 1 << 18
"""Elements of one BYTES tensor: each is a Python object, made while everything else waits."""

MANY = 1024
"""Elements from which a look at each one's type is worth avoiding."""

_BF16 = DTYPES["BF16"].numpy
_FP32 = DTYPES["FP32"].numpy


class _Rule(NamedTuple):
    """Which JSON values a datatype takes, in words, and struct's code, which packs them and refuses what doesn't fit."""

    takes: frozenset[type]
    words: str
    code: str


def _integer(code: str) -> _Rule:
    return _Rule(frozenset({int}), "integers", code)


def _float(code: str) -> _Rule:
    return _Rule(frozenset({int, float}), "numbers", code)


_RULES: Mapping[str, _Rule] = {
    "BOOL": _Rule(frozenset({bool}), "true and false", "?"),
    "UINT8": _integer("B"),
    "UINT16": _integer("H"),
    "UINT32": _integer("I"),
    "UINT64": _integer("Q"),
    "INT8": _integer("b"),
    "INT16": _integer("h"),
    "INT32": _integer("i"),
    "INT64": _integer("q"),
    "FP16": _float("e"),
    "BF16": _float("f"),
    "FP32": _float("f"),
    "FP64": _float("d"),
    "BYTES": _Rule(frozenset({str}), "strings", ""),
}


def decode(body: Body, model: str, version: str, layouts: Layouts | None = None) -> tuple[InferRequest, Reply]:
    """Decode a body that is all JSON. With `layouts`, equal requests share one Layout. Raises InvalidRequest or Unsupported."""
    head = parse_head(body)
    return request_of(head, model, version, layouts if layouts is not None else Layouts()), head.reply


def request_of(head: Head, model: str, version: str, layouts: Layouts) -> InferRequest:
    """The request of a head that is all there is. Raises InvalidRequest for values that don't fit."""
    inputs = {item.name: inline_tensor(item, model) for item in head.inputs if item.region is None}
    layout = layouts.of(head.inputs)
    return InferRequest(model, inputs, layout, version, head.reply.id, head.outputs, head.parameters, shared=head.shared)


def inline_tensor(item: Input, model: str) -> Tensor:
    """The tensor of an input in a body without binary parts: its `data`, or nothing at all where it's empty."""
    if item.size is None:
        return from_json(item.name, item.kind, item.shape, item.elements, item.data)
    if item.size:
        raise InvalidRequest(
            f"unexpected size for input '{item.name}', expecting {item.size} additional bytes for model '{model}'; "
            "no binary data follows the JSON (is Inference-Header-Content-Length missing?)"
        )
    if item.elements:
        raise byte_size_mismatch(item.name, item.kind, item.elements, 0, model)
    return np.empty(item.shape, item.kind.numpy)


def byte_size_mismatch(name: str, kind: DType, count: int, size: int, model: str) -> InvalidRequest:
    """The error for a `binary_data_size` that its shape and datatype contradict."""
    expected = shown(count * kind.size) if kind.size else f"at least {shown(4 * count)}"
    return InvalidRequest(f"input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {size}")


def from_json(name: str, kind: DType, shape: tuple[int, ...], count: int, data: Any) -> Tensor:
    """The tensor that `data` (nested or flat, row-major) spells; read-only. Raises InvalidRequest that names the input."""
    if type(data) is not list:
        raise InvalidRequest(f"input {name!r}: 'data' must be a list, got {shown(data)}")
    flat, depth = _flat(name, data)
    rule = _RULES[kind.name]
    packed = _packed(flat, rule) if len(flat) == count >= MANY else None
    if packed is None:
        types = set(map(type, flat))
        if list in types:
            raise _mixed(name, depth)
        if len(flat) != count:
            raise InvalidRequest(f"input {name!r}: 'data' holds {len(flat)} values, but shape {shown(list(shape))} takes {shown(count)}")
        if not types <= rule.takes:
            index = next(i for i, value in enumerate(flat) if type(value) not in rule.takes)
            raise InvalidRequest(f"input {name!r}: {kind.name} takes {rule.words}, got {shown(flat[index])} at index {index}")
        if not kind.size:
            return _strings(name, shape, flat)
        try:
            packed = struct.pack(f"<{count}{rule.code}", *flat)
        except (struct.error, OverflowError):
            raise _out_of_range(name, kind, rule, flat) from None
    if kind.numpy is _BF16:
        return _bfloat16(name, shape, flat, packed)
    return np.ndarray(shape, kind.numpy, packed)


def _flat(name: str, data: list[Any]) -> tuple[list[Any], int]:
    """The values of lists in lists, as far as each level's first element is one, and how many levels those were."""
    depth = 1
    while data and type(data[0]) is list:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"input {name!r}: 'data' is nested deeper than {MAX_DEPTH} levels")
        if set(map(type, data)) != {list}:
            raise _mixed(name, depth - 1)
        data = data[0] if len(data) == 1 else list(chain.from_iterable(data))
    return data, depth


def _packed(flat: list[Any], rule: _Rule) -> bytes | None:
    """The values packed, None where one may be of a kind that the rule doesn't take. Half the time of looking at each one's type: of
    what JSON has, struct takes nothing else for a number but true and false, which it packs as 1 and 0. Only those are looked at."""
    if bool in rule.takes or not rule.code:
        return None
    try:
        packed = struct.pack(f"<{len(flat)}{rule.code}", *flat)
    except (struct.error, OverflowError):
        return None
    values = np.frombuffer(packed, f"<{rule.code}")
    doubtful = np.flatnonzero((values == 0) | (values == 1))
    looked_at = map(flat.__getitem__, doubtful.tolist()) if 4 * len(doubtful) < len(flat) else flat
    return None if bool in map(type, looked_at) else packed


def _mixed(name: str, level: int) -> InvalidRequest:
    return InvalidRequest(f"input {name!r}: 'data' mixes lists and values at nesting level {level}")


def _out_of_range(name: str, kind: DType, rule: _Rule, flat: list[Any]) -> InvalidRequest:
    index = next(index for index, value in enumerate(flat) if not _fits(rule, value))
    return InvalidRequest(f"input {name!r}: {shown(flat[index])} at index {index} is out of range for {kind.name}")


def _fits(rule: _Rule, value: Any) -> bool:
    try:
        struct.pack(f"<{rule.code}", value)
    except (struct.error, OverflowError):
        return False
    return True


def _bfloat16(name: str, shape: tuple[int, ...], flat: list[Any], packed: bytes) -> Tensor:
    array = np.ndarray(shape, _FP32, packed).astype(_BF16)
    if np.isinf(array.astype(_FP32)).any():  # those just under FP32's largest overflow BF16
        for index, (value, stored) in enumerate(zip(flat, array.ravel().tolist(), strict=True)):
            if isinf(stored) and not isinf(value):
                raise InvalidRequest(f"input {name!r}: {shown(value)} at index {index} is out of range for BF16")
    return array


def _strings(name: str, shape: tuple[int, ...], flat: list[str]) -> Tensor:
    if len(flat) > MAX_STRINGS:
        raise too_many_strings(name, len(flat))
    array = np.empty(len(flat), object)
    array[:] = [value.encode() for value in flat]
    return array.reshape(shape)


def too_many_strings(name: str, count: int) -> InvalidRequest:
    """The error for a BYTES tensor over MAX_STRINGS."""
    return InvalidRequest(f"input {name!r}: a BYTES tensor may hold at most {MAX_STRINGS} elements, got {count}; send several requests")


def to_json(name: str, kind: DType, array: Tensor) -> bytes:
    """The values of an output as one flat JSON list. Raises InvalidRequest where BYTES aren't UTF-8: JSON can't carry them."""
    if not kind.size:
        return _texts(name, array)
    flat = np.ascontiguousarray(array).reshape(-1)
    if kind.numpy is _BF16:
        flat = (flat.view(np.uint16).astype(np.uint32) << 16).view(_FP32)  # exact, and no warning for a signalling NaN
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if flat.dtype.kind == "f" and b"null" in text:  # what orjson writes for NaN and the infinities
        return _with_literals(text, flat)
    return text


def _with_literals(text: bytes, flat: Tensor) -> bytes:
    literals = [b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity" for value in flat[~np.isfinite(flat)].tolist()]
    pieces = text.split(b"null")
    return b"".join(chain.from_iterable(zip(pieces, [*literals, b""], strict=True)))


def _texts(name: str, array: Tensor) -> bytes:
    values = array.reshape(-1).tolist()
    try:
        return orjson.dumps([value.decode() if type(value) is bytes else str(value) for value in values])
    except (UnicodeDecodeError, orjson.JSONEncodeError):
        raise InvalidRequest(f"output {name!r} holds bytes that aren't UTF-8 text; ask for it with 'binary_data': true") from None
