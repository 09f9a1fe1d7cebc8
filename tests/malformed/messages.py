"""Messages over gRPC that must be refused, made from tables; as `documents`, which has the models that they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

INVALID = ("INVALID_ARGUMENT",)
INFER = "ModelInfer"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as bytes, the codes of which one must come, and a part of the text that must come with it."""

    body: bytes
    codes: tuple[str, ...] = INVALID
    text: str = ""
    method: str = INFER


Messages = Iterator[tuple[str, Message]]


def good() -> Any:
    """A request for `m` that succeeds."""
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(64)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    return request


WHOLE: bytes = good().SerializeToString()


def changed(change: Callable[[Any], object]) -> bytes:
    """The good request after a change."""
    request = good()
    change(request)
    written: bytes = request.SerializeToString()
    return written


def member(field: str, value: Any) -> bytes:
    """The good request with one member set."""
    return changed(lambda r: setattr(r, field, value))


def input_member(field: str, value: Any) -> bytes:
    """The good request with one member of its input set."""
    return changed(lambda r: setattr(r.inputs[0], field, value))


SHAPES: Mapping[str, list[int]] = {
    "none": [],
    "one axis": [16],
    "three axes": [1, 16, 1],
    "no rows": [0, 16],
    "no columns": [1, 0],
    "minus one row": [-1, 16],
    "both negative": [-1, -16],
    "a negative column": [1, -16],
    "least": [-(2**63), 16],
    "15": [1, 15],
    "17": [1, 17],
    "too many rows": [9, 16],
    "swapped": [16, 1],
    "2^31 rows": [2**31, 16],
    "2^60 rows": [2**60, 16],
    "2^63 - 1 rows": [2**63 - 1, 16],
    "a product of 2^64": [2**32, 2**32],
    "a product that wraps to 16": [2**60 + 1, 16],
    "empty with a huge axis": [0, 2**62],
    "33 axes": [1] * 33,
    "10,000 axes": [1] * 10_000,
}


def shapes() -> Messages:
    for name, shape in SHAPES.items():
        yield f"shape: {name}", Message(_shaped(shape))


def _shaped(shape: list[int]) -> bytes:
    request = good()
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    written: bytes = request.SerializeToString()
    return written


DATATYPES = ("", "FP31", "fp32", " FP32", "FP32\0", "TYPE_FP32", "STRING", "x" * 10_000)
OTHERS: Mapping[str, int] = {
    **{"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8},
    **{"FP16": 2, "FP64": 8, "BF16": 2, "BYTES": 4},
}


def datatypes() -> Messages:
    for datatype in DATATYPES:
        yield f"datatype: {datatype[:20]!r}", Message(input_member("datatype", datatype), text="datatype")
    for datatype, size in OTHERS.items():
        request = good()
        request.inputs[0].datatype = datatype
        request.raw_input_contents[0] = bytes(16 * size)
        yield f"another datatype: {datatype}", Message(request.SerializeToString(), text=f"data-type is '{datatype}'")


SIZES = (0, 1, 3, 60, 63, 65, 68, 128, 100_000)
STRINGS = {"past the end": b"\xff\0\0\0a", "2^32 - 1": b"\xff\xff\xff\xff", "cut": b"\1\0\0", "too many": bytes(8), "a rest": bytes(5)}


def raw_contents() -> Messages:
    for size in SIZES:
        yield f"{size} raw bytes for 64", Message(_raw(bytes(size)), text="'x'")
    yield "no raw contents", Message(changed(lambda r: r.ClearField("raw_input_contents")), text="'x'")
    for extra in (1, 2, 1000):
        yield f"{extra} raw contents too many", Message(_raw(bytes(64), *[b""] * extra), text="raw_input_contents")
    yield "raw contents without inputs", Message(changed(lambda r: r.ClearField("inputs")))
    yield "no inputs at all", Message(changed(lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents"))), text="0 inputs")
    yield (
        "two inputs, one raw",
        Message(changed(lambda r: r.inputs.add(name="z", datatype="FP32", shape=[1, 16])), text="raw_input_contents"),
    )
    yield "the input twice", Message(changed(_twice), text="input 'x' already exists in request")
    for name, blob in STRINGS.items():
        request = service_pb2.ModelInferRequest(model_name="echo_BYTES", raw_input_contents=[blob])
        request.inputs.add(name="x", datatype="BYTES", shape=[1, 1])
        yield f"BYTES whose length is {name}", Message(request.SerializeToString())


def _raw(*contents: bytes) -> bytes:
    request = good()
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(contents)
    written: bytes = request.SerializeToString()
    return written


def _twice(request: Any) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(bytes(64))


LISTS: Mapping[str, Any] = {
    **{"bool_contents": [True], "int_contents": [1], "int64_contents": [1], "uint_contents": [1], "uint64_contents": [1]},
    **{"fp32_contents": [1.0], "fp64_contents": [1.0], "bytes_contents": [b"1"]},
}
TAKES: Mapping[str, str] = {
    **{"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents"},
    **{"UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents"},
    **{"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents", "FP16": "", "BF16": ""},
}
BEYOND: Mapping[str, tuple[int, ...]] = {"INT8": (128, -129), "INT16": (2**15, -(2**15) - 1), "UINT8": (256,), "UINT16": (2**16,)}


def typed(datatype: str, **contents: Any) -> bytes:
    """A request to echo_DATATYPE with typed contents for one value."""
    request = service_pb2.ModelInferRequest(model_name=f"echo_{datatype}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 1])
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    written: bytes = request.SerializeToString()
    return written


def typed_contents() -> Messages:
    for datatype, takes in TAKES.items():
        for name, values in LISTS.items():
            if name != takes:
                yield f"{datatype} in {name}", Message(typed(datatype, **{name: values}), text="x")
            elif datatype != "BYTES":
                yield f"{datatype} in {name} and bytes_contents", Message(typed(datatype, **{name: values}, bytes_contents=[b"1"]))
        if takes:
            yield f"two values of {datatype} for one", Message(typed(datatype, **{takes: LISTS[takes] * 2}), text="'x'")
        yield f"no value of {datatype}", Message(typed(datatype), text="'x'")
    for datatype, numbers in BEYOND.items():
        for number in numbers:
            yield f"{datatype} {number}", Message(typed(datatype, **{TAKES[datatype]: [number]}), text="'x'")
    both = service_pb2.ModelInferRequest.FromString(typed("FP32", fp32_contents=[1.0]))
    both.raw_input_contents.append(bytes(4))
    yield "raw and typed", Message(both.SerializeToString(), text="contents field must not be specified when using raw_input_contents")


PARAMETERS: Mapping[str, tuple[Any, ...]] = {
    "timeout": ("soon", -1, 1.5, True),
    "priority": ("high", -1, 99, 1.5, True),
    "explain": ("yes", 5, 1.5),
    "triton_x": (1,),
    "triton_final_response": (True,),
    "note": (float("nan"), float("inf")),
}
KINDS: Mapping[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def _with_parameter(name: str, value: Any) -> bytes:
    return changed(lambda r: setattr(r.parameters[name], KINDS[type(value)], value))


def fields() -> Messages:
    """Members with a wrong value."""
    for name, values in PARAMETERS.items():
        for value in values:
            yield f"parameter {name}: {value!r}", Message(_with_parameter(name, value), text=name)
    yield "a parameter without value", Message(changed(lambda r: r.parameters["p"]), text="'p'")
    for model in ("", "nobody", "../m", "..", "m/1", "m\0", "M", " m", "ü" * 100):
        yield f"model {model[:20]!r}", Message(member("model_name", model), ("NOT_FOUND", *INVALID))
    for version in ("x", "-1", "0", "01", "1.0", "../1", "9" * 200, "latest", " "):
        yield f"version {version[:20]!r}", Message(member("model_version", version), ("NOT_FOUND", *INVALID))
    for field, length in (("model_name", 257), ("model_version", 257), ("id", 1025), ("model_name", 1_000_000), ("id", 1_000_000)):
        yield f"{field} of {length}", Message(member(field, "n" * length), (*INVALID, "RESOURCE_EXHAUSTED"))
    for name in ("", "z", "X", "x\0", "n" * 257):
        yield f"input {name[:20]!r}", Message(input_member("name", name))
        yield f"output {name[:20]!r}", Message(member_output(name), text="output")
    yield (
        "the output twice",
        Message(changed(lambda r: (r.outputs.add(name="y"), r.outputs.add(name="y"))), text="output 'y' already exists"),
    )


def member_output(name: str) -> bytes:
    """The good request, which asks for one output."""
    return changed(lambda r: r.outputs.add(name=name))


WIRE: Mapping[str, bytes] = {
    "a NUL": b"\0",
    "field 0": b"\x02\0",
    "wire type 6": WHOLE + b"\x0e",
    "wire type 7": WHOLE + b"\x0f",
    "a group": WHOLE + b"\x9b\x06\x08\x01",
    "a group's end": WHOLE + b"\x9c\x06",
    "an endless varint": WHOLE + b"\x98\x06" + b"\xff" * 20,
    "a length that never ends": WHOLE + b"\x1a" + b"\xff" * 12,
    "a length past the end": WHOLE + b"\x1a\x7f",
    "a length of 2^31": WHOLE + b"\x1a\x80\x80\x80\x80\x08",
    "a length of 2^63": WHOLE + b"\x1a" + b"\x80" * 9 + b"\x01",
    "a name of no UTF-8": b"\x0a\x02\xff\xfe" + WHOLE,
    "an id of no UTF-8": WHOLE + b"\x1a\x02\xc0\xaf",
    "a surrogate in UTF-8": WHOLE + b"\x1a\x03\xed\xa0\x80",
    "a fixed 64 cut short": WHOLE + b"\x99\x06\1\2\3",
    "a shape cut short": b"\x0a\x01m\x2a\x03\x1a\x01\xff",
    "JSON": b'{"inputs": []}',
    "noise": bytes(range(256)),
    "100,000 empty raw contents": b"\x0a\x01m" + b"\x3a\0" * 100_000,
    "100,000 empty inputs": b"\x0a\x01m" + b"\x2a\0" * 100_000,
    "100,000 parameters": b"\x0a\x01m" + b"\x22\0" * 100_000,
}
CUTS = range(1, len(WHOLE), 3)


def wire() -> Messages:
    """What is no protobuf, or not a request."""
    for name, body in WIRE.items():
        yield f"bytes: {name}", Message(body)
    for cut in CUTS:
        yield f"the first {cut} bytes", Message(WHOLE[:cut], (*INVALID, "NOT_FOUND"))


COLD = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "RepositoryIndex", "/grpc.health.v1.Health/Check")
BROKEN: Mapping[str, bytes] = {"half a text": b"\x0a\x05m", "no UTF-8": b"\x0a\x01\xff", "an endless varint": b"\x98\x06" + b"\x80" * 20}
NO_TEXT = frozenset(("ServerLive", "ServerReady", "ServerMetadata"))
"""Requests without a text, whose field 1 is unknown."""


CONTROL = (
    *("ModelConfig", "ModelStatistics", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
    *(f"{kind}SharedMemory{act}" for kind in ("System", "Cuda") for act in ("Status", "Register", "Unregister")),
)
LOADS: Mapping[str, tuple[str, str, Any]] = {
    "a config that is a number": ("config", "int64_param", 5),
    "a config that is no JSON": ("config", "string_param", "{"),
    "a config that is a list": ("config", "string_param", "[]"),
    "a config with an unknown member": ("config", "string_param", '{"max_batch":1}'),
    "a file that is no model": ("file:1/model.onnx", "bytes_param", b"none"),
    "a file that is a number": ("file:1/model.onnx", "int64_param", 5),
    "a file above its folder": ("file:../m/1/model.onnx", "bytes_param", b"none"),
    "a file from the root": ("file:/etc/passwd", "bytes_param", b"none"),
    "a file without a name": ("file:", "bytes_param", b"none"),
}


def cold() -> Messages:
    """Other methods with what isn't their request, or names nothing."""
    for method in COLD:
        for name, body in BROKEN.items():
            if name != "no UTF-8" or method not in NO_TEXT:
                yield f"{method}: {name}", Message(body, method=method)
    for name in ("", "nobody", "../m", "m\0"):
        body = service_pb2.ModelMetadataRequest(name=name).SerializeToString()
        yield f"ModelMetadata of {name!r}", Message(body, ("NOT_FOUND", *INVALID), method="ModelMetadata")
    for method in CONTROL:
        for name, body in BROKEN.items():
            yield f"{method}: {name}", Message(body, (*INVALID, "UNIMPLEMENTED"), method=method)
    for model in ("", "nobody", "..", "../m", "m\0", "/etc", "n" * 300):
        for method, kind in (
            ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest),
            ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest),
        ):
            yield f"{method} {model[:20]!r}", Message(kind(model_name=model).SerializeToString(), ("NOT_FOUND", *INVALID), method=method)
    for name, (key, member, value) in LOADS.items():
        load = service_pb2.RepositoryModelLoadRequest(model_name="uploaded")
        load.parameters["config"].string_param = "{}"
        setattr(load.parameters[key], member, value)
        yield f"load with {name}", Message(load.SerializeToString(), method="RepositoryModelLoad")
    other = service_pb2.RepositoryModelLoadRequest(repository_name="r", model_name="m").SerializeToString()
    yield "load from another repository", Message(other, ("UNIMPLEMENTED",), method="RepositoryModelLoad")
    for method in ("NoSuch", "modelInfer", "ModelInfer/"):
        yield f"method {method}", Message(WHOLE, ("UNIMPLEMENTED",), method=method)


def all_messages() -> dict[str, Message]:
    """Every case of this module."""
    found: dict[str, Message] = {}
    for messages in (shapes(), datatypes(), raw_contents(), typed_contents(), fields(), wire(), cold()):
        for name, message in messages:
            assert name not in found, name
            found[name] = message
    return found
