"""A plain gRPC client for tests: bytes in, bytes or an error out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from server.tensors import Tensor, dtype_of
from tests.server.protocol.wire import raw

SERVICE = "/inference.GRPCInferenceService/"
TIMEOUT = 30.0
Metadata = tuple[tuple[str, str], ...]


class Client:
    """One channel with a connection of its own."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def call(self, method: str, body: bytes = b"", metadata: Metadata = ()) -> bytes:
        """A unary call. Raises grpc.RpcError."""
        path = method if method.startswith("/") else SERVICE + method
        answer: bytes = self.channel.unary_unary(path)(body, timeout=TIMEOUT, metadata=metadata)
        return answer

    def infer(self, body: bytes) -> Any:
        return service_pb2.ModelInferResponse.FromString(self.call("ModelInfer", body))

    def stream(self, bodies: Iterable[bytes]) -> list[Any]:
        """All answers of a ModelStreamInfer."""
        call = self.channel.stream_stream(f"{SERVICE}ModelStreamInfer")(iter(bodies), timeout=TIMEOUT)
        return [service_pb2.ModelStreamInferResponse.FromString(answer) for answer in call]

    def refused(self, method: str, body: bytes, metadata: Metadata = ()) -> tuple[str, str]:
        """The code and text of a call that must fail."""
        try:
            self.call(method, body, metadata)
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code().name, failed.details()
        raise AssertionError(f"{method} answered")


@contextmanager
def connected(address: str, *options: tuple[str, Any]) -> Iterator[Client]:
    """A client for the block."""
    every = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *options]
    channel = grpc.insecure_channel(address, options=every)
    try:
        yield Client(channel)
    finally:
        channel.close()


def request(model: str, inputs: dict[str, Tensor], **fields: Any) -> bytes:
    """A ModelInferRequest with raw tensors."""
    message = service_pb2.ModelInferRequest(model_name=model, **fields)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=dtype_of(array).name, shape=array.shape)
        message.raw_input_contents.append(raw(array))
    written: bytes = message.SerializeToString()
    return written


def tensors(answer: Any) -> dict[str, Tensor]:
    """The FP32 outputs of an answer."""
    return {
        output.name: np.frombuffer(values, np.float32).reshape(tuple(output.shape))
        for output, values in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
