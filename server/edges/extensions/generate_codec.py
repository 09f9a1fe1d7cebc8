"""Plain JSON objects ↔ requests and answers of the generate extension.

What isn't said is deduced: a value without all of its axes is one row, and one axis that varies is as long as the values make it.
"""

from __future__ import annotations

from math import prod
from typing import Any

import orjson

from server.errors import InvalidRequest
from server.messages import InferRequest, InferResponse
from server.protocol.binary_codec import Takes
from server.protocol.encode import kind_of
from server.protocol.head import MAX_ID, Input, Layouts, read_parameters, shown
from server.protocol.json_codec import MAX_DEPTH, from_json, to_json
from server.tensors import TensorSpec


def asked(document: Any, takes: Takes, model: str, layouts: Layouts) -> InferRequest:
    """The request that a document spells: members named as inputs are those, `id` and `parameters` what they say, all others parameters.
    Raises InvalidRequest."""
    if type(document) is not dict:
        raise InvalidRequest(f"the request must be a JSON object, got {shown(document)}")
    known = {spec.name: spec for spec in takes.inputs}
    items = [_input(known[name], document[name], takes) for name in document.keys() & known.keys()]
    rest = {name: value for name, value in document.items() if name not in known}
    request_id = rest.pop("id", "")
    if type(request_id) is int:
        request_id = str(request_id)
    if type(request_id) is not str or len(request_id) > MAX_ID:
        raise InvalidRequest(f"'id' must be a string of at most {MAX_ID} characters, got {shown(request_id)}")
    nested = rest.pop("parameters", {})
    if type(nested) is not dict:
        raise InvalidRequest(f"'parameters' must be an object, got {shown(nested)}")
    parameters, _ = read_parameters({**nested, **rest})
    inputs = {item.name: from_json(item.name, item.kind, item.shape, item.elements, item.data) for item in items}
    return InferRequest(model, inputs, layouts.of(items), takes.version, request_id, parameters=parameters)


def written(response: InferResponse) -> bytes:
    """An answer as a document: a value alone where an output is one, else a flat list. Raises InvalidRequest where BYTES aren't UTF-8."""
    facts = {"id": response.id} if response.id else {}
    facts |= {"model_name": response.model, "model_version": response.version}
    members = [b"%b:%b" % (orjson.dumps(name), orjson.dumps(value)) for name, value in {**facts, **response.parameters}.items()]
    for name, array in response.outputs.items():
        values = to_json(name, kind_of(name, array), array)
        members.append(b"%b:%b" % (orjson.dumps(name), values[1:-1] if array.size == 1 else values))
    return b"{%b}" % b",".join(members)


def _input(spec: TensorSpec, value: Any, takes: Takes) -> Input:
    data = value if type(value) is list else [value]
    lengths = _lengths(spec.name, data)
    count = prod(lengths)
    shape = lengths if len(lengths) == len(spec.shape) and type(value) is list else _deduced(spec, count, takes)
    return Input(spec.name, spec.dtype, tuple(shape), prod(shape), None, data)


def _lengths(name: str, data: Any) -> list[int]:
    """How long the lists are, from the outermost in, by the first of each."""
    lengths: list[int] = []
    while type(data) is list:
        lengths.append(len(data))
        if len(lengths) > MAX_DEPTH:
            raise InvalidRequest(f"input {name!r}: the value is nested deeper than {MAX_DEPTH} levels")
        data = data[0] if data else None
    return lengths


def _deduced(spec: TensorSpec, count: int, takes: Takes) -> list[int]:
    shape, varying = takes.one_row(spec)
    if len(varying) > 1:
        raise InvalidRequest(
            f"input {spec.name!r}: the shape can't be deduced, since several axes of {list(spec.shape)} vary; "
            f"nest the value {len(shape)} deep"
        )
    if varying:
        rest = prod(length for length in shape if length >= 0)
        shape[varying[0]] = count // rest if rest else 0
    return shape
