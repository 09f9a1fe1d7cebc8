"""Which engine runs where, what is said of one that doesn't, and that ONNX is served meanwhile."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporters.commands.engine import Order, build_engine
from exporters.commands.entry import find_entry
from exporters.formats import trt_build
from exporters.formats.to_trt import profiles
from exporters.plan import EngineWish
from server.backends.nvidia.cuda import DeviceFacts
from server.backends.nvidia.folders import private_folder
from server.config import Engines, LaneDefaults, Settings
from server.errors import ModelDefect
from server.repository.devices.engines import EngineBuild, misfits
from server.repository.loader import Loadable, describe
from server.repository.manifest import Engine
from server.repository.store import Entry
from server.tensors import TensorSpec
from tests.nvidia import fake_tensorrt
from tests.nvidia.fake_gpu import T4, FakeGpu
from tests.server.models import linear_model, variant, write_manifest
from tests.server.repository.test_loader import described

A100 = DeviceFacts("NVIDIA A100-SXM4-40GB", "8.0", "13.0", 40 << 30)
SHAPES = [profiles((TensorSpec("x", "FP32", (-1, 8), 0),), 16, 64)]
HERE = "10.16.1.11"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    return gpu


@pytest.fixture
def built(tmp_path: Path, gpu: FakeGpu) -> Engine:
    return trt_build.build(linear_model(tmp_path / "m.onnx"), SHAPES, trt_build.Settings(), gpu, lambda text: None).facts


def entry(repository: Path, device: FakeGpu, yaml: str = "", **changes: Any) -> Path:
    """A model with ONNX and an engine of it, whose facts are changed."""
    folder = repository / "net" / "1"
    file, plan = linear_model(folder / "model.fp32.onnx"), folder / "model.fp32.plan"
    found = trt_build.build(file, SHAPES, trt_build.Settings(), device, lambda text: None)
    plan.write_bytes(found.plan)
    engine = found.facts.model_copy(update=changes).model_dump(mode="json")
    write_manifest(folder, "net", [variant(file), variant(plan, backend="trt", target="tensorrt", engine=engine)])
    (folder.parent / "model.yaml").write_text(yaml)
    return repository


def served(repository: Path, device: str = "cuda:0") -> Loadable:
    return described(repository / "net", device=device)


def test_an_engine_that_fits_is_served(tmp_path: Path, gpu: FakeGpu) -> None:
    found = served(entry(tmp_path, gpu))
    assert (found.spec.backend, found.spec.path.name, found.note) == ("trt", "model.fp32.plan", "")
    assert found.spec.options == {"version_compatible": False}
    assert [spec.name for spec in (*found.spec.inputs, *found.spec.outputs)] == ["x", "y"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute_capability": "8.0", "gpu": "NVIDIA A100"}, "compute capability 8.0 (NVIDIA A100), and this is 7.5 (Tesla T4)"),
        ({"tensorrt": "10.13.2.6"}, "model.fp32.plan was built by TensorRT 10.13.2.6, and this is 10.16.1.11"),
    ],
)
def test_one_that_does_not_is_said_and_onnx_served(tmp_path: Path, gpu: FakeGpu, changes: dict[str, str], said: str) -> None:
    found = served(entry(tmp_path, gpu, **changes))
    assert (found.spec.backend, found.spec.path.name) == ("onnxruntime", "model.fp32.onnx")
    assert "served as ONNX, because no engine fits cuda:0" in found.note
    assert said in found.note


def test_rows_that_it_was_not_built_for(tmp_path: Path, gpu: FakeGpu) -> None:
    found = served(entry(tmp_path, gpu, "batching: {max_rows: 128}"))
    assert found.spec.backend == "onnxruntime"
    assert "takes up to 64 rows, and batching.max_rows is 128" in found.note


def test_model_yaml_may_insist(tmp_path: Path, gpu: FakeGpu) -> None:
    assert served(entry(tmp_path / "a", gpu, "backend: onnxruntime")).spec.backend == "onnxruntime"
    assert served(entry(tmp_path / "b", gpu, "backend: trt")).spec.backend == "trt"
    with pytest.raises(ModelDefect, match=r"model.yaml: backend: 'trt': served as ONNX, because no engine fits"):
        served(entry(tmp_path / "c", gpu, "backend: trt", tensorrt="10.13.2.6"))


def test_without_tensorrt_onnx_is_served(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = entry(tmp_path, gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = served(repository)
    assert found.spec.backend == "onnxruntime"
    assert "its engine can't run: TensorRT can't be imported" in found.note


def test_on_a_cpu_no_gpu_is_asked(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = entry(tmp_path, gpu)
    monkeypatch.setattr("server.backends.nvidia.cuda.CudaGpu", None)
    assert (served(repository, "cpu").spec.backend, served(repository, "cpu").note) == ("onnxruntime", "")


def test_another_gpu_of_one_capability_takes_it(built: Engine) -> None:
    assert list(misfits(built, replace(T4, name="Quadro RTX 5000"), HERE, 64)) == []
    assert len(list(misfits(built, A100, "11.4.0.106", 65))) == 3


@pytest.mark.parametrize(("here", "fits"), [("10.16.1.11", True), ("10.17.0.1", True), ("11.4.0.106", True), ("10.15.1.29", False)])
def test_a_version_compatible_engine_runs_on_later_ones(built: Engine, here: str, fits: bool) -> None:
    engine = built.model_copy(update={"version_compatible": True})
    assert (list(misfits(engine, T4, here, 1)) == []) is fits
    assert (list(misfits(built, T4, here, 1)) == []) is (here == HERE)


# Engines that were built here


def missing(repository: Path, gpu: FakeGpu) -> tuple[Path, EngineBuild]:
    """An entry whose engine doesn't fit, and what is to be built for it."""
    entry(repository, gpu, tensorrt="10.13.2.6")
    build = asked(repository, repository / "cache", build=True).build
    assert build is not None
    return repository, build


def asked(repository: Path, cache: Path, yaml: str | None = None, **engines: Any) -> Loadable:
    if yaml is not None:
        (repository / "net" / "model.yaml").write_text(yaml)
    settings = Settings(repository=repository, lanes=LaneDefaults(device="cuda:0"), engines=Engines(cache=cache, **engines))
    return describe(Entry("net", repository / "net", ("1",)), "1", settings)


def build_here(gpu: FakeGpu, ordered: EngineBuild) -> None:
    """What `tidegate export engine` leaves."""
    order = Order(find_entry(ordered.folder), ordered.precision, ordered.into, EngineWish(most_rows=ordered.most_rows))
    for folder in (ordered.into.parents[1], ordered.into.parent):
        private_folder(folder)
    build_engine(order, lambda text: None)


def test_one_that_was_built_here_is_served(tmp_path: Path, gpu: FakeGpu) -> None:
    """Also where nothing may be built any more."""
    repository, build = missing(tmp_path, gpu)
    assert (build.folder, build.precision, build.device, build.most_rows) == (repository / "net" / "1", "fp32", "cuda:0", 64)
    build_here(gpu, build)
    found = asked(repository, tmp_path / "cache")
    assert (found.spec.backend, found.spec.path, found.note, found.build) == ("trt", build.into / "model.fp32.plan", "", None)


def test_what_an_engine_depends_on_has_it_built_anew(tmp_path: Path, gpu: FakeGpu) -> None:
    repository, build = missing(tmp_path, gpu)
    build_here(gpu, build)
    gpu.device = replace(T4, driver="13.1")
    other = asked(repository, tmp_path / "cache", build=True)
    assert other.spec.backend == "onnxruntime"
    assert other.build is not None
    assert other.build.into != build.into
    gpu.device = T4
    more = asked(repository, tmp_path / "cache", "batching: {max_rows: 128}", build=True)
    assert more.build is not None
    assert more.build.most_rows == 128


@pytest.mark.parametrize("harm", ["changed", "no manifest", "others write"])
def test_one_that_was_tampered_with_is_neither_served_nor_built_over(tmp_path: Path, gpu: FakeGpu, harm: str) -> None:
    repository, build = missing(tmp_path, gpu)
    build_here(gpu, build)
    if harm == "changed":
        (build.into / "model.fp32.plan").write_bytes(b"else")
    elif harm == "no manifest":
        (build.into / "manifest.json").unlink()
    else:
        build.into.chmod(0o777)
    found = asked(repository, tmp_path / "cache", build=True)
    assert (found.spec.backend, found.build) == ("onnxruntime", None)
    assert "that was built here" in found.note
    assert found.note.endswith(f"remove {build.into.name} from the cache")


def test_an_entry_for_tensorrt_without_an_engine_gets_one(tmp_path: Path, gpu: FakeGpu) -> None:
    """It was exported where there was no GPU."""
    folder = tmp_path / "net" / "1"
    file = linear_model(folder / "model.fp32.onnx")
    write_manifest(folder, "net", [variant(file, target="tensorrt")])
    found = asked(tmp_path, tmp_path / "cache", build=True)
    assert found.build is not None
    assert found.note == "served as ONNX until its engine is there; one is built here now"
    assert asked(tmp_path, tmp_path / "cache").note == ""
    write_manifest(folder, "net", [variant(file)])
    assert asked(tmp_path, tmp_path / "cache", build=True).build is None  # nobody asked for TensorRT


def test_without_a_gpu_nothing_is_built(tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, _ = missing(tmp_path, gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert asked(repository, tmp_path / "cache", build=True).build is None
