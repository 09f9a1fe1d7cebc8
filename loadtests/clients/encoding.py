"""Requests as bytes, for every client alike: the HTTP body with its headers, the gRPC message with its metadata. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from loadtests.asking import Question
from loadtests.clients.base import run_facts
from loadtests.samples import RunFacts
from server.messages import InferRequest, Scalar
from server.protocol.binary_codec import raw_values
from server.protocol.client_codec import encode_request
from server.protocol.json_codec import to_json
from server.protocol.proto.messages import INFERENCE, Message, methods_of
from server.protocol.reply import Reply
from server.tensors import dtype_of

HEAD_LENGTH = "Inference-Header-Content-Length"
METHODS = methods_of(INFERENCE)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HttpPrepared:
    """A POST …/infer; `explain` has its answer read."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    explain: bool


class GrpcPrepared(NamedTuple):
    """A ModelInferRequest's bytes, in two parts between which an id fits; its metadata; and whether its answer is read."""

    head: bytes
    tail: bytes
    metadata: Metadata
    explain: bool


def http_prepared(question: Question, explain: bool, headers: Mapping[str, str], binary: bool) -> HttpPrepared:
    """A request in the binary tensor extension, or in JSON."""
    request = question.request
    if explain:
        request = replace(request, parameters={**request.parameters, "explain": True})
    place = f"v2/models/{request.model}" + (f"/versions/{request.version}" if request.version else "") + "/infer"
    if not binary:
        return HttpPrepared(place, _json_body(request), {"Content-Type": "application/json", **headers}, explain)
    encoded = encode_request(request, Reply("", True, {output.name: True for output in request.outputs}))
    body = b"".join((encoded.head, *encoded.blobs))
    kind = {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(encoded.head))}
    return HttpPrepared(place, body, {**kind, **headers}, explain)


def grpc_prepared(question: Question, explain: bool, metadata: Metadata) -> GrpcPrepared:
    """A ModelInferRequest with raw tensors."""
    request = question.request
    head = METHODS["ModelInfer"].request(model_name=request.model, model_version=request.version).SerializeToString()
    return GrpcPrepared(head, _message(request, explain).SerializeToString(), metadata, explain)


def as_metadata(headers: Mapping[str, str]) -> Metadata:
    """Headers as gRPC has them."""
    return tuple((name.lower(), value) for name, value in headers.items())


def explained_by(response: Message) -> RunFacts | None:
    """What a ModelInferResponse tells of its run."""
    return run_facts({name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.parameters.items()})


def _json_body(request: InferRequest) -> bytes:
    inputs = []
    for name, array in request.inputs.items():
        kind = dtype_of(array)
        inputs.append({"name": name, "shape": array.shape, "datatype": kind.name, "data": orjson.Fragment(to_json(name, kind, array))})
    body: dict[str, Any] = {"inputs": inputs, "parameters": dict(request.parameters)}
    if request.outputs:
        body["outputs"] = [{"name": output.name} for output in request.outputs]
    return orjson.dumps(body)


def _message(request: InferRequest, explain: bool) -> Message:
    """All of a request that comes after its id."""
    message = METHODS["ModelInfer"].request()
    for name, value in {**request.parameters, **({"explain": True} if explain else {})}.items():
        setattr(message.parameters[name], _choice(value), value)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=dtype_of(array).name, shape=array.shape)
        message.raw_input_contents.append(bytes(raw_values(array)))
    for output in request.outputs:
        message.outputs.add(name=output.name)
    return message


def _choice(value: Scalar) -> str:
    """The field of an InferParameter for a value."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return kinds[type(value)]
