"""Answers → JSON, or a JSON head followed by raw values.

Answers repeat as requests do: the head of outputs of the same names, datatypes and shapes is built once and kept, with gaps where
values or sizes differ from answer to answer. The id and the parameters, which change with each, are put before what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import orjson

from server.errors import BackendFailure
from server.messages import InferResponse, Placed
from server.protocol.binary_codec import COPY_BELOW, raw_values, write_strings
from server.protocol.json_codec import to_json
from server.protocol.reply import Reply
from server.tensors import DType, Tensor, dtype_of

MAX_ENTRIES = 1024
MAX_HEAD = 4096
_END = b"]}"

_JSON_BYTES = {"BOOL": 6, "UINT8": 4, "INT8": 5, "UINT16": 6, "INT16": 7, "UINT32": 11, "INT32": 12, "FP16": 13, "BF16": 13, "FP32": 13}


class Encoded(NamedTuple):
    """A body. `head` is JSON; `blobs` are the raw values after it. `binary` says that the client must be told how long the head
    is (Inference-Header-Content-Length). `size` is bytes in all."""

    head: bytes | memoryview
    blobs: list[bytes | memoryview]
    binary: bool
    size: int


class _Gap(NamedTuple):
    """An output whose text differs from answer to answer: its values in JSON, or the size of its raw BYTES."""

    name: str
    kind: DType
    binary: bool


class _Form(NamedTuple):
    """A head that is kept. `texts` has one more than `gaps`; the first starts after the brace, id and parameters excepted. `plain` is true
    for one output in JSON and nothing else."""

    model: bytes
    texts: tuple[bytes, ...]
    gaps: tuple[_Gap, ...]
    whole: bytes
    blob_bytes: int
    binary: bool
    plain: bool


class Encoder:
    """Encodes answers and keeps the fixed text of their heads: at most 1,024 of at most 4 KiB, forgotten all at once when full."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], _Form] = {}

    def encode(self, response: InferResponse, reply: Reply) -> Encoded:
        """The body for an answer that isn't an error. Raises InvalidRequest where BYTES asked for in JSON aren't UTF-8, and
        BackendFailure for an array that the protocol has no datatype for."""
        if response.placed:
            return with_placed(self.encode(replace(response, placed=()), reply), response.placed)
        request_id, default, listed = reply
        signature: list[object] = [response.model, response.version]
        for name, array in response.outputs.items():
            signature += (name, array.dtype, array.shape, listed.get(name, default))
        key = tuple(signature)
        form = self._forms.get(key)
        if form is None:
            form = self._form_for(key, response, reply)
        if form[2]:
            return (
                _only_values(form, response) if form.plain and not request_id and not response.parameters else _fill(form, response, reply)
            )
        blobs: list[bytes | memoryview] = [
            array.tobytes() if array.nbytes < COPY_BELOW else raw_values(array) for array in response.outputs.values()
        ]
        head = form[3]
        if request_id or response.parameters:
            head = _opening(form, response, request_id) + form[1][0]
        return Encoded(head, blobs, form[5], len(head) + form[4])

    def _form_for(self, key: tuple[object, ...], response: InferResponse, reply: Reply) -> _Form:
        form = _form(response, reply)
        if sum(map(len, form.texts)) <= MAX_HEAD:
            if len(self._forms) >= MAX_ENTRIES:
                self._forms.clear()
            self._forms[key] = form
        return form


def with_placed(encoded: Encoded, placed: Sequence[Placed]) -> Encoded:
    """The body, with outputs that lie in shared memory after the others: described, without values or parameters."""
    outputs = orjson.dumps([{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in placed])
    head = bytes(encoded.head)[: -len(_END)]
    head += (b"" if head.endswith(b"[") else b",") + outputs[1:-1] + _END
    return Encoded(head, encoded.blobs, encoded.binary, len(head) + encoded.size - len(encoded.head))


def json_bytes(response: InferResponse, reply: Reply) -> int:
    """About how long the JSON text of this answer would be, so that a caller can have a long one written elsewhere. Numbers only:
    BYTES are counted as they are."""
    total = 0
    for name, array in response.outputs.items():
        if not reply.binary.get(name, reply.binary_default):
            kind = kind_of(name, array)
            total += array.size * _JSON_BYTES.get(kind.name, 21) if kind.size else sum(len(value) + 3 for value in array.flat)
    return total


def kind_of(name: str, array: Tensor) -> DType:
    """The datatype of an output. Raises BackendFailure for an array that the protocol has no datatype for."""
    try:
        return dtype_of(array)
    except KeyError:
        raise BackendFailure(f"output {name!r} came as numpy {array.dtype}, which the protocol has no datatype for") from None


def _form(response: InferResponse, reply: Reply) -> _Form:
    model = b'"model_name":%b,"model_version":%b' % (orjson.dumps(response.model), orjson.dumps(response.version))
    text, texts, gaps, blob_bytes, any_binary = b',"outputs":[', [], [], 0, False
    for index, (name, array) in enumerate(response.outputs.items()):
        kind = kind_of(name, array)
        binary = reply.binary.get(name, reply.binary_default)
        entry = orjson.dumps({"name": name, "datatype": kind.name, "shape": array.shape})[:-1]
        text += (b"," if index else b"") + entry + (b',"parameters":{"binary_data_size":' if binary else b',"data":')
        if binary and kind.size:
            text += b"%d" % array.nbytes
            blob_bytes += array.nbytes
        else:
            texts.append(text)
            gaps.append(_Gap(name, kind, binary))
            text = b""
        text += b"}}" if binary else b"}"
        any_binary |= binary
    texts.append(text + _END)
    plain = len(response.outputs) == 1 and not any_binary
    return _Form(model, tuple(texts), tuple(gaps), b"{" + model + texts[0], blob_bytes, any_binary, plain)


def _opening(form: _Form, response: InferResponse, request_id: str) -> bytes:
    opening = b'{"id":%b,%b' % (orjson.dumps(request_id), form.model) if request_id else b"{" + form.model
    if response.parameters:
        opening += b',"parameters":' + orjson.dumps(dict(response.parameters))
    return opening


def _only_values(form: _Form, response: InferResponse) -> Encoded:
    name, kind, _ = form.gaps[0]
    head = b"".join((form.whole, to_json(name, kind, response.outputs[name]), form.texts[1]))
    return Encoded(head, [], False, len(head))


def _fill(form: _Form, response: InferResponse, reply: Reply) -> Encoded:
    strings: dict[str, bytes] = {}
    pieces = [_opening(form, response, reply.id)]
    for text, (name, kind, binary) in zip(form.texts, form.gaps, strict=False):
        pieces.append(text)
        array = response.outputs[name]
        if binary:
            strings[name] = raw = write_strings(array)
            pieces.append(b"%d" % len(raw))
        else:
            pieces.append(to_json(name, kind, array))
    pieces.append(form.texts[-1])
    head = b"".join(pieces)
    blobs: list[bytes | memoryview] = []
    for name, array in response.outputs.items():
        if reply.binary.get(name, reply.binary_default):
            blobs.append(strings[name] if name in strings else raw_values(array))
    return Encoded(head, blobs, form.binary, len(head) + form.blob_bytes + sum(map(len, strings.values())))
