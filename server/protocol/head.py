"""The JSON head of an HTTP inference request, read and checked: what is asked, in which shapes, and where each input's values lie.

This file makes no tensors and sizes no memory by what a client says: a shape is a tuple of integers and a count here, and the
codecs compare the count with the values that really came. Where an object has a member twice, the first counts, as in Triton.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson

from server.errors import InvalidRequest
from server.messages import NO_PARAMETERS, Layout, RegionSlice, RequestedOutput, Scalar, Shared, SharedInput
from server.protocol.reply import NO_OUTPUTS, Reply
from server.tensors import DTYPES, DType

Body: TypeAlias = bytes | bytearray | memoryview

MAX_DIMS = 32
MAX_AXIS = 1 << 63
MAX_NAME = 256
MAX_ID = 1024
MAX_EMPTY = 1 << 48
MAX_LAYOUTS = 1024
MAX_LAYOUT_TENSORS = 16
ALLOWED_RESERVED = "triton_enable_empty_final_response"

LEADING_ID = re.compile(rb'\{"id":"([ !#-\[\]-~]*)(?=")')  # printable ASCII without quote and backslash: the text is its own spelling
_COLON, _QUOTE, _SPACE = b':" '
_REPR = reprlib.Repr()
_REPR.maxstring = 64
_REPR.maxlist = 8


class Input(NamedTuple):
    """One input. Its values are `data` (JSON, or the RegionSlice where they lie) or the next `size` bytes after the head; the other is
    None."""

    name: str
    kind: DType
    shape: tuple[int, ...]
    elements: int
    size: int | None
    data: Any

    @property
    def region(self) -> RegionSlice | None:
        """Where in shared memory its values lie, None where they don't."""
        return self.data if type(self.data) is RegionSlice else None


class Head(NamedTuple):
    """All that the head says. `inline` is true where an input's values are JSON."""

    inputs: list[Input]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar]
    reply: Reply
    inline: bool
    shared: Shared | None


class Layouts:
    """One Layout for equal tuples of (name, datatype, shape), so that what the dataplane concluded about it is found again.
    Bounded: forgotten all at once when full, and requests with many inputs get a Layout of their own."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str, tuple[int, ...]], ...], Layout] = {}

    def of(self, inputs: list[Input]) -> Layout:
        """The Layout of these inputs."""
        tensors = tuple([(name, kind.name, shape) for name, kind, shape, _, _, _ in inputs])
        layout = self._known.get(tensors)
        if layout is None:
            layout = Layout(tensors)
            if len(tensors) <= MAX_LAYOUT_TENSORS:
                if len(self._known) >= MAX_LAYOUTS:
                    self._known.clear()
                self._known[tensors] = layout
        return layout


def shown(value: object) -> str:
    """repr() for error texts: short whatever the client sent."""
    return _REPR.repr(value)


def parse_head(text: Body) -> Head:
    """Read and check a head. Raises InvalidRequest that names the member."""
    document = parse_json(text)
    if type(document) is not dict:
        raise InvalidRequest(f"the request must be a JSON object, got {shown(document)}")
    if _repeats_members(text, document):
        document = _parse_slowly(bytes(text))
    request_id = document.get("id", "")
    if type(request_id) is not str or len(request_id) > MAX_ID:
        raise InvalidRequest(f"'id' must be a string of at most {MAX_ID} characters, got {shown(request_id)}")
    given = document.get("inputs")
    if type(given) is not list:
        raise InvalidRequest("the request has no 'inputs'" if given is None else f"'inputs' must be a list, got {shown(given)}")
    inputs = [read_input(index, item) for index, item in enumerate(given)]
    if len(inputs) > 1:
        refuse_twice([item.name for item in inputs], "input")
    inline = any(item.size is None and item.region is None for item in inputs)
    outputs, binary, places = _outputs(document["outputs"]) if "outputs" in document else ((), NO_OUTPUTS, {})
    parameters, binary_default = read_parameters(document["parameters"]) if "parameters" in document else (NO_PARAMETERS, False)
    return Head(inputs, outputs, parameters, Reply(request_id, binary_default, binary), inline, shared_by(inputs, places))


def shared_by(inputs: list[Input], outputs: Mapping[str, RegionSlice]) -> Shared | None:
    """What of a request lies in shared memory, None for nothing."""
    found = tuple([SharedInput(item.name, item.kind.name, item.shape, at) for item in inputs if (at := item.region) is not None])
    return Shared(found, outputs) if found or outputs else None


def parse_json(text: Body) -> Any:
    """The document. NaN, Infinity and -Infinity are read, as Triton does, at the price of a slower parser for such texts only."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raw = bytes(text)
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise InvalidRequest(f"the request isn't valid JSON: {error}") from None
    return _parse_slowly(raw)


def _parse_slowly(raw: bytes) -> Any:
    try:
        plain = raw.decode()
        document = json.loads(plain, object_pairs_hook=_first_of_each)
        if "\\ud" in plain or "\\uD" in plain:  # orjson refuses half a surrogate pair; so must we, or no answer could name it
            json.dumps(document, ensure_ascii=False).encode()
    except ValueError as error:
        raise InvalidRequest(f"the request isn't valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the request isn't valid JSON: nested too deep") from None
    return document


def _first_of_each(members: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(members))


def _repeats_members(text: Body, document: dict[str, Any]) -> bool:
    """Whether an object may have a member twice, of which orjson kept the last: no more colons than members that are kept means no.
    Where strings have colons too, only those after a quote or a space count. One that still looks so costs a slower parse, no more."""
    kept = _members(document)
    if type(text) is bytes and text.count(b":") == kept:
        return False
    raw = np.frombuffer(text, np.uint8)
    before = raw[np.flatnonzero(raw[1:] == _COLON)]
    return bool(np.count_nonzero((before == _QUOTE) | (before <= _SPACE)) != kept)


def _members(document: dict[str, Any]) -> int:
    """The members of the objects that a request is made of: itself, its parameters, its tensors and theirs."""
    count = len(document)
    for value in document.values():
        if type(value) is dict:
            count += len(value)
        elif type(value) is list:
            for item in value:
                if type(item) is not dict:
                    break
                count += len(item)
                if "parameters" in item and type(item["parameters"]) is dict:
                    count += len(item["parameters"])
    return count


def read_input(index: int, given: Any) -> Input:
    """An input as its JSON object says it. Raises InvalidRequest that names the member."""
    if type(given) is not dict:
        raise InvalidRequest(f"inputs[{index}] must be an object, got {shown(given)}")
    name = read_name(given, "inputs", index)
    datatype = given.get("datatype")
    kind = DTYPES.get(datatype) if type(datatype) is str else None
    if kind is None:
        raise InvalidRequest(f"input {name!r}: 'datatype' must be one of {', '.join(DTYPES)}; got {shown(datatype)}")
    shape, count = _shape(name, given.get("shape"))
    parameters = given.get("parameters", NO_PARAMETERS)
    if type(parameters) is not dict and parameters is not NO_PARAMETERS:
        raise InvalidRequest(f"input {name!r}: 'parameters' must be an object, got {shown(parameters)}")
    binary, region, inline = "binary_data_size" in parameters, "shared_memory_region" in parameters, "data" in given
    if binary + region + inline != 1:
        raise _not_one_source(name, {"data": inline, "binary_data_size": binary, "shared_memory_region": region})
    if inline:
        return Input(name, kind, shape, count, None, given["data"])
    if region:
        return Input(name, kind, shape, count, None, _region_slice("input", name, parameters))
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"input {name!r}: 'binary_data_size' must be an integer >= 0, got {shown(size)}")
    return Input(name, kind, shape, count, size, None)


def _not_one_source(name: str, given: Mapping[str, bool]) -> InvalidRequest:
    found = " and ".join(f"'{key}'" for key, there in given.items() if there) or "none of them"
    return InvalidRequest(
        f"input {name!r} must have exactly one of 'data', parameter 'binary_data_size' and parameter 'shared_memory_region'; got {found}"
    )


def read_name(given: dict[str, Any], where: str, index: int) -> str:
    """The name of an input or output. Raises InvalidRequest."""
    name = given.get("name")
    if type(name) is not str or not 0 < len(name) <= MAX_NAME:
        raise InvalidRequest(f"{where}[{index}]: 'name' must be a string of 1 to {MAX_NAME} characters, got {shown(name)}")
    return name


def _shape(name: str, given: Any) -> tuple[tuple[int, ...], int]:
    if type(given) is not list or len(given) > MAX_DIMS:
        raise InvalidRequest(f"input {name!r}: 'shape' must be a list of at most {MAX_DIMS} integers, got {shown(given)}")
    for size in given:
        if type(size) is not int or not 0 <= size < MAX_AXIS:
            raise InvalidRequest(f"input {name!r}: 'shape' must hold integers from 0 to 2**63 - 1, got {shown(given)}")
    count = prod(given)
    if not count and prod([size for size in given if size]) > MAX_EMPTY:
        # An empty array's other axes must still be ones that numpy can stride over.
        raise InvalidRequest(f"input {name!r}: 'shape' {shown(given)} is empty, and its other axes are too large")
    return tuple(given), count


def refuse_twice(names: list[str], what: str) -> None:
    """Raises InvalidRequest where a name comes twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{what} '{name}' already exists in request")
        seen.add(name)


def _region_slice(what: str, name: str, parameters: Mapping[str, Any]) -> RegionSlice:
    region = parameters["shared_memory_region"]
    if type(region) is not str or not 0 < len(region) <= MAX_NAME:
        raise InvalidRequest(f"{what} {name!r}: 'shared_memory_region' must be a string of 1 to {MAX_NAME} characters, got {shown(region)}")
    numbers = []
    for key, default in (("shared_memory_offset", 0), ("shared_memory_byte_size", None)):
        number = parameters.get(key, default)
        if type(number) is not int or not 0 <= number < MAX_AXIS:
            raise InvalidRequest(f"{what} {name!r}: '{key}' must be an integer from 0 to 2**63 - 1, got {shown(number)}")
        numbers.append(number)
    return RegionSlice(region, *numbers)


def _outputs(given: Any) -> tuple[tuple[RequestedOutput, ...], Mapping[str, bool], Mapping[str, RegionSlice]]:
    if type(given) is not list:
        raise InvalidRequest(f"'outputs' must be a list, got {shown(given)}")
    outputs, binary, places = [], {}, {}
    for index, item in enumerate(given):
        if type(item) is not dict:
            raise InvalidRequest(f"outputs[{index}] must be an object, got {shown(item)}")
        name = read_name(item, "outputs", index)
        classes, raw, place = read_output_parameters(name, item["parameters"]) if "parameters" in item else (0, False, None)
        outputs.append(RequestedOutput(name, classes))
        binary[name] = raw
        if place is not None:
            places[name] = place
    if len(binary) != len(outputs):
        refuse_twice([output.name for output in outputs], "output")
    return tuple(outputs), MappingProxyType(binary), places


def read_output_parameters(name: str, given: Any) -> tuple[int, bool, RegionSlice | None]:
    """How an output is asked for: its classes, 0 for the whole of it; whether in binary; and where in shared memory, None for in the
    answer. Raises InvalidRequest."""
    if type(given) is not dict:
        raise InvalidRequest(f"output {name!r}: 'parameters' must be an object, got {shown(given)}")
    binary = given.get("binary_data", False)
    if type(binary) is not bool:
        raise InvalidRequest(f"output {name!r}: 'binary_data' must be true or false, got {shown(binary)}")
    classes = given.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise InvalidRequest(f"output {name!r}: 'classification' must be an integer >= 0, got {shown(classes)}")
    return classes, binary, _region_slice("output", name, given) if "shared_memory_region" in given else None


def read_parameters(given: Any) -> tuple[Mapping[str, Scalar], bool]:
    """The parameters of a request, and its `binary_data_output`, which is taken out of them. Raises InvalidRequest."""
    if type(given) is not dict:
        raise InvalidRequest(f"'parameters' must be an object, got {shown(given)}")
    binary_default = given.pop("binary_data_output", False)
    if type(binary_default) is not bool:
        raise InvalidRequest(f"parameter 'binary_data_output' must be true or false, got {shown(binary_default)}")
    for key, value in given.items():
        if type(value) not in (str, int, float, bool) or value != value or value in (float("inf"), float("-inf")):
            raise InvalidRequest(f"parameter {shown(key)} must be a string, a finite number or a boolean, got {shown(value)}")
        if key.startswith("triton_") and key != ALLOWED_RESERVED:
            raise InvalidRequest(f"parameter {shown(key)} is reserved: names that start with 'triton_' can't be set")
    return (MappingProxyType(given) if given else NO_PARAMETERS), binary_default
