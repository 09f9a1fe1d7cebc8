"""Exports for TensorRT, on a stand-in for it: engines beside the ONNX files, their profiles, and what is said without a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters.pipeline import export, steps
from exporters.plan import EngineWish, ExportError, PlanError, parse_engine
from server.backends.base import VariantSpec
from server.backends.trt.backend import TensorRtBackend
from server.repository.manifest import read_manifest
from tests.exporters.conftest import Remembers, plan
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


def profiles_of(entry: Path, precision: str = "fp32") -> list[dict[str, list[list[int]]]]:
    found: list[dict[str, list[list[int]]]] = json.loads((entry / f"model.{precision}.plan").read_bytes())["profiles"]
    return found


def test_each_precision_has_its_engine(user: Path, reporter: Remembers, gpu: FakeGpu) -> None:
    exported = export(plan(user, "Mlp", "features.npz", target="tensorrt", precisions=("fp32", "fp16")), reporter)
    assert exported.entry is not None
    manifest = read_manifest(exported.entry / "manifest.json")
    assert [(v.file, v.precision, v.backend, v.engine is not None) for v in manifest.variants] == [
        ("model.fp32.onnx", "fp32", "onnxruntime", False),
        ("model.fp16.onnx", "fp16", "onnxruntime", False),
        ("model.fp32.plan", "fp32", "trt", True),
        ("model.fp16.plan", "fp16", "trt", True),
    ]
    made = manifest.variants[2]
    assert made.engine is not None
    assert (made.engine.onnx_sha256, made.engine.gpu) == (manifest.variants[0].sha256, "Tesla T4")
    assert (made.parity.runtime, made.parity.device, made.parity.samples) == ("tensorrt 10.16.1.11", "Tesla T4", 256)
    assert made.latency is not None
    assert (made.latency.device, set(made.latency.seconds)) == ("Tesla T4", {1, 8, 32})
    assert profiles_of(exported.entry) == [{"features": [[1, 4], [16, 4], [64, 4]]}]
    assert any("unproven on a GPU" in note for note in reporter.notes)
    assert "build its TensorRT engines" in reporter.steps
    spec = VariantSpec("net", "1", "fp16", "trt", exported.entry / "model.fp16.plan", device="cuda:0")
    backend = TensorRtBackend.open(spec)
    features = np.load(user / "features.npz")["features"]
    assert backend.run({"features": features}, len(features))["output_0"].shape == (len(features), 3)


def test_profiles_follow_the_batching_settings(user: Path, reporter: Remembers, gpu: FakeGpu) -> None:
    (user / "models" / "net").mkdir(parents=True)
    (user / "models" / "net" / "model.yaml").write_text("batching: {max_rows: 48, preferred_rows: [1, 8]}")
    exported = export(plan(user, "Mlp", "features.npz", target="tensorrt", level=1), reporter)
    assert exported.entry is not None
    spans = [[shape[0] for shape in profile["features"]] for profile in profiles_of(exported.entry)]
    assert spans == [[1, 1, 1], [2, 8, 8], [9, 48, 48]]
    wish = EngineWish(most_rows=100, likely_rows=40, version_compatible=True, timing_cache=user / "timing")
    exported = export(replace(plan(user, "Mlp", "features.npz", target="tensorrt", level=1), engine=wish), reporter)
    assert exported.entry is not None
    assert profiles_of(exported.entry)[-1] == {"features": [[9, 4], [40, 4], [100, 4]]}
    assert (user / "timing").read_bytes() == b"timed;"


def test_without_tensorrt_the_entry_holds_onnx_and_says_so(user: Path, reporter: Remembers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    exported = export(plan(user, "Mlp", "features.npz", target="tensorrt", level=1), reporter)
    assert exported.entry is not None
    assert sorted(path.name for path in exported.entry.iterdir()) == ["manifest.json", "model.fp32.onnx", "reference.npz"]
    (note,) = [note for note in reporter.notes if "no engine was built" in note]
    assert "the entry holds ONNX: TensorRT can't be imported" in note
    assert "pip install 'tidegate[gpu]'" in note


def test_an_engine_that_is_another_model_is_not_written(
    user: Path, reporter: Remembers, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: fake_tensorrt.IExecutionContext, stream_handle: int) -> bool:
        return True  # computes nothing

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", wrong)
    with pytest.raises(ExportError, match="the fp32 engine isn't the same model: output"):
        export(plan(user, "Mlp", "features.npz", target="tensorrt", level=1), reporter)
    assert not (user / "models").exists()


def test_other_targets_and_single_files_have_none(user: Path) -> None:
    titles = [step.title for step in steps(plan(user, "Mlp", "features.npz"))]
    single = replace(plan(user, "Mlp", "features.npz", target="tensorrt"), repository=None, output=user / "m.onnx")
    assert not any("engines" in title for title in [*titles, *(step.title for step in steps(single))])


def test_the_option() -> None:
    assert parse_engine("") == EngineWish()
    wish = parse_engine("most_rows=64, likely_rows=16,workspace=2GiB,timing_cache=t,version_compatible=yes")
    assert wish == EngineWish(16, 64, 2 << 30, True, Path("t"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows=1", "--engine rows=1: unknown key; expected most_rows, likely_rows, workspace, timing_cache, version_compatible"),
        ("most_rows=0", "--engine most_rows=0: can't read '0'"),
        ("workspace=lots", "--engine workspace=lots: can't read 'lots'"),
        ("version_compatible=maybe", "--engine version_compatible=maybe: can't read 'maybe'"),
    ],
)
def test_an_option_that_makes_no_sense(text: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_engine(text)
    assert str(caught.value).startswith(said)
