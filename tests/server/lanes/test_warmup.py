from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx import helper

from server.backends.base import Backend, VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.errors import InvalidRequest, ModelDefect
from server.lanes.warmup import BUDGET, WarmUp, warm_up
from server.tensors import DTYPES, Tensor, TensorSpec
from tests.server import models


def opened(path: Path, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()) -> Backend:
    spec = VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1, inputs=tuple(inputs), outputs=tuple(outputs))
    return OnnxRuntimeBackend.open(spec)


class Recorder:
    """A backend by hand: y = f(x), noting the shapes that it was asked."""

    version: ClassVar[str] = "recorder"

    def __init__(self, function: Callable[[Tensor], Tensor], given: TensorSpec, answer: TensorSpec) -> None:
        self.function = function
        self.inputs: tuple[TensorSpec, ...] = (given,)
        self.outputs: tuple[TensorSpec, ...] = (replace(answer, name="y"),)
        self.shapes: list[tuple[int, ...]] = []

    @classmethod
    def open(cls, spec: VariantSpec) -> Backend:
        raise NotImplementedError

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        self.shapes.append(inputs["x"].shape)
        return {"y": self.function(inputs["x"])}

    def close(self) -> None:
        pass


def image(size: int) -> Callable[[Tensor], Tensor]:
    """A model that takes one size of picture only."""

    def run(x: Tensor) -> Tensor:
        if x.shape[2:] != (size, size):
            raise InvalidRequest(f"pictures are {size} x {size}")
        return x

    return run


# Rows that hold


@pytest.mark.parametrize("build", [models.linear_model, models.two_inputs_model, models.embedding_model])
def test_rows_are_proven_and_timed(tmp_path: Path, build: models.Build) -> None:
    found = warm_up(opened(build(tmp_path / "m.onnx")), (1, 8, 64))
    assert found.batched
    assert found.why == ""
    assert list(found.latency) == [1, 8, 64]
    assert all(seconds > 0 for seconds in found.latency.values())


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype(tmp_path: Path, datatype: str) -> None:
    assert warm_up(opened(models.identity_model(tmp_path / "m.onnx", datatype)), (1, 4)).batched


def test_sizes_are_sorted_and_taken_once(tmp_path: Path) -> None:
    assert list(warm_up(opened(models.linear_model(tmp_path / "m.onnx")), (8, 1, 8)).latency) == [1, 8]


def test_half_precision_may_round(tmp_path: Path) -> None:
    """FP16 answers differ by more than FP32's tolerance when the order of summing does."""

    def rounded(x: Tensor) -> Tensor:
        return (x * (1 + 1e-3 * len(x))).astype(np.float16)

    backend = Recorder(rounded, TensorSpec("x", "FP16", (-1, 4)), TensorSpec("y", "FP16", (-1, 4)))
    assert warm_up(backend, (1,)).batched


# Rows that don't


def test_an_output_of_fixed_rows(tmp_path: Path) -> None:
    found = warm_up(opened(models.sum_rows_model(tmp_path / "m.onnx")), (1, 8))
    assert not found.batched
    assert found.why == "the first axis isn't variable in every input and output: output 'y' is [1, 4]"
    assert list(found.latency) == [1]


def test_rows_that_mix(tmp_path: Path) -> None:
    found = warm_up(opened(models.centred_model(tmp_path / "m.onnx")), (1, 8))
    assert not found.batched
    assert found.why.startswith("output 'y' isn't per row: the same rows alone and in a batch differ by up to ")
    assert list(found.latency) == [1]


def test_a_manifests_word_is_taken(tmp_path: Path) -> None:
    assert warm_up(opened(models.centred_model(tmp_path / "m.onnx")), (1, 8), trust_batch_axis=True).batched


def test_an_answer_about_all_rows(tmp_path: Path) -> None:
    node = helper.make_node("Shape", ["x"], ["y"])
    path = models.write_model(tmp_path / "m.onnx", [node], [models.value("x", ["N", 4])], [models.value("y", ["K"], "INT64")])
    found = warm_up(opened(path), (1, 8))
    assert not found.batched
    assert "[2" in found.why


def test_an_answer_of_other_rows() -> None:
    backend = Recorder(lambda x: np.repeat(x, 2, axis=0), TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))
    assert warm_up(backend, (1,)).why == "output 'y' isn't per row: 2 rows gave the shape [4, 4]"


def test_an_answer_whose_width_hangs_on_the_rows() -> None:
    def widened(x: Tensor) -> Tensor:
        return np.repeat(x, len(x), axis=1)

    backend = Recorder(widened, TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, -1)))
    assert "have the shapes [2, 8], [3, 12], [5, 20]" in warm_up(backend, (1,)).why


@pytest.mark.parametrize("datatype", ["INT64", "BOOL", "BYTES"])
def test_whole_values_must_be_the_same(datatype: str) -> None:
    def first_row_differs(x: Tensor) -> Tensor:
        answer = np.array([[len(x) % 2], *([[0]] * (len(x) - 1))])
        return answer.astype(str).astype(object) if datatype == "BYTES" else answer.astype(DTYPES[datatype].numpy)

    backend = Recorder(first_row_differs, TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", datatype, (-1, 1)))
    assert "differ in 2 of 5 values" in warm_up(backend, (1,)).why


def test_not_a_number_must_be_so_in_both() -> None:
    def spoilt(x: Tensor) -> Tensor:
        return np.where(len(x) > 3, np.nan, x)

    backend = Recorder(spoilt, TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))
    assert "differ in which values are finite" in warm_up(backend, (1,)).why
    backend = Recorder(lambda x: x * np.nan, TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))
    assert warm_up(backend, (1,)).batched


def one_row_only(tmp_path: Path) -> Path:
    """A model that was traced with one row: variable in name, and a reshape inside that isn't."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs, outputs = [models.value("x", ["N", 4])], [models.value("y", ["M", 4])]
    return models.write_model(tmp_path / "m.onnx", [node], inputs, outputs, {"shape": np.array([1, 4])})


def test_a_model_that_takes_one_row_only(tmp_path: Path) -> None:
    file_of_rank = [TensorSpec("y", "FP32", (1, 4), 0)]
    found = warm_up(opened(one_row_only(tmp_path), outputs=file_of_rank), (1, 8))
    assert not found.batched
    assert found.why.startswith("a run of several rows failed: 'x' float32 [2, 4]: model 'm' version 1")
    assert list(found.latency) == [1]


def test_a_manifest_that_promises_too_much_is_a_defect(tmp_path: Path) -> None:
    backend = opened(one_row_only(tmp_path), outputs=[TensorSpec("y", "FP32", (1, 4), 0)])
    with pytest.raises(ModelDefect, match=r"warm-up with 8 rows failed: 'x' float32 \[8, 4\]"):
        warm_up(backend, (1, 8), trust_batch_axis=True)


def test_many_rows_that_fail_leave_one() -> None:
    def small_only(x: Tensor) -> Tensor:
        if len(x) > 8:
            raise InvalidRequest("too many")
        return x

    backend = Recorder(small_only, TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))
    found = warm_up(backend, (1, 8, 64))
    assert not found.batched
    assert found.why.startswith("a run of 64 rows failed: ")
    assert list(found.latency) == [1]


# Inputs that must be made up


@pytest.mark.parametrize("size", [8, 32, 224])
def test_another_length_is_tried(size: int) -> None:
    spec = TensorSpec("x", "FP32", (-1, 3, -1, -1))
    found = warm_up(Recorder(image(size), spec, spec), (1, 2))
    assert found.batched
    assert list(found.latency) == [1, 2]


def test_a_length_that_nobody_guesses_isnt_the_models_fault() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3, -1, -1))
    found = warm_up(Recorder(image(299), spec, spec), (1, 2))
    assert found == WarmUp({}, False, "warm-up input couldn't be made: 'x' float32 [1, 3, 8, 8]: pictures are 299 x 299")
    assert warm_up(Recorder(image(299), spec, spec), (1, 2), free_axis=299).batched
    assert warm_up(Recorder(image(299), spec, spec), (1, 2), trust_batch_axis=True).batched


def test_lengths_stay_within_max_shape() -> None:
    spec = TensorSpec("x", "FP32", (-1, -1, -1), max_shape=(-1, 4, -1))
    backend = Recorder(lambda x: x, spec, spec)
    warm_up(backend, (2,))
    assert {shape[1:] for shape in backend.shapes} == {(4, 8)}


def test_a_failure_on_the_files_own_shape_is_a_defect(tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", (-1, 3, 4, 4))
    with pytest.raises(ModelDefect, match=r"warm-up failed: 'x' float32 \[1, 3, 4, 4\]: pictures are 8 x 8"):
        warm_up(Recorder(image(8), spec, spec), (1,))


def test_whatever_a_third_partys_backend_raises_is_a_defect() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("oops")

    spec = TensorSpec("x", "FP32", (-1, 4))
    with pytest.raises(ModelDefect, match="KeyError: 'oops'"):
        warm_up(Recorder(broken, spec, spec), (1,))


def test_a_backend_that_forgets_an_output_is_a_defect() -> None:
    spec = TensorSpec("x", "FP32", (-1, 4))
    backend = Recorder(lambda x: x, spec, spec)
    backend.outputs = (*backend.outputs, replace(spec, name="z"))
    with pytest.raises(ModelDefect, match="no output 'z'"):
        warm_up(backend, (1,))


def test_a_model_without_rows_or_inputs(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])
    found = warm_up(opened(models.write_model(tmp_path / "m.onnx", [node], [], [models.value("y", [2])])), (1, 8))
    assert not found.batched
    assert list(found.latency) == [1]


# Time


def test_a_slow_model_is_not_run_at_every_size(tmp_path: Path) -> None:
    backend = opened(models.slow_model(tmp_path / "m.onnx", width=512, layers=100))
    started = perf_counter()
    found = warm_up(backend, (1, 512, 65536))
    assert found.batched
    assert 65536 not in found.latency
    assert perf_counter() - started < 10 * BUDGET


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", (-1, 4))
    asked: list[list[Any]] = []
    for _ in range(2):
        seen: list[Any] = []

        def noted(x: Tensor, seen: list[Any] = seen) -> Tensor:
            seen.append(x.tolist())
            return x

        warm_up(Recorder(noted, spec, spec), (1, 2), seed=3)
        asked.append(seen)
    assert asked[0] == asked[1]
