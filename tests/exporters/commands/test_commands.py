"""inspect, verify and diff, on entries of small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from exporters.cli import app
from exporters.commands.diff import differences
from exporters.commands.entry import find_entry
from exporters.commands.verify import Verified, verify
from exporters.parity import kept
from exporters.plan import ExportError
from exporters.sources.pytorch import Sample
from server.repository.manifest import file_sha256
from tests.server.models import linear_model, linear_weights, place_with_manifest, variant, write_manifest


def samples(off: float = 0.0) -> list[Sample]:
    weight, bias = linear_weights()
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(rows, 8)).astype(np.float32) for rows in (1, 5, 8)]
    return [Sample(len(x), {"x": x}, {"y": x @ weight + bias + np.float32(off)}) for x in batches]


def placed(folder: Path, off: float | None = 0.0, **changes: Any) -> Path:
    """An entry in two precisions, with rows to verify it by unless `off` is None; the rows' answers are `off` by as much."""
    model = place_with_manifest(folder, "net", ("fp32", "fp16"))
    entry = model / "1"
    if off is not None:
        rows = kept.keep(samples(off), entry / kept.NAME)
        changes["reference"] = {"file": kept.NAME, "sha256": file_sha256(entry / kept.NAME), "rows": rows}
    tensors = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    variants = [variant(entry / f"model.{precision}.onnx", precision, **tensors) for precision in ("fp32", "fp16")]
    write_manifest(entry, "net", variants, **changes)
    return entry


def faults(found: list[Verified]) -> list[str]:
    return ["; ".join(one.faults) for one in found]


def ran(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_an_entry_that_is_as_it_was_holds(tmp_path: Path) -> None:
    entry = placed(tmp_path)
    found = verify(find_entry(entry))
    assert faults(found) == ["", ""]
    assert [one.rows for one in found] == [14, 14]
    assert all(one.distance is not None and one.distance.max_abs < 1e-5 and set(one.seconds) == {1, 8, 32} for one in found)
    status, out, _ = ran("verify", tmp_path / "net")
    assert status == 0
    assert out.count("holds") == 2


def test_answers_that_are_not_what_they_were(tmp_path: Path) -> None:
    found = verify(find_entry(placed(tmp_path, off=0.5)))
    assert all("output 'y' differs from the reference by up to 0.5" in fault for fault in faults(found))
    assert ran("verify", tmp_path / "net")[0] == 1


def test_files_that_are_not_what_was_written(tmp_path: Path) -> None:
    entry = placed(tmp_path)
    (entry / "model.fp16.onnx").unlink()
    model = entry / "model.fp32.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole + b" ")
    assert faults(verify(find_entry(entry))) == [
        f"model.fp32.onnx is {len(whole) + 1:,} bytes, not {len(whole):,}",
        "model.fp16.onnx isn't there",
    ]
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert faults(verify(find_entry(entry)))[0] == "model.fp32.onnx isn't the file that was written: its SHA-256 differs"


def test_a_file_that_does_not_open(tmp_path: Path) -> None:
    entry = placed(tmp_path)
    (entry / "model.fp16.onnx").write_bytes(b"not a model")
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["variants"][1] |= {"size": 11, "sha256": file_sha256(entry / "model.fp16.onnx")}
    (entry / "manifest.json").write_text(json.dumps(manifest))
    first, second = faults(verify(find_entry(entry)))
    assert first == ""
    assert second.startswith("doesn't open here: ")


def test_without_rows_fp32_is_the_reference(tmp_path: Path) -> None:
    found = verify(find_entry(placed(tmp_path, off=None)))
    assert faults(found) == ["", ""]
    assert [one.rows for one in found] == [6, 6]


def test_with_nothing_to_prove_it_by_it_opens(tmp_path: Path) -> None:
    output = linear_model(tmp_path / "m.onnx")
    write_manifest(tmp_path, "m", [variant(output)]).rename(tmp_path / "m.onnx.manifest.json")
    status, out, _ = ran("verify", output)
    assert status == 0
    assert "opens; nothing to" in out


def test_rows_that_are_not_what_was_written(tmp_path: Path) -> None:
    entry = placed(tmp_path)
    (entry / kept.NAME).write_bytes(b"")
    status, _, err = ran("verify", entry)
    assert status == 1
    assert "isn't the file that was written" in err


def test_only_as_many_rows_stay_as_fit(tmp_path: Path) -> None:
    many = [Sample(32, {"x": np.zeros((32, 8), np.float32)}, {"y": np.zeros((32, 4), np.float32)})] * 4
    assert kept.keep(many, tmp_path / "k.npz") == 64
    assert [sample.rows for sample in kept.kept(tmp_path / "k.npz")] == [32, 32]
    large = [Sample(1, {"x": np.zeros((1, 2 << 20), np.float32)}, {"y": np.zeros((1, 1), np.float32)})] * 2
    assert kept.keep(large, tmp_path / "k.npz") == 1
    (tmp_path / "k.npz").write_bytes(b"PK no archive")
    with pytest.raises(ExportError, match="its reference rows can't be read"):
        list(kept.kept(tmp_path / "k.npz"))


def test_what_two_entries_differ_in(tmp_path: Path) -> None:
    a, b = find_entry(placed(tmp_path / "a")).manifest, find_entry(placed(tmp_path / "b", tools={"torch": "3"})).manifest
    assert [(part.what, part.a, part.b) for part in differences(a, b)] == [("tool torch", a.tools["torch"], "3")]
    assert differences(a, a) == []
    first = b.model_copy(update={"variants": b.variants[:1]})
    assert ("fp16", "there", "-") in [(part.what, part.a, part.b) for part in differences(a, first)]
    assert ran("diff", tmp_path / "a" / "net", tmp_path / "a" / "net") == (0, "", "")
    status, out, _ = ran("diff", tmp_path / "a" / "net", tmp_path / "b" / "net")
    assert status == 1
    assert "tool torch" in out


def test_only_other_times_are_no_difference_that_counts(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.001), ("b", 0.002)):
        entry = placed(tmp_path / name)
        manifest = json.loads((entry / "manifest.json").read_text())
        manifest["variants"][0]["latency"] = {"device": "cpu", "runtime": "onnxruntime", "threads": 1, "seconds": {"1": seconds}}
        (entry / "manifest.json").write_text(json.dumps(manifest))
    status, out, _ = ran("diff", tmp_path / "a" / "net", tmp_path / "b" / "net")
    assert status == 0
    assert "ms at 1 rows" in out


def test_inspect_says_how_each_was_made(tmp_path: Path) -> None:
    placed(tmp_path)
    status, out, _ = ran("inspect", tmp_path / "net")
    assert status == 0
    assert "net: nets.py:Net (pytorch), 2026-01-01T00:00:00Z" in out
    assert "fp16: made; for cpu, onnxruntime, opset 17; model.fp16.onnx" in out


def test_the_highest_version_is_taken(tmp_path: Path) -> None:
    placed(tmp_path)
    (tmp_path / "net" / "10").mkdir()
    assert find_entry(tmp_path / "net").path == tmp_path / "net" / "1" / "manifest.json"
    (tmp_path / "net" / "1").rename(tmp_path / "net" / "9")
    place_with_manifest(tmp_path, "net", ("fp32",), version="10")
    assert find_entry(tmp_path / "net").folder.name == "10"
    status, _, err = ran("inspect", tmp_path / "none")
    assert status == 1
    assert "no manifest there; expected an entry's folder" in err
