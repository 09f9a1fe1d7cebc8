"""The stock clients behind one face, so that a case is written once and holds over every way to send a request.

Each transport notes what it called and was answered: (verb, path) over HTTP, ("GRPC", method) over gRPC.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import grpc
import numpy as np
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.tensors import Tensor, dtype_of
from tests.server.protocol.wire import raw

PATIENCE = 30.0
STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "413": "RESOURCE_EXHAUSTED", "501": "UNIMPLEMENTED", "503": "UNAVAILABLE"}
"""HTTP's statuses in gRPC's words, in which the cases are written."""

Call = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `outputs` empty: all of them. `claimed` is a datatype that isn't the array's, `shape` one that isn't either."""

    model: str
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str] = ()
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: Sequence[int] = ()
    class_count: int = 0


@dataclass(frozen=True, slots=True)
class Got:
    """One answer; `outputs` in the order in which they came."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Any]


class Refused(Exception):
    """The server said no: `code` in gRPC's words, "" where the transport has none (a stream's errors)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Transport(Protocol):
    """One stock client. `client` is the client itself, for what both have under the same names."""

    name: ClassVar[str]
    calls: set[Call]
    client: Any

    def infer(self, ask: Ask) -> Got: ...

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the stock client, its answer as plain values. Raises Refused."""
        ...


@contextmanager
def refusals() -> Iterator[None]:
    """The stock client's exception as ours."""
    try:
        yield
    except InferenceServerException as error:
        status = str(error.status() or "").removeprefix("StatusCode.")
        raise Refused(STATUSES.get(status, status), error.message()) from error


class NotingHttp(stock_http.InferenceServerClient):  # type: ignore[misc]
    """The stock client, which notes what was answered with 200."""

    def __init__(self, address: str, calls: set[Call]) -> None:
        super().__init__(address, concurrency=16)
        self._calls = calls

    def _get(self, request_uri: str, *rest: Any, **named: Any) -> Any:
        return self._note("GET", request_uri, super()._get(request_uri, *rest, **named))

    def _post(self, request_uri: str, *rest: Any, **named: Any) -> Any:
        return self._note("POST", request_uri, super()._post(request_uri, *rest, **named))

    def _note(self, verb: str, uri: str, response: Any) -> Any:
        if response.status_code == 200:
            self._calls.add((verb, "/" + uri.lstrip("/").partition("?")[0]))
        return response


class Http:
    """HTTP; `binary` says how tensors travel, both ways."""

    name: ClassVar[str] = "http binary"
    binary: ClassVar[bool] = True

    def __init__(self, address: str) -> None:
        self.address = address
        self.calls: set[Call] = set()
        self.client: Any = NotingHttp(address, self.calls)

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        with refusals():
            return getattr(self.client, method)(*arguments, **options)

    def infer(self, ask: Ask) -> Got:
        outputs = [self.output(name, ask) for name in ask.outputs] or None
        with refusals():
            result = self.client.infer(
                ask.model,
                [self.input(name, array, ask) for name, array in ask.inputs.items()],
                model_version=ask.version,
                outputs=outputs,
                request_id=ask.id,
                parameters=dict(ask.parameters) or None,
                **ask.options,
            )
        head = result.get_response()
        arrays = {output["name"]: self.read(result, output) for output in head["outputs"]}
        return Got(head["model_name"], head["model_version"], head.get("id", ""), arrays, head.get("parameters", {}))

    def input(self, name: str, array: Tensor, ask: Ask) -> Any:
        """One input of a request."""
        datatype = dtype_of(array).name
        tensor = stock_http.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=self.binary or datatype == "BF16")  # the stock client has BF16 in binary alone
        return tensor.set_shape(list(ask.shape)) if ask.shape else tensor

    def output(self, name: str, ask: Ask) -> Any:
        """One wanted output."""
        return stock_http.InferRequestedOutput(name, binary_data=self.binary, class_count=ask.class_count)

    def read(self, result: Any, output: Mapping[str, Any]) -> Tensor:
        """One output's values; BYTES are bytes, which the client leaves as text where they came in JSON."""
        values: Tensor = result.as_numpy(output["name"])
        if output["datatype"] != "BYTES":
            return values
        flat = [value.encode() if isinstance(value, str) else value for value in values.reshape(-1).tolist()]
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(values.shape)


class HttpJson(Http):
    """HTTP with everything in JSON."""

    name: ClassVar[str] = "http json"
    binary: ClassVar[bool] = False


class HttpCompressed(Http):
    """HTTP in binary, compressed both ways."""

    name: ClassVar[str] = "http compressed"

    def infer(self, ask: Ask) -> Got:
        codecs = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
        return super().infer(replace(ask, options={**codecs, **ask.options}))


class Noting(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Notes what was answered with OK; a stream, when it's opened."""

    def __init__(self, calls: set[Call]) -> None:
        self._calls = calls

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        call = continuation(details, request)
        if call.code() is grpc.StatusCode.OK:
            self._calls.add(("GRPC", details.method.rpartition("/")[2]))
        return call

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        self._calls.add(("GRPC", details.method.rpartition("/")[2]))
        return continuation(details, requests)


class Grpc:
    """gRPC with raw tensors, as the stock client sends them."""

    name: ClassVar[str] = "grpc raw"

    def __init__(self, address: str) -> None:
        self.calls: set[Call] = set()
        self.client: Any = stock_grpc.InferenceServerClient(address)
        self.client._client_stub = service_pb2_grpc.GRPCInferenceServiceStub(
            grpc.intercept_channel(self.client._channel, Noting(self.calls))
        )

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        with refusals():
            answer = getattr(self.client, method)(*arguments, **options)
        return plain(answer)

    def infer(self, ask: Ask) -> Got:
        with refusals():
            return got(self.send(ask))

    def send(self, ask: Ask) -> Any:
        """The stock client's result."""
        return self.client.infer(
            ask.model, inputs(ask), ask.version, outputs(ask), ask.id, parameters=dict(ask.parameters) or None, **ask.options
        )


class GrpcTyped(Grpc):
    """gRPC with typed contents, for which the stock client has messages; FP16 and BF16 have none and stay raw."""

    name: ClassVar[str] = "grpc typed"

    def send(self, ask: Ask) -> Any:
        try:
            return stock_grpc.InferResult(self.client._client_stub.ModelInfer(typed(ask), timeout=PATIENCE))
        except grpc.RpcError as error:
            failed: Any = error
            raise InferenceServerException(failed.details(), str(failed.code())) from None


class GrpcStream(Grpc):
    """gRPC by a stream that stays open; errors come in it, without a code."""

    name: ClassVar[str] = "grpc stream"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
        self.client.start_stream(lambda result, error: self._answers.put((result, error)))

    def send(self, ask: Ask) -> Any:
        self.client.async_stream_infer(
            ask.model, inputs(ask), ask.version, outputs(ask), ask.id, parameters=dict(ask.parameters) or None, **ask.options
        )
        result, error = self._answers.get(timeout=PATIENCE)
        if error is not None:
            raise error
        return result


def inputs(ask: Ask) -> list[Any]:
    """The inputs of a request, raw."""
    made = []
    for name, array in ask.inputs.items():
        tensor = stock_grpc.InferInput(name, list(array.shape), dtype_of(array).name).set_data_from_numpy(array)
        made.append(tensor.set_shape(list(ask.shape)) if ask.shape else tensor)
    return made


def outputs(ask: Ask) -> list[Any] | None:
    """The wanted outputs of a request."""
    return [stock_grpc.InferRequestedOutput(name, class_count=ask.class_count) for name in ask.outputs] or None


LISTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
KINDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def typed(ask: Ask) -> Any:
    """A request's message, with typed contents where every input has a list for them."""
    message = service_pb2.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.id)
    in_lists = all(dtype_of(array).name in LISTS for array in ask.inputs.values())
    for name, array in ask.inputs.items():
        tensor = message.inputs.add(name=name, datatype=dtype_of(array).name, shape=ask.shape or array.shape)
        if in_lists:
            getattr(tensor.contents, LISTS[tensor.datatype]).extend(array.reshape(-1).tolist())
        else:
            message.raw_input_contents.append(raw(array))
    for name in ask.outputs:
        output = message.outputs.add(name=name)
        if ask.class_count:
            output.parameters["classification"].int64_param = ask.class_count
    for name, value in {**ask.parameters, **ask.options}.items():
        setattr(message.parameters[name], KINDS[type(value)], value)
    return message


def got(result: Any) -> Got:
    """A gRPC answer."""
    response = result.get_response()
    arrays = {output.name: result.as_numpy(output.name) for output in response.outputs}
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()}
    return Got(response.model_name, response.model_version, response.id, arrays, parameters)


def plain(answer: Any) -> Any:
    """A message as the values that HTTP's twin answers: lists and dicts with int64 as numbers, nothing left out."""
    if not hasattr(answer, "DESCRIPTOR"):
        return answer
    return {one.name: _field(one, getattr(answer, one.name)) for one in answer.DESCRIPTOR.fields}


def _field(one: Any, value: Any) -> Any:
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bytes | bool | int | float):
        return one.enum_type.values_by_number[value].name if one.enum_type is not None else value
    return plain(value) if hasattr(value, "DESCRIPTOR") else [plain(entry) for entry in value]
