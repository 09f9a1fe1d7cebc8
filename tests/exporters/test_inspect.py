"""A manifest as a table, and its schema as docs/schemas has it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
from rich.console import Console

from exporters.inspect import manifest_table
from server.repository.manifest import Latency, Manifest, Memory, json_schema, read_manifest
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
