"""The trt backend on a stand-in for TensorRT and a GPU in plain memory: what it copies, chooses, refuses and gives back.

What is proved here is the code around TensorRT; that an engine computes on a GPU is for `make gpu-check` to prove.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from exporters.formats.to_trt import profiles
from exporters.formats.trt_build import Settings, build
from server.backends.base import VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.backends.registry import backend_named
from server.backends.trt.backend import TensorRtBackend
from server.errors import BackendFailure, DeviceLost, InvalidRequest, ModelDefect
from server.tensors import TensorSpec
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu
from tests.server.models import linear_model, value, write_model

INPUTS = (TensorSpec("x", "FP32", (-1, 8), 0),)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


def engine(folder: Path, gpu: FakeGpu, *rows: tuple[int, int, int]) -> VariantSpec:
    """An engine of y = x w + b with a profile for each (likely, most, least) rows."""
    shapes = [profiles(INPUTS, *row) for row in rows or ((16, 64, 1),)]
    file = linear_model(folder / "m.onnx")
    plan = folder / "model.fp32.plan"
    plan.write_bytes(build(file, shapes, Settings(), gpu, lambda text: None).plan)
    return VariantSpec("net", "1", "fp32", "trt", plan, device="cuda:0")


def opened(spec: VariantSpec, gpu: FakeGpu) -> TensorRtBackend:
    return TensorRtBackend.open(spec, lambda device: gpu)


def refusal(spec: VariantSpec, gpu: FakeGpu) -> str:
    with pytest.raises(ModelDefect) as caught:
        opened(spec, gpu)
    assert not gpu.held
    assert not gpu.streams
    return str(caught.value)


def rows_of(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)


def wanted(spec: VariantSpec, x: Any) -> Any:
    """onnxruntime's answer."""
    backend = OnnxRuntimeBackend.open(replace(spec, path=spec.path.with_name("m.onnx"), device="cpu", inputs=(), outputs=()))
    return backend.run({"x": x}, len(x))["y"]


def test_a_batch_is_answered_as_onnxruntime_does(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(spec := engine(tmp_path, gpu), gpu)
    x = rows_of(5)
    found = backend.run({"x": x}, 5)["y"]
    np.testing.assert_array_equal(found, wanted(spec, x))
    assert found.flags.owndata  # the next run writes over the pinned memory
    backend.run({"x": rows_of(7)}, 7)
    np.testing.assert_array_equal(found, wanted(spec, x))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=6))
def test_runs_of_any_rows_and_order_are_independent(tmp_path: Path, gpu: FakeGpu, rows: list[int]) -> None:
    backend = opened(spec := engine(tmp_path, gpu, (1, 1, 1), (8, 16, 2), (64, 64, 17)), gpu)
    for count in rows:
        np.testing.assert_array_equal(backend.run({"x": rows_of(count)}, count)["y"], wanted(spec, rows_of(count)))
    backend.close()


def test_what_it_takes_and_gives(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(engine(tmp_path, gpu), gpu)
    assert [(spec.name, spec.datatype, spec.shape, spec.batch_axis) for spec in (*backend.inputs, *backend.outputs)] == [
        ("x", "FP32", (-1, 8), 0),
        ("y", "FP32", (-1, 4), 0),
    ]
    assert backend_named("trt") is TensorRtBackend


def test_lengths_are_bounded_by_the_profiles(tmp_path: Path, gpu: FakeGpu) -> None:
    nodes = [helper.make_node("Identity", ["ids"], ["y"])]
    file = write_model(tmp_path / "m.onnx", nodes, [value("ids", ["N", "S"], "INT64")], [value("y", ["N", "S"], "INT64")])
    tokens = (TensorSpec("ids", "INT64", (-1, -1), 0, (-1, 128)),)
    plan = tmp_path / "m.plan"
    plan.write_bytes(build(file, [profiles(tokens, 8, 32)], Settings(), gpu, lambda text: None).plan)
    backend = opened(VariantSpec("text", "1", "fp32", "trt", plan, device="cuda:0"), gpu)
    assert backend.inputs[0].max_shape == (-1, 128)
    ids = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(backend.run({"ids": ids}, 2)["y"], ids)
    with pytest.raises(InvalidRequest, match=r"2 rows: no profile of the engine takes 'ids' \[2, 129\]; it was built for 'ids' \[1, 1\]"):
        backend.run({"ids": np.zeros((2, 129), np.int64)}, 2)


def test_any_view_is_taken(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(spec := engine(tmp_path, gpu), gpu)
    x = rows_of(6)
    swapped = x.astype(">f4")
    strided = np.concatenate([x, x], axis=1)[:, :8]
    odd = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 8)
    for view in (swapped, strided, odd):
        np.testing.assert_array_equal(backend.run({"x": view}, 6)["y"], wanted(spec, x))
    out = {"y": np.zeros((6, 4), np.float32)}
    assert backend.run({"x": x}, 6, out)["y"] is out["y"]
    np.testing.assert_array_equal(out["y"], wanted(spec, x))
    with pytest.raises(BackendFailure, match=r"output 'y' is float32 \[6, 4\], not float32 \[5, 4\]"):
        backend.run({"x": x}, 6, {"y": np.zeros((5, 4), np.float32)})


def test_inputs_that_are_not_the_models(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(engine(tmp_path, gpu), gpu)
    with pytest.raises(InvalidRequest, match="expected the inputs 'x'; got 'z'"):
        backend.run({"z": rows_of(1)}, 1)
    with pytest.raises(InvalidRequest, match="input 'x' is float64; expected FP32"):
        backend.run({"x": rows_of(1).astype(np.float64)}, 1)
    with pytest.raises(InvalidRequest, match=r"no profile of the engine takes 'x' \[65, 8\]"):
        backend.run({"x": rows_of(65)}, 65)
    assert not gpu.pending


def test_close_gives_all_of_it_back(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(engine(tmp_path, gpu), gpu)
    assert gpu.held
    assert gpu.streams
    backend.close()
    backend.close()
    assert not gpu.held
    assert not gpu.streams
    assert gpu.taken == 0
    with pytest.raises(BackendFailure, match="it is closed"):
        backend.run({"x": rows_of(1)}, 1)


def test_a_full_gpu_is_told_with_figures(tmp_path: Path, gpu: FakeGpu) -> None:
    spec = engine(tmp_path, gpu)
    gpu.capacity = 2100
    said = refusal(spec, gpu)
    assert "cudaErrorMemoryAllocation (out of memory), 1024 bytes were asked for: the tensors of the largest run take 0 MiB" in said


def test_a_lost_device_is_told_apart(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(engine(tmp_path, gpu), gpu)

    def lose() -> None:
        raise DeviceLost("device cuda:0: cudaErrorIllegalAddress (an illegal memory access was encountered)")

    gpu.on_wait = lose
    with pytest.raises(DeviceLost, match="cudaErrorIllegalAddress"):
        backend.run({"x": rows_of(1)}, 1)


def test_a_run_that_tensorrt_refuses(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(spec := engine(tmp_path, gpu), gpu)
    with monkeypatch.context() as patch:
        patch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", lambda self, stream_handle: False)
        with pytest.raises(BackendFailure, match=r"model 'net' version 1 \(fp32\): the run failed: it gives no reason"):
            backend.run({"x": rows_of(1)}, 1)
    np.testing.assert_array_equal(backend.run({"x": rows_of(2)}, 2)["y"], wanted(spec, rows_of(2)))


def test_files_that_are_no_engine(tmp_path: Path, gpu: FakeGpu) -> None:
    spec = engine(tmp_path, gpu)
    plan = json.loads(spec.path.read_bytes())
    spec.path.write_bytes(json.dumps(plan | {"version": "10.13.2.6"}).encode())
    assert "TensorRT 10.16.1.11 doesn't take this engine: The engine plan file is of version 10.13.2.6" in refusal(spec, gpu)
    opened(replace(spec, options={"version_compatible": True}), gpu).close()
    spec.path.write_bytes(b"not a plan")
    assert "magicTagRead == kMAGIC_TAG failed" in refusal(spec, gpu)
    assert "no such file" in refusal(replace(spec, path=tmp_path / "none.plan"), gpu)


def test_where_it_does_not_run(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = engine(tmp_path, gpu)
    assert "runs on an NVIDIA GPU only, and the device is cpu" in refusal(replace(spec, device="cpu"), gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT can't be imported" in refusal(spec, gpu)


def test_declarations_are_held_to_the_engine(tmp_path: Path, gpu: FakeGpu) -> None:
    spec = replace(engine(tmp_path, gpu), inputs=(TensorSpec("x", "FP16", (-1, 8), 0),))
    assert "input 'x' is declared FP16 [-1, 8], but the file has FP32 [-1, 8]" in refusal(spec, gpu)
