"""The binary tensor extension: a JSON head, then the raw values of the inputs that name a `binary_data_size`, in order.

Clients send the same head again and again, so what it means is kept under its bytes: decoding is then a look-up and a view of
the body for each input. A leading `"id"` is cut out first, since clients that number their requests would never hit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from struct import Struct
from typing import NamedTuple, TypeAlias

import numpy as np

from server.errors import InvalidRequest
from server.messages import InferRequest, Layout, RequestedOutput, Scalar
from server.protocol.head import LEADING_ID, Body, Head, Input, Layouts, parse_head
from server.protocol.json_codec import MAX_STRINGS, byte_size_mismatch, inline_tensor, too_many_strings
from server.protocol.reply import Reply
from server.tensors import DType, Tensor, TensorSpec

MAX_HEAD = 4096
MAX_ENTRIES = 1024
MAX_CACHED_BYTES = 1 << 20
MAX_SHARED_HEADS = 128
COPY_BELOW = 1 << 16

_BEFORE_ID = len(b'{"id":"')
_LENGTH = Struct("<I")
_BOOL = np.dtype(np.bool_)
_UINT8 = np.dtype(np.uint8)


class Takes(NamedTuple):
    """What a model takes: the version that would answer, its inputs, and whether their batch axis counts rows."""

    version: str
    inputs: Sequence[TensorSpec]
    batched: bool

    def one_row(self, spec: TensorSpec) -> tuple[list[int], list[int]]:
        """The shape of one row of an input, and its axes that vary."""
        shape = list(spec.shape)
        if self.batched and spec.batch_axis is not None:
            shape[spec.batch_axis] = 1
        return shape, [axis for axis, length in enumerate(shape) if length < 0]


OfModel: TypeAlias = Callable[[str, str], Takes]
"""What a model takes, by its name and version. Raises NotFound or ModelUnavailable."""


class Part(NamedTuple):
    """Where an input's values lie: `start` is counted from the end of the head."""

    name: str
    kind: DType
    shape: tuple[int, ...]
    elements: int
    start: int
    size: int


class _Plan(NamedTuple):
    """What a head means. `plain` is true for one input that is a view of all that follows the head."""

    parts: tuple[Part, ...]
    size: int
    plain: bool
    layout: Layout
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar]
    reply: Reply


class BinaryDecoder:
    """Decodes bodies with a head, and keeps the meaning of heads: at most 1,024 of at most 4 KiB, 1 MiB in all, forgotten all at
    once when full. Heads with inline values aren't kept. With `layouts`, heads that differ share one Layout where inputs agree. With
    `of_model`, bodies without a head are decoded as what their model takes."""

    def __init__(self, layouts: Layouts | None = None, of_model: OfModel | None = None) -> None:
        self._layouts = layouts if layouts is not None else Layouts()
        self._of_model = of_model
        self._plans: dict[bytes, _Plan] = {}
        self._shared_heads: dict[bytes, Head] = {}
        self._cached_bytes = 0

    def decode(self, body: Body, head_length: int, model: str, version: str) -> tuple[InferRequest, Reply]:
        """Decode a body whose first `head_length` bytes are JSON. Tensors are views of `body`, not always aligned to their element
        size, and keep it alive; a memoryview must be of single bytes. Raises InvalidRequest or Unsupported."""
        head = body[:head_length]
        if type(head) is not bytes:
            head = bytes(head)
        request_id = None
        if head.startswith(b'{"id":'):
            found = LEADING_ID.match(head)
            if found is not None:
                request_id, head = found[1].decode(), head[found.end() :]
        plan = self._plans.get(head)
        if plan is None or head_length <= 0 or len(body) - head_length != plan[1]:
            return self._decode_new(body, head_length, head, model, version)
        parts, _, plain, layout, outputs, parameters, reply = plan
        if plain:
            part = parts[0]
            inputs = {part[0]: np.ndarray(part[2], part[1].numpy, body, head_length)}
        else:
            inputs = {part.name: read_tensor(part, body, head_length) for part in parts}
        if request_id is not None:
            reply = Reply(request_id, reply[1], reply[2])
        return InferRequest(model, inputs, layout, version, reply[0], outputs, parameters), reply

    def _decode_new(self, body: Body, head_length: int, key: bytes, model: str, version: str) -> tuple[InferRequest, Reply]:
        if not 0 <= head_length <= len(body):
            raise InvalidRequest(f"inference header size should be in range (0, {len(body)}), got: {head_length}")
        if not head_length and self._of_model is not None:
            return self._decode_headless(body, model, self._of_model(model, version))
        head = self._shared_heads.get(key)
        if head is None:
            head = parse_head(body[:head_length])
        elif (cut := head_length - len(key)) > 0:
            head = head._replace(reply=head.reply._replace(id=bytes(body[_BEFORE_ID:cut]).decode()))
        parts, size = _parts(head.inputs, model)
        if len(body) - head_length != size:
            raise _wrong_length(parts, len(body) - head_length, model)
        if head.inline:
            values = {part.name: read_tensor(part, body, head_length) for part in parts}
            inputs = {
                item.name: values[item.name] if item.size is not None else inline_tensor(item, model)
                for item in head.inputs
                if item.region is None
            }
        else:
            inputs = {part.name: read_tensor(part, body, head_length) for part in parts}
        layout = self._layouts.of(head.inputs)
        if not head.inline and head_length <= MAX_HEAD:
            if head.shared is None:
                self._keep(key, _Plan(parts, size, _plain(parts), layout, head.outputs, head.parameters, head.reply))
            else:
                self._keep_shared(key, head)
        request = InferRequest(model, inputs, layout, version, head.reply.id, head.outputs, head.parameters, shared=head.shared)
        return request, head.reply

    def _decode_headless(self, body: Body, model: str, takes: Takes) -> tuple[InferRequest, Reply]:
        item = _headless(takes, len(body), model)
        name, kind, shape, count, size, _ = item
        if not kind.size:
            array = np.empty(1, object)
            array[0] = bytes(body)
            tensor = array.reshape(shape)
        elif size != count * kind.size:
            raise byte_size_mismatch(name, kind, count, len(body), model)
        else:
            tensor = read_tensor(Part(name, kind, shape, count, 0, len(body)), body, 0)
        return InferRequest(model, {name: tensor}, self._layouts.of([item]), takes.version), Reply("", True)

    def _keep_shared(self, key: bytes, head: Head) -> None:
        """Heads that name shared memory are kept by themselves: they are decoded here, and the others pay nothing for it."""
        if len(self._shared_heads) >= MAX_SHARED_HEADS:
            self._shared_heads.clear()
        self._shared_heads[key] = head

    def _keep(self, key: bytes, plan: _Plan) -> None:
        if len(self._plans) >= MAX_ENTRIES or self._cached_bytes + len(key) > MAX_CACHED_BYTES:
            self._plans.clear()
            self._cached_bytes = 0
        self._plans[key] = plan
        self._cached_bytes += len(key)


def _parts(inputs: list[Input], model: str) -> tuple[tuple[Part, ...], int]:
    parts = []
    start = 0
    for name, kind, shape, count, size, _ in inputs:
        if size is None:
            continue
        if size != count * kind.size if kind.size else size < 4 * count:
            raise byte_size_mismatch(name, kind, count, size, model)
        parts.append(Part(name, kind, shape, count, start, size))
        start += size
    return tuple(parts), start


def _plain(parts: tuple[Part, ...]) -> bool:
    return len(parts) == 1 and parts[0].kind.name not in ("BOOL", "BYTES")


def _headless(takes: Takes, size: int, model: str) -> Input:
    """The input that `size` bytes without a head are: one row, and an axis that varies is as long as they make it. Raises InvalidRequest,
    in Triton's words, where that can't be deduced."""
    if len(takes.inputs) != 1:
        raise InvalidRequest(f"Raw request must only have 1 input to be deduced but got {len(takes.inputs)} inputs in model '{model}'")
    spec = takes.inputs[0]
    shape, varying = takes.one_row(spec)
    if len(varying) > 1:
        raise InvalidRequest(
            f"The shape of the raw input '{spec.name}' of model '{model}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    if not spec.dtype.size:
        if varying or prod(shape) != 1:
            raise InvalidRequest(f"For BYTES datatype raw input '{spec.name}', the model '{model}' must have input shape [1]")
    elif varying:
        rest = prod(length for length in shape if length >= 0) * spec.dtype.size
        shape[varying[0]] = size // rest if rest else 0
    return Input(spec.name, spec.dtype, tuple(shape), prod(shape), size, None)


def _wrong_length(parts: tuple[Part, ...], have: int, model: str) -> InvalidRequest:
    for part in parts:
        missing = part.start + part.size - have
        if missing > 0:
            return InvalidRequest(f"unexpected size for input '{part.name}', expecting {missing} additional bytes for model '{model}'")
    needed = parts[-1].start + parts[-1].size if parts else 0
    return InvalidRequest(f"unexpected additional input data for model '{model}': {have - needed} bytes after the last input's values")


def read_tensor(part: Part, body: Body, head_length: int) -> Tensor:
    """The tensor of a part of `body`: a view of it, unless it is BYTES or a BOOL of other bytes than 0 and 1. Raises InvalidRequest."""
    start = head_length + part.start
    if not part.kind.size:
        return read_strings(part.name, part.shape, part.elements, body[start : start + part.size])
    if part.kind.numpy is not _BOOL:
        return np.ndarray(part.shape, part.kind.numpy, body, start)
    raw: Tensor = np.ndarray(part.shape, _UINT8, body, start)
    return raw != 0 if raw.max(initial=0) > 1 else raw.view(_BOOL)  # any byte but 0 is true, and a model only ever sees 0 and 1


def read_strings(name: str, shape: tuple[int, ...], count: int, raw: Body) -> Tensor:
    """The BYTES tensor of `count` elements in `raw`: each a 4-byte little-endian length and that many bytes."""
    if count > MAX_STRINGS:
        raise too_many_strings(name, count)
    raw = bytes(raw)
    values: list[bytes] = []
    end = 0
    for index in range(count):
        start = end + 4
        if start > len(raw):
            raise InvalidRequest(f"input '{name}': BYTES data ends before element {index} of {count}")
        end = start + _LENGTH.unpack_from(raw, end)[0]
        if end > len(raw):
            raise InvalidRequest(f"input '{name}': BYTES element {index} claims {end - start} bytes, {len(raw) - start} are left")
        values.append(raw[start:end])
    if end != len(raw):
        raise InvalidRequest(f"input '{name}': {len(raw) - end} bytes are left after the {count} elements of its BYTES data")
    array = np.empty(count, object)
    array[:] = values
    return array.reshape(shape)


def write_strings(array: Tensor) -> bytes:
    """A BYTES tensor as it travels, row-major."""
    pieces: list[bytes] = []
    for value in array.reshape(-1).tolist():
        raw = value if type(value) is bytes else str(value).encode()
        pieces += (_LENGTH.pack(len(raw)), raw)
    return b"".join(pieces)


def raw_values(array: Tensor) -> bytes | memoryview:
    """A tensor as it travels, row-major. From COPY_BELOW bytes on it's a view of a contiguous array, so that the array's memory
    may not be reused before it is sent."""
    if array.dtype == object:
        return write_strings(array)
    if array.nbytes < COPY_BELOW:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(_UINT8).data
