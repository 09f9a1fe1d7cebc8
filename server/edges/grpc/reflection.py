"""Server reflection: tells a client without .proto files (grpcurl, Postman) which services there are and what their messages look like.

grpcio-reflection answers from the default descriptor pool, which ours isn't in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from server.errors import NotFound, TidegateError, Unsupported
from server.protocol.head import shown
from server.protocol.proto.messages import FILES, HEALTH, INFERENCE, POOL, REFLECTION, Message, message_class, parse

SERVICES = (INFERENCE, HEALTH, REFLECTION)
ALPHA = "grpc.reflection.v1alpha.ServerReflection"
"""The service's older name, which many clients ask first. Its messages are the same on the wire."""

_Request = message_class("grpc.reflection.v1.ServerReflectionRequest")
_Response = message_class("grpc.reflection.v1.ServerReflectionResponse")
_FILES: Mapping[str, bytes] = {file.name: file.SerializeToString() for file in FILES.file}
_NOT_FOUND, _UNIMPLEMENTED = 5, 12


def reflect(body: bytes) -> bytes:
    """The answer to one message of a reflection stream. What can't be answered is an answer too. Raises InvalidRequest for bytes that
    are no such message."""
    request = parse(_Request, body)
    answer = _Response(valid_host=request.host, original_request=request)
    try:
        _fill(answer, request)
    except TidegateError as error:
        answer.error_response.error_code = _NOT_FOUND if isinstance(error, NotFound) else _UNIMPLEMENTED
        answer.error_response.error_message = str(error)
    written: bytes = answer.SerializeToString()
    return written


def _fill(answer: Any, request: Message) -> None:
    wish = request.WhichOneof("message_request")
    if wish == "list_services":
        for name in SERVICES:
            answer.list_services_response.service.add(name=name)
    elif wish == "file_by_filename":
        answer.file_descriptor_response.file_descriptor_proto.extend(_with_imports(_file(request.file_by_filename)))
    elif wish == "file_containing_symbol":
        answer.file_descriptor_response.file_descriptor_proto.extend(_with_imports(_file_of(request.file_containing_symbol)))
    elif wish == "all_extension_numbers_of_type":
        answer.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
    else:
        raise Unsupported("these services have no extensions" if wish else "the request asks nothing")


def _file(name: str) -> FileDescriptor:
    try:
        return POOL.FindFileByName(name)
    except KeyError:
        raise NotFound(f"no file {shown(name)}") from None


def _file_of(symbol: str) -> FileDescriptor:
    try:
        return POOL.FindFileContainingSymbol(symbol.replace(ALPHA, REFLECTION))
    except KeyError:
        raise NotFound(f"no symbol {shown(symbol)}") from None


def _with_imports(file: FileDescriptor) -> list[bytes]:
    return [_FILES[file.name], *(_FILES[imported.name] for imported in file.dependencies)]
