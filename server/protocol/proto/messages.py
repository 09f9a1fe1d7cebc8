"""The messages of the gRPC services, as classes made from descriptors.binpb.

They live in a descriptor pool of their own: two copies of the package `inference` in the default one end the process, and whoever
imports tritonclient.grpc beside this brings the other. Messages only; this file knows no grpc.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from server.errors import InvalidRequest

Message: TypeAlias = Any
"""An instance of one of these classes. They are made when this file is imported, so no type checker knows their fields."""

FILES = FileDescriptorSet.FromString(Path(__file__).with_name("descriptors.binpb").read_bytes())
INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"


class Method(NamedTuple):
    """One method of a service, as its .proto file has it."""

    name: str
    request: type[Any]
    response: type[Any]
    streams_requests: bool
    streams_responses: bool


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FILES.file:  # protoc writes a file after those it imports
        pool.Add(file)
    return pool


POOL = _pool()


def message_class(name: str) -> type[Any]:
    """The class of a message by its full name, such as `inference.ModelInferRequest`."""
    found: type[Any] = GetMessageClass(POOL.FindMessageTypeByName(name))
    return found


def methods_of(service: str) -> Mapping[str, Method]:
    """Name → method of a service by its full name."""
    described = POOL.FindServiceByName(service).methods
    return {
        method.name: Method(
            method.name,
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in described
    }


def parse(kind: type[Any], raw: bytes | memoryview) -> Message:
    """The message in `raw`. Raises InvalidRequest for bytes that are no such message."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest(f"the request's {len(raw)} bytes aren't a valid {name} (protobuf)") from None


ModelInferRequest = message_class("inference.ModelInferRequest")
ModelInferResponse = message_class("inference.ModelInferResponse")
