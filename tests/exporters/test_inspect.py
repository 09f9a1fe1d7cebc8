"""A manifest as a table, and its schema as docs/schemas has it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
from rich.console import Console

from exporters.inspect import manifest_lines, manifest_table
from server.repository.manifest import Bounds, Engine, Latency, Manifest, Memory, json_schema, read_manifest
from tests.server.models import place_with_manifest

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "manifest.json"


def test_a_row_for_each_variant(tmp_path: Path) -> None:
    manifest = read_manifest(place_with_manifest(tmp_path, "net", ("fp32", "fp16")) / "1" / "manifest.json")
    first, second = manifest.variants
    timed = Latency(device="cpu", runtime="onnxruntime", threads=1, seconds={1: 0.0005, 8: 0.0031, 32: 0.25})
    scored = first.parity.model_copy(update={"top1_disagreement": 0.0, "top1_upper95": 0.012})
    first = first.model_copy(update={"latency": timed, "parity": scored})
    cast = second.model_copy(update={"latency": timed.model_copy(update={"seconds": {1: 0.001, 8: 0.0062, 32: 0.5}})})
    closer = cast.parity.model_copy(update={"cosine_mean": 0.99996})
    both = manifest.model_copy(update={"variants": (first, cast.model_copy(update={"parity": closer}))})
    size = f"{first.size} bytes".split()
    alone = printed(manifest.model_copy(update={"variants": (first,)}))
    assert alone[1] == ["variant", "level", "size", "nodes", "1/8/32", "rows", "by", "differs"]
    assert alone[3] == ["fp32", "2", *size, "1", "0.500", "3.10", "250", "0.0e+00", "0.0%", "≤", "1.2%"]
    together = printed(both)
    assert together[1] == ["variant", "level", "size", "nodes", "1/8/32", "rows", "speed", "by", "cosine", "differs"]
    assert together[3] == ["fp32", "2", *size, "1", "0.500", "3.10", "250", "1.00×", "0.0e+00", "-", "≤", "1.2%"]
    assert together[4] == ["fp16", "2", *size, "1", "1.00", "6.20", "500", "0.50×", "0.0e+00", "0.9999", "-"]
    held = manifest.model_copy(update={"variants": (first.model_copy(update={"memory": Memory(rows=32, bare=40, peak=90500000)}), cast)})
    assert [line[7:9] for line in printed(held)[3:5]] == [["250", "90.5"], ["500", "-"]]
    assert printed(manifest)[4] == ["fp16", "2", *size, "1", "-", "0.0e+00", "-", "-"]


def printed(manifest: Manifest) -> list[list[str]]:
    """The table's lines, in words, as a terminal of 100 columns shows it."""
    out = io.StringIO()
    Console(file=out, width=100).print(manifest_table(manifest))
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


def test_the_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text() == json_schema(), "run: python -m server.repository.manifest > docs/schemas/manifest.json"


def test_manifests_fit_the_schema(tmp_path: Path) -> None:
    path = place_with_manifest(tmp_path, "net") / "1" / "manifest.json"
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))


def test_what_is_for_a_gpu_and_was_not_proved_there_is_called_so(tmp_path: Path) -> None:
    manifest = read_manifest(place_with_manifest(tmp_path, "net", ("fp32", "fp16")) / "1" / "manifest.json")
    first, second = manifest.variants
    cast = second.model_copy(update={"target": "cuda"})
    lines = manifest_lines(manifest.model_copy(update={"variants": (first, cast)}))
    assert [line for line in lines if "unproven" in line] == ["  unproven on a GPU: cuda's own kernels may answer otherwise"]


def test_an_engine_says_where_it_runs(tmp_path: Path) -> None:
    manifest = read_manifest(place_with_manifest(tmp_path, "net") / "1" / "manifest.json")
    spans = tuple({"x": Bounds(least=(least, 8), likely=(most, 8), greatest=(most, 8))} for least, most in ((1, 8), (9, 64)))
    engine = Engine(
        tensorrt="10.16.1.11",
        gpu="Tesla T4",
        compute_capability="7.5",
        driver="13.0",
        builder_level=3,
        profiles=spans,
        onnx_sha256="ab" * 32,
        build_seconds=61.5,
    )
    built = manifest.variants[0].model_copy(update={"engine": engine, "backend": "trt", "target": "tensorrt"})
    lines = manifest_lines(manifest.model_copy(update={"variants": (built,)}))
    assert "  for compute capability 7.5, built on Tesla T4 in 61.5 s; TensorRT 10.16.1.11 alone, a driver for CUDA 13.0" in lines
    assert "  takes 1 to 8, 9 to 64 rows, at builder level 3, from ONNX abababababab" in lines
    assert not [line for line in lines if "unproven" in line]
