"""Reads what the server must know of an ONNX file before any runtime opens it: where its weights lie, and in which precision.

The file is untrusted and `onnx` isn't installed beside a server, so this walks the protobuf wire format itself: bounded in depth and
number of fields, skipping the weights, reading by offset (a file that shrinks meanwhile is a defect, not a crash). Field numbers are
those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from server.errors import ModelDefect

MAX_DEPTH = 100  # protobuf's own limit
MAX_FIELDS = 20_000_000
MAX_RANK = 64
MAX_TEXT = 4096
WINDOW = 64 << 10

DATATYPES: Mapping[int, str] = MappingProxyType(
    {
        **{1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL", 10: "FP16"},
        **{11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16"},
    }
)
FLOATS = ("FP32", "FP16", "BF16", "FP64")
QUANTIZED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QAttention", "QLinearAdd"),
    }
)
"""Operators that only a quantised graph has."""


class Value(NamedTuple):
    """An input or output as the file declares it: None where the protocol has no such datatype, or the file leaves the shape out.

    `axes` are the names of its axes, "" where an axis is fixed or has none. Axes of one name have one length in a run.
    """

    name: str
    datatype: str | None
    shape: tuple[int, ...] | None
    axes: tuple[str, ...] = ()


@dataclass(slots=True)
class OnnxFile:
    """What was read. `external` are the places of weights outside the file, as the file writes them."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    external: set[str] = field(default_factory=set)
    weights: Counter[str] = field(default_factory=Counter)
    quantized: bool = False

    @property
    def precision(self) -> str:
        """fp32, fp16, bf16 or fp64 by most weights (without weights, by what goes in and out), int8 of a quantised graph, else native."""
        if self.quantized:
            return "int8"
        values = {value.datatype for value in (*self.inputs, *self.outputs)}
        found = max(self.weights, key=lambda kind: self.weights[kind], default=next((kind for kind in FLOATS if kind in values), "native"))
        return found.lower()


def read_onnx(path: Path) -> OnnxFile:
    """Read the file at `path`. Raises ModelDefect where it isn't an ONNX model."""
    found = OnnxFile()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            graphs = _Walk(file.fileno(), size, found).model()
    except OSError as error:
        raise ModelDefect(f"{path}: can't be read: {error.strerror or error}") from error
    except _Malformed as error:
        raise ModelDefect(f"{path}: not an ONNX file, or cut short: {error}") from error
    if not graphs:
        raise ModelDefect(f"{path}: not an ONNX file: it holds no graph")
    return found


def check_external(path: Path, locations: set[str]) -> None:
    """Raises ModelDefect unless all external weights of the file at `path` lie in its folder or below, reached without a link."""
    for location in sorted(locations):
        parts = PurePosixPath(location).parts
        where = f"{path}: its weights lie in {location[:200]!r}"
        if not parts or location.startswith("/") or ".." in parts or "\0" in location or "\\" in location:
            raise ModelDefect(f"{where}, which leads out of the model's folder")
        place = path.parent
        for part in parts:
            place = place / part
            if place.is_symlink():
                raise ModelDefect(f"{where}, which is reached over the link {place}; put the file itself there")
        if not place.is_file():
            raise ModelDefect(f"{where}, and there is no such file")


class _Malformed(Exception):
    """The bytes aren't what protobuf allows."""


class _Field(NamedTuple):
    """One field: its number, and a whole number (`end` is -1) or the bytes from `value` to `end`."""

    number: int
    value: int
    end: int


class _Walk:
    """Goes through a file once and notes in `found` what it meets."""

    def __init__(self, file: int, size: int, found: OnnxFile) -> None:
        self.file = file
        self.size = size
        self.found = found
        self.window = b""
        self.base = 0
        self.left = MAX_FIELDS

    def model(self) -> int:
        """The number of graphs, which should be one. Functions may hold weights too."""
        graphs = 0
        for part in self.fields(_Field(0, 0, self.size)):
            if part.number == 7:
                graphs += 1
                self.graph(part, 1)
            elif part.number == 20:
                for inner in self.fields(part):
                    self.graph(inner, 2)
            elif part.number == 25:
                for inner in self.fields(part):
                    if inner.number == 7:
                        self.node(inner, 2)
                    elif inner.number == 11:
                        self.attribute(inner, 2)
        return graphs

    def graph(self, whole: _Field, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Malformed(f"graphs nested deeper than {MAX_DEPTH} levels")
        weights: set[str] = set()
        inputs: list[Value] = []
        for part in self.fields(whole):
            if part.number == 1:
                self.node(part, depth + 1)
            elif part.number == 5:
                weights.add(self.tensor(part))
            elif part.number == 15:
                self.sparse(part)
            elif part.number == 11 and depth == 1:
                inputs.append(self.value(part))
            elif part.number == 12 and depth == 1:
                self.found.outputs.append(self.value(part))
        # Before IR version 4, weights were listed as inputs too.
        self.found.inputs += [value for value in inputs if value.name not in weights]

    def node(self, whole: _Field, depth: int) -> None:
        for part in self.fields(whole):
            if part.number == 5:
                self.attribute(part, depth + 1)
            elif part.number == 4 and self.text(part) in QUANTIZED:
                self.found.quantized = True

    def attribute(self, whole: _Field, depth: int) -> None:
        for part in self.fields(whole):
            if part.number in (5, 10):
                self.tensor(part)
            elif part.number in (6, 11):
                self.graph(part, depth + 1)
            elif part.number in (22, 23):
                self.sparse(part)

    def sparse(self, whole: _Field) -> None:
        for part in self.fields(whole):
            if part.number in (1, 2):
                self.tensor(part)

    def tensor(self, whole: _Field) -> str:
        """Note a tensor's weight and place; its name."""
        name, kind, dims, external, places = "", "", [], False, []
        for part in self.fields(whole):
            if part.number == 1:
                dims += self.numbers(part)
                if len(dims) > MAX_RANK:
                    raise _Malformed(f"more than {MAX_RANK} axes")
            elif part.number == 2:
                kind = DATATYPES.get(part.value, "")
            elif part.number == 8:
                name = self.text(part)
            elif part.number == 13:
                places += self.location(part)
            elif part.number == 14:
                external = external or part.value == 1
        if external:
            if not places:
                raise _Malformed(f"tensor {name!r} is outside the file, and it isn't said where")
            self.found.external.update(places)
        if kind in FLOATS:
            self.found.weights[kind] += math.prod(dims)
        return name

    def location(self, whole: _Field) -> list[str]:
        pair = {part.number: self.text(part) for part in self.fields(whole)}
        return [pair.get(2, "")] if pair.get(1) == "location" else []

    def value(self, whole: _Field) -> Value:
        """A ValueInfoProto: name, and the tensor's type inside its TypeProto."""
        value = Value("", None, None)
        for part in self.fields(whole):
            if part.number == 1:
                value = value._replace(name=self.text(part))
            elif part.number == 2:
                for kind in self.fields(part):
                    if kind.number == 1:
                        value = self.tensor_type(kind, value.name)
        return value

    def tensor_type(self, whole: _Field, name: str) -> Value:
        datatype: str | None = None
        dimensions: list[tuple[int, str]] | None = None
        for part in self.fields(whole):
            if part.number == 1:
                datatype = DATATYPES.get(part.value)
            elif part.number == 2:
                dimensions = [self.dimension(axis) for axis in self.fields(part) if axis.number == 1]
        if dimensions is None:
            return Value(name, datatype, None)
        return Value(name, datatype, tuple(length for length, _ in dimensions), tuple(axis for _, axis in dimensions))

    def dimension(self, whole: _Field) -> tuple[int, str]:
        """An axis' length, -1 where it varies, and its name then."""
        for part in self.fields(whole):
            if part.number == 1:
                return (part.value if part.value < 1 << 63 else -1), ""
            if part.number == 2:
                return -1, self.text(part)
        return -1, ""

    def numbers(self, part: _Field) -> list[int]:
        """A repeated whole number, packed or one by one."""
        if part.end < 0:
            return [part.value]
        if part.end - part.value > 10 * MAX_RANK:
            raise _Malformed(f"more than {MAX_RANK} axes")
        found, position = [], part.value
        while position < part.end:
            number, position = self.varint(position, part.end)
            found.append(number)
        return found

    def text(self, part: _Field) -> str:
        if part.end < 0 or part.end - part.value > MAX_TEXT:
            raise _Malformed(f"a name of more than {MAX_TEXT} bytes")
        try:
            return self.bytes(part.value, part.end - part.value).decode()
        except UnicodeDecodeError as error:
            raise _Malformed(f"a name that isn't UTF-8 at byte {part.value}") from error

    def fields(self, whole: _Field) -> Iterator[_Field]:
        """The fields inside a message."""
        if whole.end < 0:
            raise _Malformed(f"a number where a message belongs, before byte {whole.value}")
        position, end = whole.value, whole.end
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise _Malformed(f"more than {MAX_FIELDS} fields")
            tag, position = self.varint(position, end)
            kind = tag & 7
            value, stop = position, -1
            if kind == 0:
                value, position = self.varint(position, end)
            elif kind == 2:
                length, value = self.varint(position, end)
                position = stop = value + length
            elif kind in (1, 5):
                stop = position = position + (8 if kind == 1 else 4)
            else:
                raise _Malformed(f"wire type {kind} at byte {position}")
            if position > end:
                raise _Malformed(f"a field that ends behind byte {end}")
            yield _Field(tag >> 3, value, stop)

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A number of base 128, and the position behind it."""
        number = 0
        for shift, byte in enumerate(self.bytes(position, min(10, end - position))):
            number |= (byte & 127) << (7 * shift)
            if byte < 128:
                return number, position + shift + 1
        raise _Malformed(f"a number without an end at byte {position}")

    def bytes(self, position: int, count: int) -> bytes:
        offset = position - self.base
        if offset < 0 or offset + count > len(self.window):
            self.window = os.pread(self.file, max(count, WINDOW), position)
            self.base, offset = position, 0
            if len(self.window) < count:
                raise _Malformed(f"it ends at byte {position + len(self.window)}")
        return self.window[offset : offset + count]
