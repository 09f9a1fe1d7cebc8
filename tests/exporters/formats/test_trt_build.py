"""How an engine is built, on a stand-in for TensorRT: profiles, settings, what is told, and what goes wrong. No GPU is asked."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from exporters.formats.to_trt import Profile, profiles
from exporters.formats.trt_build import Built, Settings, build
from exporters.plan import ExportError
from server.repository.manifest import file_sha256
from server.tensors import TensorSpec
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu
from tests.server.models import linear_model, value, write_model

INPUTS = (TensorSpec("x", "FP32", (-1, 8), 0),)
PROFILES = (profiles(INPUTS, 1, 1), profiles(INPUTS, 16, 64))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


def built(file: Path, gpu: FakeGpu, told: list[str] | None = None, **settings: Any) -> Built:
    return build(file, PROFILES, Settings(**settings), gpu, (told if told is not None else []).append)


def plan_of(found: Built) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = json.loads(found.plan)
    return plan


def test_an_engine_and_what_it_is_tied_to(tmp_path: Path, gpu: FakeGpu) -> None:
    file = linear_model(tmp_path / "m.onnx")
    told: list[str] = []
    found = built(file, gpu, told)
    assert plan_of(found)["profiles"] == [{"x": [[1, 8], [1, 8], [1, 8]]}, {"x": [[1, 8], [16, 8], [64, 8]]}]
    assert told == ["Building Engine: 1 of 2", "Building Engine: 2 of 2"]
    facts = found.facts
    assert (facts.tensorrt, facts.gpu, facts.compute_capability, facts.driver) == ("10.16.1.11", "Tesla T4", "7.5", "13.0")
    assert facts.onnx_sha256 == file_sha256(file)
    assert [facts.profiles[1]["x"].likely, facts.profiles[1]["x"].greatest] == [(16, 8), (64, 8)]


@pytest.mark.parametrize(("level", "effort"), [(0, 0), (1, 1), (2, 3), (3, 4), (4, 5)])
def test_our_level_is_tensorrts_effort(tmp_path: Path, gpu: FakeGpu, level: int, effort: int) -> None:
    found = built(linear_model(tmp_path / "m.onnx"), gpu, level=level)
    assert (plan_of(found)["level"], found.facts.builder_level) == (effort, effort)


def test_flags(tmp_path: Path, gpu: FakeGpu) -> None:
    file = linear_model(tmp_path / "m.onnx")
    assert plan_of(built(file, gpu))["flags"] == []  # TF32 is on in TensorRT, and off here
    assert plan_of(built(file, gpu, tf32=True))["flags"] == ["TF32"]
    found = built(file, gpu, version_compatible=True)
    assert plan_of(found)["flags"] == ["VERSION_COMPATIBLE"]
    assert found.facts.version_compatible


def test_the_timing_cache_is_kept_and_anothers_is_replaced(tmp_path: Path, gpu: FakeGpu) -> None:
    file, cache = linear_model(tmp_path / "m.onnx"), tmp_path / "timing"
    built(file, gpu, timing_cache=cache)
    assert cache.read_bytes() == b"timed;"
    built(file, gpu, timing_cache=cache)
    assert cache.read_bytes() == b"timed;timed;"
    cache.write_bytes(b"another GPU's")
    built(file, gpu, timing_cache=cache)
    assert cache.read_bytes() == b"timed;"


def test_a_graph_that_it_does_not_read(tmp_path: Path, gpu: FakeGpu) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    file = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 8])], [value("y", [2, "M"], "INT64")])
    with pytest.raises(ExportError, match=r"m\.onnx: TensorRT can't read it: node_7: unsupported operator NonZero"):
        built(file, gpu)


def test_no_tactic_fits(tmp_path: Path, gpu: FakeGpu) -> None:
    with pytest.raises(ExportError, match=r"m\.onnx: TensorRT can't build an engine: no tactic fits the workspace"):
        built(linear_model(tmp_path / "m.onnx"), gpu, workspace=1024)


def test_without_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        ExportError, match=r"TensorRT can't be imported: .*; on a machine with an NVIDIA GPU: pip install 'tidegate\[gpu\]'"
    ):
        built(linear_model(tmp_path / "m.onnx"), FakeGpu())


def test_without_a_driver(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(logger: fake_tensorrt.ILogger) -> None:
        logger.log(fake_tensorrt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", refuse)
    with pytest.raises(ExportError, match=r"TensorRT 10\.16\.1\.11 doesn't start: CUDA initialization failure with error: 35"):
        built(linear_model(tmp_path / "m.onnx"), gpu)


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_build_at_its_next_step(tmp_path: Path, gpu: FakeGpu, number: signal.Signals) -> None:
    steps: list[str] = []

    def told(text: str) -> None:
        steps.append(text)
        os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        build(linear_model(tmp_path / "m.onnx"), PROFILES, Settings(timing_cache=tmp_path / "timing"), gpu, told)
    assert not (tmp_path / "timing").exists()


def test_lengths_have_their_own_bounds() -> None:
    tokens = (TensorSpec("ids", "INT64", (-1, -1), 0, (-1, 128)),)
    assert profiles(tokens, 8, 32, 2)["ids"] == Profile((2, 1), (8, 64), (32, 128))


def test_the_stand_in_computes(tmp_path: Path, gpu: FakeGpu) -> None:
    """What the backend's tests build on."""
    engine = fake_tensorrt.Runtime(fake_tensorrt.ILogger()).deserialize_cuda_engine(built(linear_model(tmp_path / "m.onnx"), gpu).plan)
    assert engine is not None
    assert [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)] == ["x", "y"]
    assert np.prod([engine.get_tensor_shape("x")[axis] for axis in range(2)]) == -8
