"""A client with shared memory, in a process of its own, as stock clients are used:
`python -m tests.server.edges.region_client http|grpc ADDRESS [binary]`. Fails with a traceback where an answer isn't what it should be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from server.tensors import Tensor

LARGE = 400_000
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = A + 100


@contextmanager
def region(client: Any, name: str, size: int, offset: int = 0) -> Iterator[Any]:
    """A region that is registered for the block, from `offset` on."""
    handle = shm.create_shared_memory_region(name, f"/tidegate_test_{name}", size + offset)
    try:
        client.register_system_shared_memory(name, f"/tidegate_test_{name}", size, offset=offset)
        yield handle
        client.unregister_system_shared_memory(name)
    finally:
        shm.destroy_shared_memory_region(handle)


def shared(stock: Any, name: str, array: Tensor, where: str, offset: int = 0, datatype: str = "FP32") -> Any:
    size = array.nbytes if array.dtype != object else len(serialize_byte_tensor(array).item())
    tensor = stock.InferInput(name, list(array.shape), datatype)
    tensor.set_shared_memory(where, size, offset)
    return tensor


def placed(stock: Any, name: str, where: str, size: int, offset: int = 0) -> Any:
    output = stock.InferRequestedOutput(name)
    output.set_shared_memory(where, size, offset)
    return output


def given(stock: Any, name: str, array: Tensor, *, binary: bool) -> Any:
    tensor = stock.InferInput(name, list(array.shape), "FP32")
    return tensor.set_data_from_numpy(array) if stock is stock_grpc else tensor.set_data_from_numpy(array, binary_data=binary)


def read(handle: Any, shape: list[int], offset: int = 0, kind: Any = np.float32) -> Any:
    return np.array(shm.get_contents_as_numpy(handle, kind, shape, offset))


def inputs_and_outputs(client: Any, stock: Any, binary: bool) -> None:
    with region(client, "in", 64, offset=16) as one, region(client, "out", 128) as two:
        shm.set_shared_memory_region(one, [A, B], offset=16)
        inputs = [shared(stock, "a", A, "in"), shared(stock, "b", B, "in", 32)]
        for number in range(3):  # heads that come again are known
            outputs = [placed(stock, "product", "out", 64, 32), stock.InferRequestedOutput("total")]
            result = client.infer("sums", inputs, outputs=outputs, request_id=f"id {number}")
            np.testing.assert_array_equal(result.as_numpy("total"), A + B)
            np.testing.assert_array_equal(read(two, [2, 4], 32), A * B)
            described = result.get_output("product")
            if stock is stock_http:
                assert described == {"name": "product", "datatype": "FP32", "shape": [2, 4]}
                assert result.get_response()["id"] == f"id {number}"
            else:
                assert (described.name, described.datatype, list(described.shape), len(described.parameters)) == (
                    "product",
                    "FP32",
                    [2, 4],
                    0,
                )
                assert result.get_response().id == f"id {number}"
            shm.set_shared_memory_region(two, [np.zeros((4, 4), np.float32)])
        both = [placed(stock, "total", "out", 32), placed(stock, "product", "out", 32, 32)]
        client.infer("sums", [given(stock, "b", B, binary=binary), shared(stock, "a", A, "in")], outputs=both)
        np.testing.assert_array_equal(read(two, [2, 4]), A + B)
        np.testing.assert_array_equal(read(two, [2, 4], 32), A * B)


def strings(client: Any, stock: Any, binary: bool) -> None:
    words = np.array([[b"one", "ünï".encode()]], object)
    raw = serialize_byte_tensor(words)
    with region(client, "in", len(raw.item())) as one, region(client, "out", 100) as two:
        shm.set_shared_memory_region(one, [raw])
        outputs = [placed(stock, "y", "out", 100)]
        client.infer("text", [shared(stock, "x", words, "in", datatype="BYTES")], outputs=outputs)
        assert read(two, [1, 2], kind=np.object_).tolist() == words.tolist()


def large(client: Any, stock: Any, binary: bool) -> None:
    rows = np.random.default_rng(0).standard_normal((1, LARGE), np.float32)
    with region(client, "in", rows.nbytes) as one, region(client, "out", rows.nbytes) as two:
        shm.set_shared_memory_region(one, [rows])
        for _ in range(3):
            client.infer("wide", [shared(stock, "x", rows, "in")], outputs=[placed(stock, "y", "out", rows.nbytes)])
            np.testing.assert_array_equal(read(two, [1, LARGE]), rows)
        whole = client.infer("wide", [shared(stock, "x", rows, "in")])
        np.testing.assert_array_equal(whole.as_numpy("y"), rows)


def status(client: Any, stock: Any, binary: bool) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    with region(client, "one", 64, offset=8):
        found = client.get_system_shared_memory_status()
        if stock is stock_http:
            assert found == [{"name": "one", "key": "/tidegate_test_one", "offset": 8, "byte_size": 64}]
            assert client.get_cuda_shared_memory_status() == []
        else:
            (only,) = found.regions.values()
            assert (only.name, only.key, only.offset, only.byte_size) == ("one", "/tidegate_test_one", 8, 64)
            assert not client.get_cuda_shared_memory_status().regions
        refused(lambda: client.register_system_shared_memory("one", "/tidegate_test_one", 64), "already in manager")
        refused(lambda: client.register_cuda_shared_memory("c", b"", 0, 8), "CUDA shared memory is unsupported here")
    refused(lambda: client.get_system_shared_memory_status("one"), "Unable to find shared memory region: 'one'")
    refused(lambda: client.register_system_shared_memory("x", "/tidegate_test_none", 64), "Unable to open shared memory region")


def errors(client: Any, stock: Any, binary: bool) -> None:
    with region(client, "in", 32) as one, region(client, "small", 16):
        shm.set_shared_memory_region(one, [A])
        for inputs, outputs, text in (
            ([shared(stock, "x", A, "nobody")], None, "Unable to find shared memory region: 'nobody'"),
            ([shared(stock, "x", A, "in", 8)], None, "Invalid offset + byte size for shared memory region: 'in'"),
            ([shared(stock, "x", A[:1].astype(np.float64), "in")], None, "input byte size mismatch for input 'x' for model 'wide'"),
            ([shared(stock, "z", A, "in")], None, "unexpected inference input 'z'"),
            (
                [shared(stock, "x", A, "in")],
                [placed(stock, "y", "small", 16)],
                "shared memory size specified with the request for output 'y' (16 bytes) should be at least 32 bytes to hold the results",
            ),
            ([shared(stock, "x", A, "in")], [placed(stock, "y", "small", 32)], "Invalid offset + byte size"),
            ([shared(stock, "x", A, "in")], [placed(stock, "y", "nobody", 32)], "Unable to find shared memory region: 'nobody'"),
        ):
            refused(partial(client.infer, "wide", inputs, outputs=outputs), text)
            np.testing.assert_array_equal(client.infer("wide", [shared(stock, "x", A, "in")]).as_numpy("y"), A)


def refused(act: Callable[[], Any], text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        act()
    assert text in caught.value.message(), caught.value.message()


def main(transport: str, address: str, binary: str = "") -> None:
    """Everything, in a row."""
    stock: Any = stock_http if transport == "http" else stock_grpc
    with stock.InferenceServerClient(address) as client:
        for case in (status, inputs_and_outputs, strings, large, errors):
            case(client, stock, bool(binary))


if __name__ == "__main__":
    main(*sys.argv[1:])
