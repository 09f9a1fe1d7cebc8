import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from server.backends.base import Backend, VariantSpec
from server.backends.ort.backend import BIND_FROM, OnnxRuntimeBackend
from server.errors import BackendFailure, InvalidRequest, ModelDefect
from server.tensors import DTYPES, Tensor, TensorSpec
from tests.server import models

Open = Callable[..., Backend]


def spec(path: Path, **changes: Any) -> VariantSpec:
    return VariantSpec(
        **{"model": "m", "version": "1", "precision": "fp32", "backend": "onnxruntime", "path": path, "threads": 1, **changes}
    )


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a file as a backend and closes it after the test."""
    backends: list[Backend] = []

    def open_backend(path: Path, **changes: Any) -> Backend:
        backends.append(OnnxRuntimeBackend.open(spec(path, **changes)))
        return backends[-1]

    yield open_backend
    for backend in backends:
        backend.close()


def sample(datatype: str, shape: tuple[int, ...]) -> Tensor:
    """Values of a datatype, distinct where it has so many."""
    numbers: Tensor = np.arange(math.prod(shape)).reshape(shape) % 1000
    if datatype == "BYTES":
        texts = np.empty(shape, object)
        texts.ravel()[:] = [f"é{number}\0".encode() for number in numbers.ravel()]
        return texts
    if datatype == "BOOL":
        numbers = numbers % 2
    return numbers.astype(DTYPES[datatype].numpy)


def defect(path: Path, **changes: Any) -> str:
    with pytest.raises(ModelDefect) as caught:
        OnnxRuntimeBackend.open(spec(path, **changes))
    return str(caught.value)


def invalid(backend: Backend, inputs: dict[str, Tensor]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        backend.run(inputs, 2)
    return str(caught.value)


# What the file takes and gives


def test_specs_are_read_from_the_file(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.two_inputs_model(tmp_path / "m.onnx"))
    assert backend.inputs == (TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 4)))
    assert backend.outputs == (TensorSpec("total", "FP32", (-1, 4)), TensorSpec("product", "FP32", (-1, 4)))


def test_version_names_the_runtime() -> None:
    assert OnnxRuntimeBackend.version.startswith("onnxruntime 1.")


def test_no_rows_where_one_first_axis_is_fixed(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.sum_rows_model(tmp_path / "m.onnx"))
    assert [tensor.batch_axis for tensor in (*backend.inputs, *backend.outputs)] == [None, None]


def test_a_declared_output_leaves_the_others_their_rows(tmp_path: Path, opened: Open) -> None:
    whole = TensorSpec("y", "FP32", (1, 4), batch_axis=None)
    backend = opened(models.sum_rows_model(tmp_path / "m.onnx"), outputs=(whole,))
    assert backend.inputs[0].batch_axis == 0
    assert backend.outputs == (whole,)


def test_declared_specs_win(tmp_path: Path, opened: Open) -> None:
    given = TensorSpec("x", "FP32", (-1, 8), max_shape=(64, 8))
    backend = opened(models.linear_model(tmp_path / "m.onnx"), inputs=(given,))
    assert backend.inputs == (given,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TensorSpec("z", "FP32", (-1, 8)), "no input named 'z', which is declared; the file has 'x'"),
        (TensorSpec("x", "FP64", (-1, 8)), "input 'x' is declared FP64 [-1, 8], but the file has FP32 [-1, 8]"),
        (TensorSpec("x", "FP32", (-1, 9)), "input 'x' is declared FP32 [-1, 9], but the file has FP32 [-1, 8]"),
        (TensorSpec("x", "FP32", (-1,)), "input 'x' is declared FP32 [-1], but the file has FP32 [-1, 8]"),
        (TensorSpec("x", "FP32", (-1, -1)), "input 'x' is declared FP32 [-1, -1], but the file has FP32 [-1, 8]"),
    ],
)
def test_declared_specs_must_fit_the_file(tmp_path: Path, given: TensorSpec, message: str) -> None:
    assert message in defect(models.linear_model(tmp_path / "m.onnx"), inputs=(given,))


def test_values_without_a_datatype_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", 1, None)
    path = models.write_model(tmp_path / "m.onnx", [node], [models.value("x", ["N"])], [sequence])
    assert "output 'y' is seq(tensor(float)), which the protocol has no datatype for" in defect(path)


# Files and devices that can't be served


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", bytes(1000)])
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert f"{path}: onnxruntime can't open it: " in defect(path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = models.linear_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path}: onnxruntime can't open it: " in defect(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert defect(tmp_path / "m.onnx") == f"{tmp_path / 'm.onnx'}: no such file"


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    assert "unknown device 'gpu'; expected cpu or cuda:N" in defect(models.linear_model(tmp_path / "m.onnx"), device="gpu")


def test_a_gpu_that_cannot_run_is_never_the_cpu(tmp_path: Path) -> None:
    assert "CUDAExecutionProvider" in defect(models.linear_model(tmp_path / "m.onnx"), device="cuda:99")


# Running


@pytest.mark.parametrize("level", [0, 1, 2, 4])
def test_every_optimization_level_answers_the_same(tmp_path: Path, opened: Open, level: int) -> None:
    backend = opened(models.linear_model(tmp_path / "m.onnx"), optimization_level=level)
    weight, bias = models.linear_weights()
    x = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    np.testing.assert_allclose(backend.run({"x": x}, 3)["y"], x @ weight + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_goes_through(tmp_path: Path, opened: Open, datatype: str) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", datatype, width=5))
    x = sample(datatype, (3, 5))
    y = backend.run({"x": x}, 3)["y"]
    assert y.dtype == DTYPES[datatype].numpy
    assert y.tolist() == x.tolist()


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_of_no_rows(tmp_path: Path, opened: Open, datatype: str) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", datatype, width=5))
    assert backend.run({"x": sample(datatype, (0, 5))}, 0)["y"].shape == (0, 5)


WIDTHS = pytest.mark.parametrize("width", [5, BIND_FROM // 4], ids=["copied", "bound"])


@WIDTHS
@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "FP16", "FP32", "BOOL"])
def test_answers_are_written_into_given_arrays(tmp_path: Path, opened: Open, datatype: str, width: int) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", datatype, "W"))
    x, out = sample(datatype, (3, width)), np.zeros((3, width), DTYPES[datatype].numpy)
    answer = backend.run({"x": x}, 3, {"y": out})
    assert answer["y"] is out
    assert np.array_equal(out, x)


@WIDTHS
def test_only_some_arrays_given(tmp_path: Path, opened: Open, width: int) -> None:
    backend = opened(models.two_inputs_model(tmp_path / "m.onnx", width))
    a, b = np.full((2, width), 3, np.float32), np.full((2, width), 5, np.float32)
    out = np.zeros((2, width), np.float32)
    answer = backend.run({"a": a, "b": b}, 2, {"product": out})
    assert list(answer) == ["total", "product"]
    assert answer["product"] is out
    assert np.array_equal(answer["total"], a + b)
    assert np.array_equal(out, a * b)


@WIDTHS
def test_given_arrays_may_be_strided(tmp_path: Path, opened: Open, width: int) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", width=width))
    whole = np.zeros((3, 2 * width), np.float32)
    backend.run({"x": sample("FP32", (3, width))}, 3, {"y": whole[:, ::2]})
    assert np.array_equal(whole[:, ::2], sample("FP32", (3, width)))
    assert not whole[:, 1::2].any()


@WIDTHS
@pytest.mark.parametrize("wrong", [(2, 0), (4, 0), (3, -1), (3, 0, 1), "FP64"])
def test_given_arrays_that_do_not_fit_fail(tmp_path: Path, opened: Open, width: int, wrong: Any) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", width=width))
    if wrong == "FP64":
        out = np.zeros((3, width), np.float64)
    else:
        out = np.zeros((wrong[0], width + wrong[1], *wrong[2:]), np.float32)
    with pytest.raises(BackendFailure):
        backend.run({"x": sample("FP32", (3, width))}, 3, {"y": out})
    assert backend.run({"x": sample("FP32", (3, width))}, 3)["y"].shape == (3, width)


@WIDTHS
def test_a_given_array_of_an_unknown_name_fails(tmp_path: Path, opened: Open, width: int) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", width=width))
    with pytest.raises(BackendFailure, match="output 'z'"):
        backend.run({"x": sample("FP32", (3, width))}, 3, {"z": np.zeros((3, width), np.float32)})


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "FP16", "BF16"])
def test_inputs_as_bodies_have_them(tmp_path: Path, opened: Open, datatype: str) -> None:
    """Unaligned and read-only, of the other byte order, strided, transposed."""
    backend = opened(models.identity_model(tmp_path / "m.onnx", datatype, width=5))
    x = sample(datatype, (3, 5))
    unaligned = np.frombuffer(b"\0" + x.tobytes(), x.dtype, 15, 1).reshape(3, 5)
    inputs = [unaligned, np.repeat(x, 2, axis=1)[:, ::2], np.asfortranarray(x)]
    if datatype != "BF16":
        inputs.append(x.astype(x.dtype.newbyteorder()))
    for array in inputs:
        before = array.tobytes()
        assert backend.run({"x": array}, 3)["y"].tolist() == x.tolist()
        assert backend.run({"x": array}, 3, {"y": np.zeros_like(x)})["y"].tolist() == x.tolist()
        assert array.tobytes() == before


def test_inputs_may_be_any_mapping(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", width=5))
    x = sample("FP32", (3, 5))
    assert backend.run(MappingProxyType({"x": x}), 3)["y"].tolist() == x.tolist()


def test_answers_belong_to_the_caller(tmp_path: Path, opened: Open) -> None:
    """Also where an output is an input as it came, or a constant of the model."""
    node = helper.make_node("Identity", ["c"], ["z"])
    path = tmp_path / "m.onnx"
    given = models.value("x", ["N", 4])
    models.write_model(path, [node], [given], [given, models.value("z", [4])], {"c": np.ones(4, np.float32)})
    backend = opened(path)
    x = np.ones((2, 4), np.float32)
    answer = backend.run({"x": x}, 2)
    for array in answer.values():
        array[:] = 7
    assert x.tolist() == np.ones((2, 4)).tolist()
    assert backend.run({"x": x}, 2)["z"].tolist() == [1, 1, 1, 1]


def test_no_trace_of_shapes_seen(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.embedding_model(tmp_path / "m.onnx"))
    for length in range(1, 200):
        tokens = np.full((1, length), 7)
        assert backend.run({"tokens": tokens}, 1)["y"].tolist() == [[7, 7, 7, 7]]


# Whose doing an error is


def test_missing_extra_and_misnamed_inputs(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.two_inputs_model(tmp_path / "m.onnx"))
    x = np.ones((2, 4), np.float32)
    label = "model 'm' version 1 (fp32): expected the inputs 'a', 'b'; got "
    assert invalid(backend, {"a": x}) == f"{label}'a'"
    assert invalid(backend, {}) == f"{label}none"
    assert invalid(backend, {"a": x, "c": x}) == f"{label}'a', 'c'"
    assert invalid(backend, {"a": x, "b": x, "c": x}) == f"{label}'a', 'b', 'c'"


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3), np.float32), "Got invalid dimensions for input: x for the following indices index: 1 Got: 3 Expected: 8"),
        (np.ones((2, 8, 1), np.float32), "Invalid rank for input: x Got: 3 Expected: 2"),
        (np.ones((2, 8)), "input 'x' is float64; expected FP32"),
        (np.ones((2, 8), ">f8"), "input 'x' is >f8; expected FP32"),
        (np.ones((2, 8), object), "input 'x' is object; expected FP32"),
        (np.ones((2, 8), complex), "input 'x' is complex128; expected FP32"),
    ],
)
def test_a_wrong_input_is_the_requests_doing(tmp_path: Path, opened: Open, array: Tensor, message: str, bound: bool) -> None:
    outputs = BIND_FROM // 8
    backend = opened(models.linear_model(tmp_path / "m.onnx", outputs=outputs))
    out = {"y": np.zeros((2, outputs), np.float32)} if bound else None
    with pytest.raises(InvalidRequest) as caught:
        backend.run({"x": array}, 2, out)
    assert message in str(caught.value)
    good = np.ones((2, 8), np.float32)
    assert backend.run({"x": good}, 2, out)["y"].shape == (2, outputs)


@pytest.mark.parametrize(
    "array", [np.ones((2, 3), ml_dtypes.bfloat16), np.ones((2, 5, 1), ml_dtypes.bfloat16), np.ones((2, 5), np.float16)]
)
def test_a_wrong_bf16_input_is_the_requests_doing(tmp_path: Path, opened: Open, array: Tensor) -> None:
    invalid(opened(models.identity_model(tmp_path / "m.onnx", "BF16", width=5)), {"x": array})


def test_an_index_out_of_range_is_the_requests_doing(tmp_path: Path, opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    backend = opened(models.embedding_model(tmp_path / "m.onnx"))
    assert "idx=99 must be within the inclusive range [-32,31]" in invalid(backend, {"tokens": np.full((2, 3), 99)})
    assert capfd.readouterr().err == ""


def test_text_that_is_not_utf8_is_the_requests_doing(tmp_path: Path, opened: Open) -> None:
    backend = opened(models.identity_model(tmp_path / "m.onnx", "BYTES", width=2))
    texts = np.array([[b"good", b"\xff"], [b"", b"a"]], object)
    assert "element 1 of input 'x' isn't UTF-8 (invalid start byte)" in invalid(backend, {"x": texts})


def test_a_failing_node_is_the_models_doing(tmp_path: Path, opened: Open) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    weights = {"shape": np.array([1, 4])}
    outputs = [models.value("y", [1, 4])]
    backend = opened(models.write_model(tmp_path / "m.onnx", nodes, [models.value("x", ["N", 4])], outputs, weights))
    with pytest.raises(BackendFailure, match=r"model 'm' version 1 \(fp32\), 3 rows: the run failed: .*Reshape"):
        backend.run({"x": np.ones((3, 4), np.float32)}, 3)
    assert backend.run({"x": np.ones((1, 4), np.float32)}, 1)["y"].shape == (1, 4)


def test_a_closed_backend_says_so(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend.open(spec(models.linear_model(tmp_path / "m.onnx")))
    backend.close()
    backend.close()
    with pytest.raises(BackendFailure, match="is closed"):
        backend.run({"x": np.ones((2, 8), np.float32)}, 2)
