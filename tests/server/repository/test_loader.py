from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.config import LaneDefaults, Settings
from server.errors import ModelDefect
from server.lanes.warmup import warm_up
from server.repository.declare.said import Loadable
from server.repository.loader import describe
from server.repository.store import Entry
from server.tensors import TensorSpec
from tests.server import models
from tests.server.models import place, place_with_manifest, tensor_entry, variant, write_manifest


def described(path: Path, version: str = "1", **lanes: Any) -> Loadable:
    settings = Settings(repository=path.parent, lanes=LaneDefaults(**lanes))
    return describe(Entry(path.name, path, (version,)), version, settings)


def defect(path: Path, version: str = "1", **lanes: Any) -> str:
    with pytest.raises(ModelDefect) as caught:
        described(path, version, **lanes)
    return str(caught.value)


def changed(path: Path, **changes: Any) -> Path:
    """An exported entry of one variant with `changes` to what the manifest says of it."""
    place_with_manifest(path.parent, path.name)
    write_manifest(path / "1", path.name, [{**variant(path / "1" / "model.fp32.onnx"), **changes}])
    return path


# Bare files


def test_a_bare_file_is_a_whole_model(tmp_path: Path) -> None:
    loadable = described(place(tmp_path, "m"))
    path = tmp_path / "m" / "1" / "model.onnx"
    assert loadable.spec == VariantSpec("m", "1", "fp32", "onnxruntime", path)
    assert loadable.manifest is None
    assert not loadable.trust_batch_axis


def test_where_it_runs(tmp_path: Path) -> None:
    place(tmp_path, "server")
    place(tmp_path, "own", yaml="lanes: {device: cuda:1, threads: 4}")
    ours, own = described(tmp_path / "server", device="cuda:0", threads=2).spec, described(tmp_path / "own", threads=2).spec
    assert (ours.device, ours.threads) == ("cuda:0", 2)
    assert (own.device, own.threads) == ("cuda:1", 4)


def test_model_yaml_says_more_of_a_bare_file(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", yaml="inputs: {x: {max_shape: [32, 8]}}\noutputs: {y: {labels: names.txt}}")
    (entry / "names.txt").write_text("a\nb\nc\nd\n")
    loadable = described(entry)
    assert loadable.spec.inputs == (TensorSpec("x", "FP32", (-1, 8), 0, (32, 8)),)
    assert loadable.spec.outputs == (TensorSpec("y", "FP32", (-1, 4), 0, labels=("a", "b", "c", "d")),)
    assert not loadable.trust_batch_axis


def test_what_isnt_said_is_left_to_the_file(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", models.two_inputs_model, yaml="inputs: {b: {max_shape: [8, 4]}}")
    assert described(entry).spec.inputs == (TensorSpec("b", "FP32", (-1, 4), 0, (8, 4)),)
    assert described(entry).spec.outputs == ()


def test_rows_that_model_yaml_vouches_for(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", models.sum_rows_model, yaml="outputs: {y: {batch_axis: null}}")
    loadable = described(entry)
    assert loadable.trust_batch_axis
    backend = backend_named("onnxruntime").open(loadable.spec)
    assert [tensor.batch_axis for tensor in (*backend.inputs, *backend.outputs)] == [0, None]
    assert warm_up(backend, (1, 4), trust_batch_axis=True).batched


def test_a_fixed_tensor_leaves_the_others_unbatched(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", models.sum_rows_model, yaml="inputs: {x: {max_shape: [8, 4]}}")
    backend = backend_named("onnxruntime").open(described(entry).spec)
    assert [tensor.batch_axis for tensor in (*backend.inputs, *backend.outputs)] == [None, None]


def test_a_shape_that_the_file_leaves_out(tmp_path: Path) -> None:
    def unshaped(path: Path) -> Path:
        outputs = [models.value("y", None)]
        return models.write_model(path, [helper.make_node("Relu", ["x"], ["y"])], [models.value("x", ["N", 4])], outputs)

    entry = place(tmp_path, "m", unshaped, yaml="outputs: {y: {labels: names.txt}}")
    (entry / "names.txt").write_text("a\nb\nc\nd")
    assert f"{entry / 'model.yaml'}: outputs.y: the file doesn't say its shape, so it must be given here" in defect(entry)
    (entry / "model.yaml").write_text("outputs: {y: {shape: [-1, 4], labels: names.txt}}")
    assert described(entry).spec.outputs == (TensorSpec("y", "FP32", (-1, 4), 0, labels=("a", "b", "c", "d")),)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("inputs: {z: {}}", "inputs.z: the model has none of this name; expected one of x"),
        ("outputs: {yy: {}}", "outputs.yy: the model has none of this name; did you mean 'y'?"),
        ("inputs: {x: {max_shape: [8]}}", "inputs.x: max_shape has 1 axes, the tensor 2"),
        ("inputs: {x: {shape: [], batch_axis: 0}}", "inputs.x: batch_axis 0 of a tensor without axes"),
        ("precision: {active: fp16}", "precision.active: 'fp16', but "),
        ("outputs: {y: {labels: ../names.txt}}", "outputs.y: labels: expected the name of a file beside model.yaml"),
        ("outputs: {y: {labels: none.txt}}", "none.txt: no such file"),
        ("outputs: {y: {labels: three.txt}}", "three.txt: 3 labels, but the last axis of 'y' is 4 long"),
        ("outputs: {y: {labels: binary}}", "binary: can't be read as text"),
        ("outputs: {y: {labels: large}}", "large: larger than"),
        ("outputs: {y: {labels: folder}}", "folder: not a file"),
        ("outputs: {y: {labels: link}}", "link: a link that leads out of the repository"),
        ("baching: {}", ":1: baching: unknown key 'baching'; did you mean 'batching'?"),
    ],
)
def test_model_yaml_that_does_not_fit(tmp_path: Path, yaml: str, message: str) -> None:
    entry = place(tmp_path / "models", "m", yaml=yaml)
    (entry / "three.txt").write_text("a\nb\nc")
    (entry / "binary").write_bytes(b"\xff\xfe\xff")
    (entry / "large").write_bytes(b"a\n" * (1 << 20))
    (entry / "folder").mkdir()
    (tmp_path / "outside").write_text("")
    (entry / "link").symlink_to(tmp_path / "outside")
    assert message in defect(entry)


def test_a_declared_shape_or_datatype_is_held_against_the_file(tmp_path: Path) -> None:
    for yaml in ("inputs: {x: {dtype: FP16}}", "inputs: {x: {shape: [-1, 9]}}"):
        with pytest.raises(ModelDefect, match=r"but the file has FP32 \[-1, 8\]"):
            backend_named("onnxruntime").open(described(place(tmp_path, "m", yaml=yaml)).spec)


# Files that can't be served


def test_a_missing_version(tmp_path: Path) -> None:
    entry = place(tmp_path, "m")
    assert defect(entry, "2") == f"{entry / '2'}: no such folder, so there is no version 2 of model 'm'"


def test_a_version_without_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    assert defect(tmp_path / "m") == f"{folder}: expected manifest.json (written by the exporter), model.onnx or model.pt2; found nothing"
    (folder / "model.fp16.onnx").write_bytes(b"")
    assert defect(tmp_path / "m").endswith("; found model.fp16.onnx")


def test_a_corrupt_file(tmp_path: Path) -> None:
    entry = place(tmp_path, "m")
    (entry / "1" / "model.onnx").write_bytes(b"corrupt")
    assert f"{entry / '1' / 'model.onnx'}: not an ONNX file" in defect(entry)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "m" / "1" / "model.onnx").mkdir(parents=True)
    assert defect(tmp_path / "m").endswith("model.onnx: not a file")


def test_a_link_inside_the_repository_is_followed(tmp_path: Path) -> None:
    place(tmp_path, "m")
    (tmp_path / "n" / "1").mkdir(parents=True)
    (tmp_path / "n" / "1" / "model.onnx").symlink_to(tmp_path / "m" / "1" / "model.onnx")
    assert described(tmp_path / "n").spec.path == tmp_path / "m" / "1" / "model.onnx"


def test_a_link_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    outside = models.linear_model(tmp_path / "outside.onnx")
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "1" / "model.onnx").symlink_to(outside)
    assert "a link that leads out of the repository" in defect(tmp_path / "models" / "m")


@pytest.mark.parametrize("location", ["../weights.bin", "../../outside.bin", "/etc/passwd", "link.bin"])
def test_external_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    entry = place(tmp_path, "m", lambda path: models.external_model(path, location))
    for place_of_weights in (entry / "weights.bin", tmp_path / "outside.bin"):
        np.eye(4, dtype=np.float32).tofile(place_of_weights)
    (entry / "1" / "link.bin").symlink_to("../weights.bin")
    assert f"{entry / '1' / 'model.onnx'}: its weights lie in '{location}'" in defect(entry)


def test_external_weights_beside_the_file_are_served(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", lambda path: models.external_model(path, "weights.bin"))
    np.eye(4, dtype=np.float32).tofile(entry / "1" / "weights.bin")
    backend = backend_named("onnxruntime").open(described(entry).spec)
    x = np.ones((2, 4), np.float32)
    assert backend.run({"x": x}, 2)["y"].tolist() == x.tolist()


# Exported models


def test_an_exported_model(tmp_path: Path) -> None:
    loadable = described(place_with_manifest(tmp_path, "m"))
    spec = loadable.spec
    assert (spec.precision, spec.backend, spec.optimization_level) == ("fp32", "onnxruntime", 2)
    assert spec.path == tmp_path / "m" / "1" / "model.fp32.onnx"
    assert spec.inputs == (TensorSpec("x", "FP32", (-1, 8)),)
    assert spec.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    assert loadable.manifest is not None
    assert loadable.trust_batch_axis
    assert backend_named("onnxruntime").open(spec).inputs == spec.inputs


@pytest.mark.parametrize(
    ("precisions", "asked", "chosen"),
    [
        (("fp16", "fp32"), None, "fp32"),
        (("int8", "fp16"), None, "int8"),
        (("fp32", "fp16"), "fp16", "fp16"),
    ],
)
def test_the_precision_is_chosen(tmp_path: Path, precisions: tuple[str, ...], asked: str | None, chosen: str) -> None:
    entry = place_with_manifest(tmp_path, "m", precisions)
    if asked:
        (entry / "model.yaml").write_text(f"precision: {{active: {asked}}}")
    assert described(entry).spec.path.name == f"model.{chosen}.onnx"


def test_a_precision_that_was_not_made(tmp_path: Path) -> None:
    entry = place_with_manifest(tmp_path, "m", ("fp32", "fp16"))
    (entry / "model.yaml").write_text("precision: {active: int8}")
    manifest = entry / "1" / "manifest.json"
    assert defect(entry) == f"{entry / 'model.yaml'}: precision.active: 'int8' isn't among those of {manifest}: fp32, fp16"


@pytest.mark.parametrize(
    ("changes", "device", "runs"),
    [
        ({"precision": "fp32", "target": "cpu"}, "cuda:0", True),
        ({"precision": "fp32", "target": "cuda"}, "cpu", True),
        ({"precision": "fp32", "target": "cuda", "optimization_level": 3}, "cpu", False),
        ({"precision": "fp16", "target": "cpu"}, "cuda:0", False),
        ({"precision": "int8", "target": "tensorrt"}, "cpu", False),
        ({"precision": "int8", "target": "tensorrt"}, "cuda:0", True),
        ({"precision": "int8", "target": "cpu"}, "cpu", True),
    ],
)
def test_a_variant_must_be_made_for_the_device(tmp_path: Path, changes: dict[str, Any], device: str, runs: bool) -> None:
    entry = changed(tmp_path / "m", **changes)
    if runs:
        assert described(entry, device=device).spec.device == device
    else:
        made = f"{changes['precision']} for {changes['target']}"
        assert f"made {made}, which device {device} doesn't run; export it for that target" in defect(entry, device=device)


def test_a_variant_for_the_device_is_preferred(tmp_path: Path) -> None:
    entry = place_with_manifest(tmp_path, "m", ("int8",))
    file = entry / "1" / "model.int8.onnx"
    other = models.linear_model(entry / "1" / "model.int8.tensorrt.onnx")
    write_manifest(entry / "1", "m", [variant(other, "int8", target="tensorrt"), variant(file, "int8", target="cpu")])
    (entry / "model.yaml").write_text("precision: {active: int8}")
    assert described(entry).spec.path == file


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = place_with_manifest(tmp_path, "m") / "1" / "model.fp32.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert defect(tmp_path / "m").startswith(f"{path}: {size - 1} bytes, not the {size} that manifest.json says")


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    path = place_with_manifest(tmp_path, "m") / "1" / "model.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert defect(tmp_path / "m").startswith(f"{path}: its sha256 is ")


def test_weights_that_no_hash_covers(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    file = models.external_model(folder / "model.fp32.onnx", "weights.bin")
    write_manifest(folder, "m", [variant(file)])
    assert defect(tmp_path / "m") == f"{file}: its weights lie in 'weights.bin', for which manifest.json has no hash"


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    path = place_with_manifest(tmp_path, "m") / "1" / "model.fp32.onnx"
    path.unlink()
    assert defect(tmp_path / "m") == f"{path}: no such file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": ".."}, "not a file"),
        ({"file": "../../other/1/model.onnx"}, "variants.0.file"),
        ({"sha256": "x"}, "variants.0.sha256"),
        ({"surprise": 1}, "variants.0.surprise"),
        ({"inputs": [tensor_entry("x", (-1, 8), "FLOAT")]}, "tensor 'x': unknown datatype 'FLOAT'"),
        ({"inputs": [tensor_entry("x", (-1, 8), batch_axis=1)]}, "tensor 'x': batch_axis 1 of the shape [-1, 8]; expected 0 or null"),
        ({"inputs": [tensor_entry("x", ())]}, "tensor 'x': batch_axis 0 of the shape []"),
        ({"inputs": [tensor_entry("x", (-2, 8))]}, "tensor 'x': shape [-2, 8]"),
        ({"inputs": [{**tensor_entry("x", (-1, 8)), "max_shape": [1]}]}, "tensor 'x': shape [-1, 8] and max_shape (1,) don't fit"),
    ],
)
def test_a_manifest_that_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in defect(changed(tmp_path / "m", **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"schema_version": 2}', b" " * (17 << 20)])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    entry = place_with_manifest(tmp_path, "m")
    (entry / "1" / "manifest.json").write_bytes(content)
    assert str(entry / "1" / "manifest.json") in defect(entry)


def test_model_yaml_says_more_than_the_manifest(tmp_path: Path) -> None:
    entry = place_with_manifest(tmp_path, "m")
    (entry / "model.yaml").write_text("inputs: {x: {max_shape: [16, 8]}}\nlanes: {threads: 3}")
    spec = described(entry).spec
    assert spec.inputs == (TensorSpec("x", "FP32", (-1, 8), 0, (16, 8)),)
    assert spec.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    (entry / "model.yaml").write_text("backend: other")
    assert f"backend: 'other', but {entry / '1' / 'manifest.json'} has 'onnxruntime' for fp32" in defect(entry)
    (entry / "model.yaml").write_text("inputs: {xs: {}}")
    assert "inputs.xs: the model has none of this name; did you mean 'x'?" in defect(entry)
