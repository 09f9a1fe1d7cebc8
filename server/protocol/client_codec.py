"""The client's half of the protocol: requests written and answers read, in the binary tensor extension.

The helper process for big JSON speaks it with the server's process, and load generators with any server.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from server.errors import InvalidRequest
from server.messages import InferRequest, InferResponse, RegionSlice, Shared
from server.protocol.binary_codec import raw_values, read_strings
from server.protocol.encode import Encoded
from server.protocol.head import Body, parse_json
from server.protocol.json_codec import from_json
from server.protocol.reply import Reply
from server.tensors import Tensor, dtype_named, dtype_of, elements

ALIGNMENT = 64


def encode_request(request: InferRequest, reply: Reply) -> Encoded:
    """A request that decodes to `request` and `reply`, all inputs binary. The head is padded with spaces, so that the first
    input's values are aligned."""
    blobs = [raw_values(array) for array in request.inputs.values()]
    head: dict[str, Any] = {"id": reply.id} if reply.id else {}
    parameters: dict[str, Any] = dict(request.parameters)
    if reply.binary_default:
        parameters["binary_data_output"] = True
    if parameters:
        head["parameters"] = parameters
    head["inputs"] = [
        {"name": name, "shape": array.shape, "datatype": dtype_of(array).name, "parameters": {"binary_data_size": len(blob)}}
        for (name, array), blob in zip(request.inputs.items(), blobs, strict=True)
    ]
    if request.outputs:
        head["outputs"] = [
            {"name": name, "parameters": {"binary_data": reply.binary.get(name, False), "classification": classes}}
            for name, classes in request.outputs
        ]
    if request.shared is not None:
        _add_shared(head, request.shared)
    text = orjson.dumps(head)
    text = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT)
    return Encoded(text, blobs, True, len(text) + sum(map(len, blobs)))


def _add_shared(head: dict[str, Any], shared: Shared) -> None:
    head["inputs"] += [
        {"name": name, "shape": shape, "datatype": datatype, "parameters": _slice(at)} for name, datatype, shape, at in shared.inputs
    ]
    for output in head.get("outputs", ()):
        if output["name"] in shared.outputs:
            output["parameters"] |= _slice(shared.outputs[output["name"]])


def _slice(at: RegionSlice) -> dict[str, Any]:
    return {"shared_memory_region": at.region, "shared_memory_offset": at.offset, "shared_memory_byte_size": at.size}


def decode_response(body: Body, head_length: int | None = None) -> InferResponse:
    """The answer in `body`; `head_length` is the Inference-Header-Content-Length, None where it's all JSON. Tensors of binary
    outputs are views of `body`. Raises InvalidRequest for a body that doesn't follow the protocol."""
    start = len(body) if head_length is None else head_length
    document = parse_json(body[:start])
    try:
        outputs = {}
        for entry in document["outputs"]:
            size = entry.get("parameters", {}).get("binary_data_size")
            outputs[entry["name"]] = _output(entry, body[start : start + (size or 0)], size)
            start += size or 0
        return InferResponse(
            document["model_name"], document["model_version"], document.get("id", ""), outputs, document.get("parameters", {})
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"the answer doesn't follow the protocol: {error!r}") from None


def _output(entry: dict[str, Any], raw: Body, size: int | None) -> Tensor:
    name, kind, shape = entry["name"], dtype_named(entry["datatype"]), tuple(entry["shape"])
    if size is None:
        return from_json(name, kind, shape, elements(shape), entry["data"])
    if not kind.size:
        return read_strings(name, shape, elements(shape), raw)
    return np.ndarray(shape, kind.numpy, raw)
