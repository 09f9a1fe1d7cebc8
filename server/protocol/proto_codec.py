"""ModelInferRequest bytes → requests, and answers → ModelInferResponse bytes.

As with the binary tensor extension, what comes before the raw tensors is the same again and again, so its meaning is kept under its bytes
(the id cut out): decoding is then a look-up and a view of the message for each input. What a head means is read by the code that reads
JSON heads, and refused in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from server.errors import BodyTooLarge, InvalidRequest
from server.messages import NO_PARAMETERS, InferRequest, Layout, RegionSlice, RequestedOutput, Scalar, Shared
from server.protocol.binary_codec import Part, read_tensor
from server.protocol.head import (
    MAX_DIMS,
    MAX_ID,
    MAX_NAME,
    Body,
    Input,
    Layouts,
    read_input,
    read_name,
    read_output_parameters,
    read_parameters,
    refuse_twice,
    shared_by,
    shown,
)
from server.protocol.json_codec import byte_size_mismatch
from server.protocol.proto.messages import Message, ModelInferRequest, parse
from server.protocol.proto.typed import typed_tensor
from server.protocol.proto.wire import NAME, VERSION, Fields, varint, walk
from server.tensors import Tensor

MAX_HEAD = 4096
MAX_ENTRIES = 1024
MAX_CACHED_BYTES = 1 << 20
MAX_TENSORS = 1024


class _Plan(NamedTuple):
    """What a head means: whom it asks, and for each raw tensor which input it is (`start` of a part isn't used)."""

    model: str
    version: str
    parts: tuple[Part, ...]
    layout: Layout
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar]
    shared: Shared | None


class ProtoDecoder:
    """Decodes messages and keeps the meaning of heads: at most 1,024 of at most 4 KiB, 1 MiB in all, forgotten all at once when full.
    Heads with typed contents aren't kept. `max_typed` bounds all but the raw tensors of a message, in bytes."""

    def __init__(self, max_typed: int, layouts: Layouts | None = None) -> None:
        self._max_typed = max_typed
        self._layouts = layouts if layouts is not None else Layouts()
        self._plans: dict[bytes, _Plan] = {}
        self._cached_bytes = 0

    def decode(self, body: bytes) -> InferRequest:
        """The request in a ModelInferRequest's bytes. Tensors that came raw are views of `body`, not always aligned to their element size.
        Raises InvalidRequest, BodyTooLarge or Unsupported."""
        fields = walk(body)
        head_length, raws, (id_from, id_start, id_end), plain = fields
        if not plain:
            return self._decode_unordered(body, fields)
        key = body[:id_from] + body[id_end:head_length] if id_end else body[:head_length]
        plan = self._plans.get(key)
        if plan is None or len(raws) != len(plan.parts):
            return self._decode_new(body, fields, key)
        model, version, parts, layout, outputs, parameters, shared = plan
        inputs = {}
        for part, (start, size) in zip(parts, raws, strict=True):
            if size != part.size:
                return self._decode_new(body, fields, key)
            inputs[part.name] = read_tensor(part, body, start)
        request_id = body[id_start:id_end]
        if request_id and not (len(request_id) <= MAX_ID and request_id.isascii()):
            return self._decode_new(body, fields, key)
        request = InferRequest(model, inputs, layout, version, request_id.decode(), outputs, parameters)
        if shared is not None:
            request.shared = shared
        return request

    def typed_bytes(self, body: bytes) -> int:
        """The bytes of a message beside its raw tensors, 0 for more than `decode` takes. Raises InvalidRequest."""
        fields = walk(body)
        size = fields.head if fields.plain else len(body) - sum(size for _, size in fields.raws)
        return size if size <= self._max_typed else 0

    def _decode_new(self, body: bytes, fields: Fields, key: bytes) -> InferRequest:
        self._refuse_large(fields.head)
        message = parse(ModelInferRequest, body[: fields.head])
        view = memoryview(body)
        plan, request = self._understand(message, [view[start : start + size] for start, size in fields.raws])
        if plan is not None and len(key) <= MAX_HEAD:
            self._keep(key, plan)
        return request

    def _decode_unordered(self, body: bytes, fields: Fields) -> InferRequest:
        """A message whose fields are in another order, or has more of them: protobuf's parser makes copies of its tensors."""
        self._refuse_large(len(body) - sum(size for _, size in fields.raws))
        message = parse(ModelInferRequest, body)
        return self._understand(message, list(message.raw_input_contents))[1]

    def _refuse_large(self, size: int) -> None:
        if size > self._max_typed:
            raise BodyTooLarge(
                f"a request takes at most {self._max_typed} bytes beside its raw tensors (limits.max_json_body), got {size}; "
                "send large tensors as raw_input_contents"
            )

    def _understand(self, message: Message, raws: Sequence[Body]) -> tuple[_Plan | None, InferRequest]:
        """The request, and what can be kept of its head: nothing where values are typed contents."""
        for field in ("inputs", "outputs", "parameters"):
            if len(getattr(message, field)) > MAX_TENSORS:
                raise InvalidRequest(f"a request takes at most {MAX_TENSORS} {field}, got {len(getattr(message, field))}")
        model, version = addressee(message.model_name, message.model_version, "model_name", "model_version")
        request_id = message.id
        if len(request_id) > MAX_ID:
            raise InvalidRequest(f"'id' must be a string of at most {MAX_ID} characters, got {shown(request_id)}")
        if raws:
            _match(message.inputs, raws, model)
        waiting = iter(raws)
        inputs = [_read_input(index, tensor, waiting if raws else None) for index, tensor in enumerate(message.inputs)]
        refuse_twice([item.name for item in inputs], "input")
        layout = self._layouts.of(inputs)
        outputs, places = _outputs(message.outputs)
        shared = shared_by(inputs, places)
        parameters = read_parameters(_scalars(message.parameters))[0] if message.parameters else NO_PARAMETERS
        parts = [Part(name, kind, shape, count, 0, size) for name, kind, shape, count, size, _ in inputs if size is not None]
        for part in parts:
            if part.size != part.elements * part.kind.size if part.kind.size else part.size < 4 * part.elements:
                raise byte_size_mismatch(part.name, part.kind, part.elements, part.size, model)
        if raws:
            values = {part.name: read_tensor(part, raw, 0) for part, raw in zip(parts, raws, strict=True)}
        else:
            pairs = zip(inputs, message.inputs, strict=True)
            values = {item.name: _typed(item, tensor, model) for item, tensor in pairs if item.region is None}
        plan = _Plan(model, version, tuple(parts), layout, outputs, parameters, shared) if raws or not values else None
        return plan, InferRequest(model, values, layout, version, request_id, outputs, parameters, shared=shared)

    def _keep(self, key: bytes, plan: _Plan) -> None:
        if len(self._plans) >= MAX_ENTRIES or self._cached_bytes + len(key) > MAX_CACHED_BYTES:
            self._plans.clear()
            self._cached_bytes = 0
        self._plans[key] = plan
        self._cached_bytes += len(key)


def addressee(model: str, version: str, *fields: str) -> tuple[str, str]:
    """Whom a message asks: the model and the version, which are named `fields` there. Raises InvalidRequest where they're too long."""
    for value, field in zip((model, version), fields, strict=True):
        if len(value) > MAX_NAME:
            raise InvalidRequest(f"'{field}' must be a string of at most {MAX_NAME} characters, got {shown(value)}")
    return model, version


def named(body: bytes) -> tuple[str, str]:
    """The model and version that a message names at its beginning, empty where they aren't found: for the account of one that can't be
    decoded."""
    found = {NAME: "", VERSION: ""}
    at = 0
    try:
        while body[at] in found:
            tag = body[at]
            size, start = varint(body, at + 1)
            at = start + size
            found[tag] = body[start : min(at, start + MAX_NAME)].decode("utf-8", "replace")
    except IndexError:
        pass
    return found[NAME], found[VERSION]


def _match(inputs: Sequence[Message], raws: Sequence[Body], model: str) -> None:
    """Raises InvalidRequest unless each input that isn't in shared memory has one raw tensor and no typed contents."""
    inputs = [tensor for tensor in inputs if "shared_memory_region" not in tensor.parameters]
    for tensor in inputs:
        if tensor.HasField("contents"):
            raise InvalidRequest(
                f"contents field must not be specified when using raw_input_contents for {shown(tensor.name)} for model '{model}'"
            )
    if len(raws) != len(inputs):
        raise InvalidRequest(f"expected {len(inputs)} raw_input_contents for model '{model}', one for each input, got {len(raws)}")


def _read_input(index: int, tensor: Message, raws: Iterator[Body] | None) -> Input:
    parameters = _scalars(tensor.parameters)
    given: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape[: MAX_DIMS + 1])}
    if "shared_memory_region" in parameters:
        given["parameters"] = {name: value for name, value in parameters.items() if name.startswith("shared_memory_")}
    elif raws is not None:
        given["parameters"] = {"binary_data_size": len(next(raws))}
    if "parameters" not in given or ("shared_memory_region" in parameters and tensor.HasField("contents")):
        given["data"] = None
    return read_input(index, given)


def _typed(item: Input, tensor: Message, model: str) -> Tensor:
    if item.elements and not tensor.HasField("contents"):
        raise InvalidRequest(f"input {item.name!r} for model '{model}' has no values: send raw_input_contents, or its contents")
    return typed_tensor(item, tensor.contents.SerializeToString())


def _outputs(given: Sequence[Message]) -> tuple[tuple[RequestedOutput, ...], Mapping[str, RegionSlice]]:
    outputs, places = [], {}
    for index, output in enumerate(given):
        name = read_name({"name": output.name}, "outputs", index)
        classes, _, place = read_output_parameters(name, _scalars(output.parameters))
        outputs.append(RequestedOutput(name, classes))
        if place is not None:
            places[name] = place
    refuse_twice([output.name for output in outputs], "output")
    return tuple(outputs), places


def _scalars(parameters: Mapping[str, Message]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {shown(name)} has no value")
        found[name] = getattr(parameter, choice)
    return found
