"""The stock clients with every tensor in shared memory: the inputs of a request in one region, its wanted outputs in another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http
import tritonclient.utils.shared_memory as shm

from server.tensors import DTYPES, Tensor, dtype_of
from tests.conformance.transports import Ask, Got, Grpc, GrpcStream, GrpcTyped, Http, HttpCompressed, HttpJson, refusals
from tests.server.protocol.wire import raw

ROOM = 4096
"""Bytes for each output: more than any case's takes."""
SENT, GIVEN = "SENT", "GIVEN"


@contextmanager
def region(client: Any, name: str, size: int) -> Iterator[Any]:
    """A region that is registered for the block."""
    key = f"/tidegate_conformance_{os.getpid()}_{name}"
    handle = shm.create_shared_memory_region(name, key, size)
    try:
        client.register_system_shared_memory(name, key, size)
        yield handle
    finally:
        client.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(handle)


def asked(transport: Http | Grpc, stock: ModuleType, ask: Ask) -> Got:
    """One request and its answer. A classified output comes with the answer: the stock client wants no region for it, nor for outputs
    that nobody names."""
    blobs = {name: raw(array) for name, array in ask.inputs.items()}
    places = {} if ask.class_count else {name: place * ROOM for place, name in enumerate(ask.outputs)}
    client = transport.client
    with refusals(), region(client, SENT, max(1, sum(map(len, blobs.values())))) as sent, region(client, GIVEN, ROOM * 4) as given:
        result = client.infer(
            ask.model,
            inputs(stock, ask, blobs, sent),
            model_version=ask.version,
            outputs=[output(stock, name, ask, places) for name in ask.outputs] or None,
            request_id=ask.id,
            parameters=dict(ask.parameters) or None,
            **ask.options,
        )
        return told(transport, result, places, given)


def inputs(stock: ModuleType, ask: Ask, blobs: Mapping[str, bytes], sent: Any) -> list[Any]:
    """Each input after the one before it."""
    made, offset = [], 0
    for name, array in ask.inputs.items():
        blob = blobs[name]
        if blob:
            shm.set_shared_memory_region(sent, [np.frombuffer(blob, np.uint8)], offset=offset)
        tensor = stock.InferInput(name, list(ask.shape or array.shape), dtype_of(array).name)
        made.append(tensor.set_shared_memory(SENT, len(blob), offset))
        offset += len(blob)
    return made


def output(stock: ModuleType, name: str, ask: Ask, places: Mapping[str, int]) -> Any:
    """One wanted output."""
    wanted = stock.InferRequestedOutput(name, class_count=ask.class_count)
    if name in places:
        wanted.set_shared_memory(GIVEN, ROOM, places[name])
    return wanted


def told(transport: Http | Grpc, result: Any, places: Mapping[str, int], given: Any) -> Got:
    """The answer, with what the region holds."""
    answer = result.get_response()
    if isinstance(transport, Http):
        heads = {one["name"]: (one["datatype"], one["shape"]) for one in answer["outputs"]}
        model, version, ident, parameters = (
            answer["model_name"],
            answer["model_version"],
            answer.get("id", ""),
            answer.get("parameters", {}),
        )
        assert not any("data" in one or "parameters" in one for one in answer["outputs"] if one["name"] in places)
    else:
        heads = {one.name: (one.datatype, list(one.shape)) for one in answer.outputs}
        model, version, ident = answer.model_name, answer.model_version, answer.id
        parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answer.parameters.items()}
        assert not (places and b"".join(answer.raw_output_contents))
    arrays = {name: read(given, *head, places[name]) if name in places else result.as_numpy(name) for name, head in heads.items()}
    return Got(model, version, ident, arrays, parameters)


def read(given: Any, datatype: str, shape: list[int], offset: int) -> Tensor:
    """An output out of its place, as the stock client reads it."""
    kind = np.object_ if datatype == "BYTES" else DTYPES[datatype].numpy
    return np.array(shm.get_contents_as_numpy(given, kind, shape, offset))


class HttpRegions(Http):
    """HTTP whose bodies hold no tensor."""

    name: ClassVar[str] = "http shared memory"

    def infer(self, ask: Ask) -> Got:
        return asked(self, stock_http, ask)


class GrpcRegions(Grpc):
    """gRPC whose messages hold no tensor."""

    name: ClassVar[str] = "grpc shared memory"

    def infer(self, ask: Ask) -> Got:
        return asked(self, stock_grpc, ask)


TRANSPORTS: Mapping[str, type[Http] | type[Grpc]] = {
    kind.name: kind for kind in (HttpJson, Http, HttpCompressed, HttpRegions, Grpc, GrpcTyped, GrpcStream, GrpcRegions)
}
