"""What `make gpu-check` does around its checks, and the checks that a stand-in can bear; the proof itself takes a GPU."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cuda.bindings import runtime

from benchmarks import gpu_check, gpu_parts
from benchmarks.gpu_check import PARTS, main, missing, proof, run, write
from benchmarks.gpu_parts import CheckFailed
from server.backends.base import VariantSpec
from server.errors import DeviceLost
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu
from tests.server.control.test_engine_builds import EXPORTER


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


@pytest.mark.skipif(bool(runtime.cudaGetDeviceCount()[1]), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_takes(tmp_path: Path) -> None:
    said: list[str] = []
    assert main([], tmp_path / "proofs", said.append) == 1
    assert "nothing was proved: device cuda:0 can't be used: cudaError" in said[0]
    assert "needed: an NVIDIA GPU" in said[1]
    assert not (tmp_path / "proofs").exists()


def test_a_part_that_is_none(tmp_path: Path) -> None:
    said: list[str] = []
    assert main(["d"], tmp_path, said.append) == 2
    assert said == ["error: no part 'd'; expected a, b, c"]


def test_part_c_proves_itself_on_the_stand_in(tmp_path: Path, gpu: FakeGpu) -> None:
    """Building, running at all rows over two profiles, the refusal, and the file."""
    said: list[str] = []
    checks = {name: check for name, check in PARTS["c"].checks.items() if "onnxruntime" not in name and "server" not in name}
    part = replace(PARTS["c"], modules={}, checks=checks)
    lines, passed = run(part, gpu, said.append)
    assert passed, said
    assert "fp32 differs by 0.0e+00" in lines[0]
    assert "doesn't take this engine" in lines[1]
    text = write(part, gpu, lines, tmp_path).read_text()
    assert "Tesla T4, compute capability 7.5, 16384 MiB, driver for CUDA 13.0" in text
    assert text.count("\n1. ") == 2
    assert not gpu.held


def test_the_servers_build_proves_itself_on_the_stand_in(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command of tests/server/control, whose child has stand-ins too."""
    monkeypatch.setattr(gpu_parts, "COMMAND", EXPORTER)
    assert "fp32 differs by 0.0e+00" in gpu_parts.server_built_engine(gpu, tmp_path)
    monkeypatch.setattr(gpu_parts, "COMMAND", ("/bin/sh", "-c", "echo 'error: no memory'; exit 1"))
    with pytest.raises(CheckFailed, match="no memory"):
        gpu_parts.server_built_engine(gpu, tmp_path / "again")


def test_pinned_copies_on_the_stand_in(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "BLOCK", 1 << 16)
    assert "GB/s there and back" in gpu_parts.pinned_copies(gpu, tmp_path)
    monkeypatch.setattr(FakeGpu, "to_host", lambda *_: None)
    with pytest.raises(CheckFailed, match="isn't what was sent"):
        gpu_parts.pinned_copies(gpu, tmp_path)
    assert not gpu.held
    assert not gpu.streams


def test_a_failure_writes_no_proof_and_stops_nothing(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: object, folder: Path) -> str:
        raise DeviceLost("device cuda:0: cudaErrorAssert")

    part = replace(PARTS["a"], modules={}, checks={"one": fails, "two": lambda device, folder: "fine"})
    monkeypatch.setattr(gpu_check, "PARTS", {"a": part})
    said: list[str] = []
    assert main([], tmp_path / "proofs", said.append) == 1
    assert "FAILED: DeviceLost: device cuda:0: cudaErrorAssert" in said[1]
    assert said[2].endswith("fine")
    assert said[-1].strip() == "no proof is written"
    assert not (tmp_path / "proofs").exists()


def test_packages_that_are_not_there(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(PARTS["b"], modules={"no_such_module": "no-such-package", "no.such.child": "no-such-child", "numpy": "numpy"})
    assert missing(part) == ["no-such-package", "no-such-child"]
    monkeypatch.setattr(gpu_check, "PARTS", {"b": part})
    said: list[str] = []
    assert main(["b"], tmp_path, said.append) == 1
    assert said[1].strip() == "can't run: no-such-package, no-such-child isn't installed"


def test_answers_that_are_far_off_fail(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "CLOSE", {"fp32": -1.0})
    with pytest.raises(CheckFailed, match="fp32 differs by 0"):
        gpu_parts.tensorrt_engine(gpu, tmp_path)


def test_both_forms_of_the_network_are_one(tmp_path: Path) -> None:
    """The parts' own model: the traced file on the CPU answers as the ONNX file does."""
    spec = VariantSpec("check", "1", "fp32", "pytorch", gpu_parts._traced(tmp_path))
    onnx = VariantSpec("check", "1", "fp32", "onnxruntime", gpu_parts._network(tmp_path))
    with gpu_parts._opened(spec) as traced, gpu_parts._opened(onnx) as portable:
        assert gpu_parts._difference(traced, portable, 5) < 1e-5


def test_the_proof_is_dated(gpu: FakeGpu) -> None:
    text = proof(PARTS["b"], gpu, ["one (0.1 s): fine"], datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert text.startswith("# Proof on a GPU, part b: onnxruntime-gpu\n\n2026-01-02 03:04 UTC, Tesla T4")
    assert text.endswith("1. one (0.1 s): fine\n")
