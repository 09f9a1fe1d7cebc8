"""Weights that lie beside their ONNX file: where they are put, what follows them, and whole exports with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.commands.diff import differences
from exporters.commands.entry import find_entry
from exporters.commands.verify import verify
from exporters.disk import onnx_files as files
from exporters.inspect import manifest_lines
from exporters.pipeline import export
from exporters.plan import ExportError, ModelRef, PlanError, parse_external_data
from exporters.resume import Finished
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.config import Settings
from server.errors import ModelDefect
from server.repository.loader import describe
from server.repository.manifest import file_sha256
from server.repository.store import Entry
from tests.exporters.conftest import Remembers, plan, served
from tests.server.models import linear_model

LARGE = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(4, 200), nn.Linear(200, 64)

    def forward(self, features):
        return self.b(torch.tanh(self.a(features)))
"""


@pytest.fixture
def wide(user: Path) -> ModelRef:
    (user / "wide.py").write_text(LARGE)
    return ModelRef("wide.py:Wide", "Wide", (user,), file=user / "wide.py")


def answer(path: Path, rows: int = 3) -> np.ndarray:
    backend = backend_named("onnxruntime").open(VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1))
    x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    return np.array(backend.run({"x": x}, rows)["y"])


def outside(path: Path, location: str) -> Path:
    """A linear model whose weights lie at `location`."""
    model = onnx.load(linear_model(path))
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_few_bytes_stay_in_the_file_and_more_lie_beside_it(tmp_path: Path) -> None:
    path = linear_model(tmp_path / "m.onnx")
    before, wanted = path.read_bytes(), answer(path)
    files.settle(path, tmp_path, files.MOST_INLINE)
    assert (path.read_bytes(), files.is_split(path)) == (before, False)
    model = files.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "more"))
    onnx.save(model, path)
    files.settle(path, tmp_path, 1000)
    assert files.is_split(path)
    assert files.size_of(path) == path.stat().st_size + files.data_of(path).stat().st_size > 4000
    assert [len(tensor.raw_data) for tensor in files.outline(path).graph.initializer if tensor.name == "more"] == [0]
    np.testing.assert_array_equal(answer(path), wanted)
    again = path.read_bytes()
    files.settle(path, tmp_path, files.MOST_INLINE)  # what is settled stays
    assert path.read_bytes() == again


def test_many_files_become_one_and_the_others_go(tmp_path: Path) -> None:
    path = linear_model(tmp_path / "m.onnx")
    wanted = answer(path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(list(tmp_path.iterdir())) > 2
    files.settle(path, tmp_path, files.MOST_INLINE)
    assert {part.name for part in tmp_path.iterdir()} <= {"m.onnx", "m.onnx.data"}
    np.testing.assert_array_equal(answer(path), wanted)


@pytest.mark.parametrize("move", [False, True])
def test_whoever_moves_the_file_moves_its_weights(tmp_path: Path, move: bool) -> None:
    path = outside(tmp_path / "m.onnx", "m.onnx.data")
    wanted = answer(path)
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "other.onnx"
    files.place(path, target, move=move)
    assert {part.name for part in target.parent.iterdir()} == {"other.onnx", "other.onnx.data"}
    assert files.is_split(path) != move
    np.testing.assert_array_equal(answer(target), wanted)


def test_a_finished_step_is_kept_with_its_weights(tmp_path: Path) -> None:
    source = outside(tmp_path / "m.onnx", "m.onnx.data")
    finished, wanted = Finished(tmp_path / "home"), answer(source)
    made: list[Path] = []

    def make(target: Path) -> Callable[[], None]:
        def copy() -> None:
            files.place(source, target)
            made.append(target)

        return copy

    for name in ("one", "two"):
        target = tmp_path / f"{name}.onnx"
        assert finished.file(target, source, ("copy",), make(target)) == (name == "two")
        np.testing.assert_array_equal(answer(target), wanted)
    content = bytearray(files.data_of(source).read_bytes())
    content[0] ^= 1
    files.data_of(source).write_bytes(bytes(content))
    assert not finished.file(tmp_path / "three.onnx", source, ("copy",), make(tmp_path / "three.onnx"))  # other weights, another file
    assert len(made) == 2


@pytest.mark.parametrize("level", [0, 2, 4])
def test_every_precision_has_its_weights_beside_it(user: Path, reporter: Remembers, wide: ModelRef, level: int) -> None:
    given = plan(user, "", "features.npz", model=wide, precisions=("fp32", "fp16", "int8"), external_data=1000, level=level)
    exported = export(given, reporter)
    assert exported.entry is not None
    names = {"model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx"}
    assert names <= {part.name for part in exported.entry.iterdir()}
    x = np.load(user / "features.npz")["features"]
    wanted = served(exported, {"features": x}, "fp32")["output_0"]
    for variant in exported.manifest.variants:
        assert variant.data is not None
        beside = exported.entry / variant.data.file
        assert beside.name == f"{variant.file}.data"
        assert (variant.data.size, variant.data.sha256) == (beside.stat().st_size, file_sha256(beside))
        np.testing.assert_allclose(served(exported, {"features": x}, variant.precision)["output_0"], wanted, atol=0.1)
    sizes = {variant.precision: variant.bytes for variant in exported.manifest.variants}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert [one.faults for one in verify(find_entry(exported.entry))] == [[], [], []]
    assert any("its weights lie in model.int8.onnx.data" in line for line in manifest_lines(exported.manifest))


def test_one_file_and_its_weights(user: Path, reporter: Remembers, wide: ModelRef) -> None:
    changes = {"model": wide, "external_data": 1000, "output": user / "out.onnx"}
    exported = export(plan(user, "", "features.npz", **changes), reporter)  # an entry and a file: each has its own names
    assert exported.entry is not None
    assert {part.name for part in user.iterdir() if part.name.startswith("out")} == {"out.onnx", "out.onnx.data", "out.onnx.manifest.json"}
    for path in (user / "out.onnx", exported.entry):
        assert [one.faults for one in verify(find_entry(path))] == [[]]
    both = [find_entry(path).manifest for path in (user / "out.onnx", exported.entry)]
    assert "fp32 weights beside it" not in [found.what for found in differences(*both)]


def test_a_file_whose_weights_lie_outside_is_taken(user: Path, reporter: Remembers) -> None:
    (user / "given").mkdir()
    path = outside(user / "given" / "m.onnx", "weights.bin")
    ref = ModelRef("m.onnx", "", (), onnx=path)
    exported = export(plan(user, "", None, model=ref), reporter)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(served(exported, {"x": x})["y"], answer(path), atol=1e-6)
    (user / "given" / "weights.bin").unlink()
    with pytest.raises(ExportError, match=re.escape("m.onnx")):
        export(plan(user, "", None, model=ref), reporter)


def test_the_server_holds_the_weights_to_their_hash(user: Path, reporter: Remembers, wide: ModelRef) -> None:
    exported = export(plan(user, "", "features.npz", model=wide, external_data=1000), reporter)
    assert exported.entry is not None
    model, version = exported.entry.parent, exported.entry.name
    beside = exported.entry / "model.fp32.onnx.data"
    content = bytearray(beside.read_bytes())

    def defect() -> str:
        with pytest.raises(ModelDefect) as caught:
            describe(Entry(model.name, model, (version,)), version, Settings(repository=model.parent))
        return str(caught.value)

    content[5] ^= 1
    beside.write_bytes(bytes(content))
    assert defect().startswith(f"{beside}: its sha256 is")
    (found,) = verify(find_entry(exported.entry))
    assert found.faults == ["model.fp32.onnx.data isn't the file that was written: its SHA-256 differs"]
    beside.write_bytes(bytes(content[:-1]))
    assert f"{beside}: {len(content) - 1} bytes, not the {len(content)}" in defect()
    kept = beside.rename(user / "elsewhere.data")
    assert "and there is no such file" in defect()
    beside.symlink_to(kept)
    assert "which is reached over the link" in defect()


def test_a_manifest_that_has_no_hash_of_them(user: Path, reporter: Remembers, wide: ModelRef) -> None:
    exported = export(plan(user, "", "features.npz", model=wide, external_data=1000), reporter)
    assert exported.entry is not None
    variant = exported.manifest.variants[0].model_copy(update={"data": None})
    (exported.entry / "manifest.json").write_text(exported.manifest.model_copy(update={"variants": (variant,)}).model_dump_json())
    with pytest.raises(ModelDefect, match=r"for which manifest\.json has no hash"):
        served(exported, {})


def test_the_option() -> None:
    assert parse_external_data(None) == parse_external_data("4GiB") == files.MOST_INLINE
    assert parse_external_data("512MiB") == 512 << 20
    with pytest.raises(PlanError, match="--external-data much: expected a size, as in 512MiB"):
        parse_external_data("much")
