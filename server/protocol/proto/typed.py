"""Typed contents (InferTensorContents) ↔ tensors: the lists of a message in place of raw bytes.

A list is read from its packed form, as protobuf writes it: the numbers of a large one are never made into Python objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidRequest
from server.protocol.head import Input, shown
from server.protocol.json_codec import MAX_STRINGS, too_many_strings
from server.protocol.proto.wire import varint
from server.tensors import Tensor

BYTES_TAG = 0x42


class _List(NamedTuple):
    """One of the lists: its name, the type its numbers have there, and whether they are varints."""

    name: str
    kind: str
    varints: bool


_LISTS: Mapping[int, _List] = {
    0x0A: _List("bool_contents", "u8", True),
    0x12: _List("int_contents", "i8", True),
    0x1A: _List("int64_contents", "i8", True),
    0x22: _List("uint_contents", "u8", True),
    0x2A: _List("uint64_contents", "u8", True),
    0x32: _List("fp32_contents", "f4", False),
    0x3A: _List("fp64_contents", "f8", False),
    BYTES_TAG: _List("bytes_contents", "", False),
}
"""Tag of the list in InferTensorContents → the list."""

_TAKES: Mapping[str, int] = {
    "BOOL": 0x0A,
    **dict.fromkeys(("INT8", "INT16", "INT32"), 0x12),
    "INT64": 0x1A,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), 0x22),
    "UINT64": 0x2A,
    "FP32": 0x32,
    "FP64": 0x3A,
    "BYTES": BYTES_TAG,
}
"""Datatype → the list that its values are in. FP16 and BF16 have none."""


def typed_tensor(item: Input, packed: bytes) -> Tensor:
    """The tensor of an input whose contents, as protobuf writes them, are `packed`. Raises InvalidRequest that names the input."""
    name, kind, shape = item.name, item.kind, item.shape
    tag = _TAKES.get(kind.name)
    if tag is None:
        raise InvalidRequest(f"input {name!r}: {kind.name} has no typed contents; send it as raw_input_contents")
    if packed and packed[0] != tag:
        got = _LISTS[packed[0]].name if packed[0] in _LISTS else "an unknown field"
        raise InvalidRequest(f"input {name!r}: {kind.name} takes {_LISTS[tag].name}, got {got}")
    if tag == BYTES_TAG:
        return _counted(item, _strings(name, packed)).reshape(shape)
    size, start = varint(packed, 1) if packed else (0, 0)
    if start + size != len(packed):
        raise InvalidRequest(f"input {name!r}: {kind.name} takes {_LISTS[tag].name} only, and other contents came too")
    _, stored, varints = _LISTS[tag]
    if varints:
        numbers = _counted(item, varints_in(np.frombuffer(packed, np.uint8, size, start))).view(stored)
    else:
        numbers = _counted(item, np.frombuffer(packed, f"<{stored}", size // np.dtype(stored).itemsize, start))
    return _fitting(item, numbers).reshape(shape)


def _counted(item: Input, flat: Tensor) -> Tensor:
    if len(flat) != item.elements:
        raise InvalidRequest(
            f"input {item.name!r}: 'contents' hold {len(flat)} values, but shape {shown(list(item.shape))} takes {shown(item.elements)}"
        )
    return flat


def _fitting(item: Input, numbers: NDArray[Any]) -> Tensor:
    kind = item.kind
    if kind.numpy.kind in "iu" and kind.numpy.itemsize < 8:
        limits = np.iinfo(kind.numpy)
        wrong = np.flatnonzero((numbers < limits.min) | (numbers > limits.max))
        if len(wrong):
            raise InvalidRequest(f"input {item.name!r}: {numbers[wrong[0]]} at index {wrong[0]} is out of range for {kind.name}")
    return numbers.astype(kind.numpy, copy=False)


def varints_in(raw: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The numbers of a packed list of varints, as 64 bits each; negative ones come as their two's complement."""
    ends = np.flatnonzero(raw < 128)
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    values = raw[starts].astype(np.uint64) & np.uint64(127)
    longest = int((ends - starts).max(initial=0))
    for place in range(1, longest + 1):
        longer = np.flatnonzero(ends - starts >= place)
        values[longer] |= (raw[starts[longer] + place].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * place)
    return values


def _strings(name: str, packed: bytes) -> Tensor:
    values: list[bytes] = []
    at = 0
    while at < len(packed):
        if packed[at] != BYTES_TAG:
            raise InvalidRequest(f"input {name!r}: BYTES takes bytes_contents only, and other contents came too")
        size, at = varint(packed, at + 1)
        values.append(packed[at : at + size])
        at += size
        if len(values) > MAX_STRINGS:
            raise too_many_strings(name, len(values))
    array = np.empty(len(values), object)
    array[:] = values
    return array
