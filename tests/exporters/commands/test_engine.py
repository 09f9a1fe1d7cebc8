"""`tidegate export engine`: one engine of an entry that is there, on stand-ins for TensorRT and a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.commands.engine import Order, build_engine
from exporters.commands.entry import find_entry
from exporters.plan import EngineWish, ExportError
from server.repository.manifest import file_sha256, read_manifest
from tests.exporters.commands.test_commands import placed, ran
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


def failure(entry: Path, into: Path, precision: str = "fp32") -> str:
    with pytest.raises(ExportError) as caught:
        build_engine(Order(find_entry(entry), precision, into, EngineWish()), lambda text: None)
    assert not into.exists() or into.name == "there"
    assert not list(into.parent.glob(".*.partial"))
    return str(caught.value)


def test_the_engine_has_a_manifest_and_its_proof(tmp_path: Path, gpu: FakeGpu) -> None:
    entry, told = placed(tmp_path / "models"), list[str]()
    before = {path: path.read_bytes() for path in entry.iterdir()}
    into = tmp_path / "cache" / "key"
    made = build_engine(Order(find_entry(entry), "fp16", into, EngineWish(most_rows=48)), told.append)
    assert {path.name for path in into.iterdir()} == {"manifest.json", "model.fp16.plan"}
    assert read_manifest(into / "manifest.json") == made
    (variant,) = made.variants
    assert (variant.precision, variant.backend, variant.target) == ("fp16", "trt", "tensorrt")
    assert variant.sha256 == file_sha256(into / "model.fp16.plan")
    assert variant.engine is not None
    assert variant.engine.onnx_sha256 == file_sha256(entry / "model.fp16.onnx")
    assert variant.engine.profiles[0]["x"].greatest == (48, 8)
    assert (variant.parity.device, variant.parity.samples) == ("Tesla T4", 14)
    assert variant.latency is not None
    assert set(variant.latency.seconds) == {1, 8, 32}
    assert told[-1] == "prove it"
    assert {path: path.read_bytes() for path in entry.iterdir()} == before
    assert not gpu.held


def test_without_kept_rows_it_is_proved_by_the_onnx_file(tmp_path: Path, gpu: FakeGpu) -> None:
    made = build_engine(Order(find_entry(placed(tmp_path, off=None)), "fp32", tmp_path / "into", EngineWish()), lambda text: None)
    assert made.variants[0].parity.samples == 6


def test_the_command(tmp_path: Path, gpu: FakeGpu) -> None:
    entry = placed(tmp_path / "models")
    status, out, err = ran("engine", entry, "--precision", "fp16", "--into", tmp_path / "into", "--engine", "most_rows=40")
    assert status == 0, err
    assert out.startswith(str(tmp_path / "into"))
    assert "unproven on a GPU" in err
    assert "Building Engine: 2 of 2" in err


def test_what_is_refused(tmp_path: Path, gpu: FakeGpu) -> None:
    entry = placed(tmp_path / "models")
    (tmp_path / "there").mkdir()
    assert failure(entry, tmp_path / "there").endswith("exists; an engine is never overwritten")
    assert "no ONNX file in int8; it has fp32, fp16" in failure(entry, tmp_path / "into", "int8")
    assert "isn't the same model: output 'y'" in failure(placed(tmp_path / "off", off=1.0), tmp_path / "into")
    (entry / "model.fp32.onnx").write_bytes(b"else")
    assert "isn't the file that was written" in failure(entry, tmp_path / "into")


def test_a_device_without_room_leaves_nothing(tmp_path: Path, gpu: FakeGpu) -> None:
    gpu.capacity = 0
    assert "was built, and doesn't open: " in failure(placed(tmp_path / "models"), tmp_path / "cache" / "key")
    assert not (tmp_path / "cache").exists()


def test_without_a_gpu(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    status, _, err = ran("engine", placed(tmp_path), "--into", tmp_path / "into")
    assert status == 1
    assert "error: device cuda:0" in err
