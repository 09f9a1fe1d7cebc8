"""The onnxruntime backend for GPUs on a GPU in plain memory: onnxruntime is the real one, its session on the CPU, bound to that memory.

What is proved here is the code around the session: what is bound where, copied when, and given back. That its providers compute on a GPU is
for `make gpu-check` to prove.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from server.backends.base import VariantSpec
from server.backends.nvidia.cuda import DeviceFacts
from server.backends.ort.backend import OnnxRuntimeBackend
from server.backends.ort.engine_cache import MADE_FOR, engine_cache
from server.backends.ort.gpu import OnnxRuntimeOnGpu
from server.backends.ort.providers import CUDA, TENSORRT, gpu_providers
from server.errors import BackendFailure, DeviceLost, DeviceMemory, InvalidRequest, ModelDefect
from server.tensors import DTYPES, TensorSpec
from tests.nvidia.fake_gpu import T4, FakeGpu
from tests.nvidia.fake_session import opened_on
from tests.nvidia.ort_options import used, written
from tests.server.models import embedding_model, identity_model, linear_model, value, write_model


def variant(path: Path, **changes: Any) -> VariantSpec:
    return VariantSpec(
        **{"model": "m", "version": "1", "precision": "fp32", "backend": "onnxruntime", "path": path, "threads": 1, **changes}
    )


def opened(path: Path, gpu: FakeGpu, **changes: Any) -> OnnxRuntimeOnGpu:
    return opened_on(variant(path, **changes), gpu)


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    """A GPU of which nothing may be left taken."""
    gpu = FakeGpu()
    yield gpu
    assert not gpu.held
    assert not gpu.streams


# Runs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.integers(1, 9), min_size=1, max_size=6), into=st.booleans())
def test_answers_are_the_cpus(tmp_path: Path, runs: list[int], into: bool) -> None:
    """Whatever numbers of rows come in which order: memory is grown, reused, and never mixed up."""
    path, gpu = tmp_path / "m.onnx", FakeGpu()
    if not path.exists():
        linear_model(path)
    there, here = opened(path, gpu), OnnxRuntimeBackend.open(variant(path))
    kept = []
    for number, rows in enumerate(runs):
        x = np.random.default_rng(number).standard_normal((rows, 8), np.float32)
        out = {"y": np.zeros((rows, 4), np.float32)} if into else None
        found = there.run({"x": x}, rows, out)["y"]
        assert out is None or found is out["y"]
        kept.append((found, here.run({"x": x}, rows)["y"]))
    there.close()
    for found, wanted in kept:  # answers belong to the caller: no later run may have written over them
        np.testing.assert_array_equal(found, wanted)
    assert not gpu.held
    assert not gpu.streams


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
def test_every_datatype_crosses(tmp_path: Path, gpu: FakeGpu, datatype: str) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", datatype), gpu)
    sent = (np.arange(48).reshape(3, 16) % 2).astype(DTYPES[datatype].numpy)
    for _ in range(2):  # the second run's output has its own place
        found = backend.run({"x": sent}, 3)["y"]
        assert found.dtype == sent.dtype
        np.testing.assert_array_equal(found, sent)
    backend.close()


def test_text_is_left_to_onnxruntime(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", "BYTES", width=2), gpu)
    sent = np.array([[b"a", b"b"]], object)
    assert backend.run({"x": sent}, 1)["y"].tolist() == [[b"a", b"b"]]
    backend.close()


def test_views_and_byte_orders(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", width=4), gpu)
    for sent in (np.arange(16, dtype=">f4").reshape(4, 4), np.arange(32, dtype=np.float32).reshape(4, 8)[:, ::2]):
        np.testing.assert_array_equal(backend.run({"x": sent}, 4)["y"], sent)
    backend.close()


def test_no_rows(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", width=4), gpu)
    assert backend.run({"x": np.zeros((0, 4), np.float32)}, 0)["y"].shape == (0, 4)
    backend.close()


def test_outputs_whose_length_depends_on_the_data(tmp_path: Path, gpu: FakeGpu) -> None:
    """They are never bound to a place of their own: nobody knows how large it would have to be."""
    path = write_model(
        tmp_path / "m.onnx", [helper.make_node("NonZero", ["x"], ["y"])], [value("x", ["N", 4])], [value("y", [2, "K"], "INT64")]
    )
    backend = opened(path, gpu)
    for ones in (1, 5, 2):
        x = np.zeros((3, 4), np.float32)
        x.ravel()[:ones] = 1
        assert backend.run({"x": x}, 3)["y"].shape == (2, ones)
    backend.close()


def test_lengths_that_vary_beside_the_rows(tmp_path: Path, gpu: FakeGpu) -> None:
    path = embedding_model(tmp_path / "m.onnx")
    backend, here = opened(path, gpu), OnnxRuntimeBackend.open(variant(path))
    (name,) = (tensor.name for tensor in backend.inputs)
    for length in (3, 7, 2):
        ids = np.arange(2 * length, dtype=np.int64).reshape(2, length)
        found, wanted = backend.run({name: ids}, 2), here.run({name: ids}, 2)
        for output, array in wanted.items():
            np.testing.assert_array_equal(found[output], array)
    backend.close()


def test_a_run_waits_once_and_has_onnxruntime_not_wait(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", width=4), gpu)
    backend.run({"x": np.ones((2, 4), np.float32)}, 2)
    assert gpu.waits == 1
    assert backend._session.options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    backend.close()


def test_memory_is_taken_once(tmp_path: Path, gpu: FakeGpu) -> None:
    """The largest run, which warm-up has, takes it; smaller ones use it."""
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    backend.run({"x": np.ones((64, 8), np.float32)}, 64)
    held = dict(gpu.held)
    for rows in (1, 64, 7):
        backend.run({"x": np.ones((rows, 8), np.float32)}, rows)
    assert gpu.held == held
    backend.close()


# What goes wrong


def test_wrong_inputs_are_the_requests_doing(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    for inputs, said in (
        ({}, "expected the inputs 'x'; got none"),
        ({"z": np.ones((1, 8), np.float32)}, "expected the inputs 'x'; got 'z'"),
        ({"x": np.ones((1, 8))}, "input 'x' is float64; expected FP32"),
        ({"x": np.ones((1, 8, 1), np.float32)}, "Invalid rank for input: x"),
        ({"x": np.ones((1, 7), np.float32)}, "Got invalid dimensions for input: x"),
    ):
        with pytest.raises(InvalidRequest, match=said.replace("(", r"\(")):
            backend.run(inputs, 1)
    assert backend.run({"x": np.ones((1, 8), np.float32)}, 1)["y"].shape == (1, 4)
    assert not gpu.pending
    backend.close()


def test_a_full_device_is_told_from_other_failures(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    backend._session.fails = RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 4096")
    with pytest.raises(DeviceMemory, match="Failed to allocate memory"):
        backend.run({"x": np.ones((1, 8), np.float32)}, 1)
    backend._session.fails = RuntimeError("something else")
    with pytest.raises(BackendFailure, match="the run failed: something else") as caught:
        backend.run({"x": np.ones((1, 8), np.float32)}, 1)
    assert type(caught.value) is BackendFailure
    backend.close()


def test_a_lost_context_is_said_by_cuda(tmp_path: Path, gpu: FakeGpu) -> None:
    def lost() -> None:
        raise DeviceLost("device cuda:0: cudaErrorIllegalAddress")

    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    backend._session.fails = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    gpu.on_wait = lost
    with pytest.raises(DeviceLost):
        backend.run({"x": np.ones((1, 8), np.float32)}, 1)
    backend.close()


def test_a_device_without_room_for_the_tensors(tmp_path: Path) -> None:
    gpu = FakeGpu(capacity=2048)
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    with pytest.raises(DeviceMemory, match="were asked for"):
        backend.run({"x": np.ones((999, 8), np.float32)}, 999)
    assert backend.run({"x": np.ones((2, 8), np.float32)}, 2)["y"].shape == (2, 4)
    backend.close()
    assert not gpu.held


def test_an_array_that_does_not_fit(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    with pytest.raises(BackendFailure, match="can't be written to float64"):
        backend.run({"x": np.ones((1, 8), np.float32)}, 1, {"y": np.zeros((1, 4))})
    backend.close()


def test_a_closed_one_says_so(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"), gpu)
    backend.close()
    backend.close()
    with pytest.raises(BackendFailure, match="it is closed"):
        backend.run({"x": np.ones((1, 8), np.float32)}, 1)


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this build lists it")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_build_without_the_provider(tmp_path: Path, provider: str) -> None:
    spec = variant(linear_model(tmp_path / "m.onnx"), device="cuda:0", options={"provider": provider})
    with pytest.raises(ModelDefect, match=f"needs {CUDA if provider == 'cuda' else TENSORRT}, which the installed onnxruntime"):
        OnnxRuntimeBackend.open(spec)


# What the providers are told


def test_the_options_of_cuda() -> None:
    ((name, options),) = gpu_providers(variant(Path("m.onnx")), 2, 77, {})
    assert name == CUDA
    assert options == {
        "device_id": "2",
        "user_compute_stream": "77",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_what_is_said_of_cuda() -> None:
    said = {"memory": 1 << 30, "arena": "double", "conv_search": "exhaustive"}
    ((_, options),) = gpu_providers(variant(Path("m.onnx"), options=said, optimization_level=4), 0, 1, {})
    assert options["gpu_mem_limit"] == "1073741824"
    assert options["arena_extend_strategy"] == "kNextPowerOfTwo"
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["use_tf32"] == "1"


def test_the_options_of_tensorrt() -> None:
    shapes = {"x": ((1, 3), (16, 3), (64, 3)), "ids": ((1, 1), (16, 64), (64, 128))}
    said = {"provider": "tensorrt", "workspace": 5, "profile": shapes}
    (name, options), (second, _) = gpu_providers(variant(Path("m.onnx"), options=said), 0, 1, {"trt_engine_cache_enable": "1"})
    assert (name, second) == (TENSORRT, CUDA)
    assert options["trt_profile_min_shapes"] == "x:1x3,ids:1x1"
    assert options["trt_profile_opt_shapes"] == "x:16x3,ids:16x64"
    assert options["trt_profile_max_shapes"] == "x:64x3,ids:64x128"
    assert options["trt_builder_optimization_level"] == "3"
    assert options["trt_max_workspace_size"] == "5"
    assert options["trt_engine_cache_enable"] == "1"
    assert not [key for key in options if "fp16" in key or "int8" in key or "bf16" in key]  # precision lies in the file


def test_every_name_is_in_onnxruntimes_libraries() -> None:
    """tests/nvidia/ort_options.py looked them up in the real ones; a new name needs `make gpu-stubs`."""
    assert used() == written()


# The cache of engines


def cached(root: Path, facts: DeviceFacts = T4, versions: tuple[str, ...] = ("10.16.1.11", "1.31.1"), **changes: Any) -> Path:
    options = {"provider": "tensorrt", "content": "a" * 64, "cache": str(root), **changes}
    found = engine_cache(variant(Path("m.onnx"), options=options), facts, versions)
    assert (found["trt_engine_cache_enable"], found["trt_timing_cache_enable"]) == ("1", "1")
    return Path(found["trt_engine_cache_path"])


def test_each_file_machine_version_and_setting_has_its_own_folder(tmp_path: Path) -> None:
    root = tmp_path / "engines"
    folders = [
        cached(root),
        cached(root, content="b" * 64),
        cached(root, DeviceFacts("Tesla T4", "7.5", "13.1", 16 << 30)),
        cached(root, versions=("10.13.2.6", "1.31.1")),
        cached(root, workspace=1 << 30),
        cached(root, profile={"x": ((1,), (2,), (3,))}),
    ]
    assert len(set(folders)) == len(folders)
    assert cached(root) == folders[0]
    assert '"Tesla T4"' in (folders[0] / MADE_FOR).read_text()
    assert {path.stat().st_mode & 0o777 for path in (root, *folders)} == {0o700}


def test_without_a_folder_nothing_is_kept() -> None:
    assert engine_cache(variant(Path("m.onnx"), options={"provider": "tensorrt"}), T4, ()) == {}


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "engines"
    folder = cached(root)
    folder.chmod(0o777)
    with pytest.raises(ModelDefect, match="this user alone writes to"):
        cached(root)
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(ModelDefect, match="this user alone writes to"):
        cached(root)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelDefect, match=r"can't be made: .*name another folder by `engines.cache`"):
        cached(tmp_path / "file")


def test_bf16_is_bound_by_its_onnx_number(tmp_path: Path, gpu: FakeGpu) -> None:
    backend = opened(identity_model(tmp_path / "m.onnx", "BF16", width=2), gpu)
    sent = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    assert backend.outputs == (TensorSpec("y", "BF16", (-1, 2), 0),)
    np.testing.assert_array_equal(backend.run({"x": sent}, 1)["y"], sent)
    backend.close()
