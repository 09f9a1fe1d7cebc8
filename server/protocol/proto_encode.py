"""Answers → ModelInferResponse bytes, tensors always raw.

What outputs of the same names, datatypes and shapes have in common is written once and kept; the values are copied once, into the
message. protobuf's own classes would copy them twice more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from server.messages import InferResponse, Placed, Scalar
from server.protocol.binary_codec import COPY_BELOW, raw_values
from server.protocol.encode import kind_of
from server.protocol.proto.messages import ModelInferResponse, message_class
from server.protocol.proto.wire import ID, as_varint, delimited

MAX_ENTRIES = 1024
MAX_FORM = 4096

RAW_OUTPUT, STREAM_ERROR, STREAM_ANSWER = 0x32, 0x0A, 0x12
"""Tags: raw_output_contents of ModelInferResponse; error_message and infer_response of ModelStreamInferResponse."""

FINAL = "triton_final_response"
FINAL_WANTED = "triton_enable_empty_final_response"
_CHOICES: Mapping[type, str] = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
_Parameter = message_class("inference.InferParameter")


class _Form(NamedTuple):
    """What is kept: `opening` names the model, `outputs` describe the tensors, `raws` come before the values of each (empty: BYTES)."""

    opening: bytes
    outputs: bytes
    raws: tuple[bytes, ...]


class ProtoEncoder:
    """Encodes answers and keeps the fixed part of their messages: at most 1,024 of at most 4 KiB, forgotten all at once when full."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], _Form] = {}

    def encode(self, response: InferResponse) -> bytes:
        """A ModelInferResponse for an answer that isn't an error. Raises BackendFailure for an array that the protocol has no datatype
        for."""
        return b"".join(self._pieces(response, response.parameters))

    def encode_streamed(self, response: InferResponse, final: bool) -> bytes:
        """The same within a ModelStreamInferResponse, which says whether it's the last to its request."""
        pieces = self._pieces(response, {**response.parameters, FINAL: final})
        return b"".join((bytes((STREAM_ANSWER,)), as_varint(sum(map(len, pieces))), *pieces))

    def _pieces(self, response: InferResponse, parameters: Mapping[str, Scalar]) -> list[bytes | memoryview]:
        signature: list[object] = [response.model, response.version]
        for name, array in response.outputs.items():
            signature += (name, array.dtype, array.shape)
        key = tuple(signature)
        form = self._forms.get(key)
        if form is None:
            form = self._form_for(key, response)
        opening, outputs, raws = form
        pieces: list[bytes | memoryview] = [opening]
        if response.id:
            pieces.append(delimited(ID, response.id.encode()))
        if parameters:
            pieces.append(_written(parameters))
        pieces.append(outputs)
        if response.placed:
            pieces.append(_described(response.placed))
        for before, array in zip(raws, response.outputs.values(), strict=True):
            values = array.tobytes() if before and array.nbytes < COPY_BELOW else raw_values(array)
            pieces += (before or bytes((RAW_OUTPUT,)) + as_varint(len(values)), values)
        pieces += [bytes((RAW_OUTPUT, 0))] * len(response.placed)  # one for each output: clients count them
        return pieces

    def _form_for(self, key: tuple[object, ...], response: InferResponse) -> _Form:
        form = _form(response)
        if len(form.opening) + len(form.outputs) <= MAX_FORM:
            if len(self._forms) >= MAX_ENTRIES:
                self._forms.clear()
            self._forms[key] = form
        return form


def streamed_error(request_id: str, text: str) -> bytes:
    """A ModelStreamInferResponse for a request that failed. It carries the id: on a stream, only that says whose error it is."""
    answer = ModelInferResponse(id=request_id)
    answer.parameters[FINAL].bool_param = True
    return delimited(STREAM_ERROR, text.encode()) + delimited(STREAM_ANSWER, answer.SerializeToString())


def _form(response: InferResponse) -> _Form:
    opening = ModelInferResponse(model_name=response.model, model_version=response.version).SerializeToString()
    described = ModelInferResponse()
    raws = []
    for name, array in response.outputs.items():
        kind = kind_of(name, array)
        described.outputs.add(name=name, datatype=kind.name, shape=array.shape)
        raws.append(bytes((RAW_OUTPUT,)) + as_varint(array.nbytes) if kind.size else b"")
    return _Form(opening, described.SerializeToString(), tuple(raws))


def _described(placed: Sequence[Placed]) -> bytes:
    message = ModelInferResponse()
    for name, datatype, shape in placed:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    written: bytes = message.SerializeToString()
    return written


def _written(parameters: Mapping[str, Scalar]) -> bytes:
    message = ModelInferResponse()
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(_Parameter(**{_CHOICES[type(value)]: value}))
    written: bytes = message.SerializeToString()
    return written
