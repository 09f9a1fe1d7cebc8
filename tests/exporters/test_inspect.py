"""A manifest as a table, and its schema as docs/schemas has it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
from rich.console import Console

from exporters.inspect import manifest_table
from server.repository.manifest import Latency, json_schema, read_manifest
from tests.server.models import place_with_manifest

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "manifest.json"


def test_a_row_for_each_variant(tmp_path: Path) -> None:
    manifest = read_manifest(place_with_manifest(tmp_path, "net", ("fp32", "fp16")) / "1" / "manifest.json")
    timed = Latency(device="cpu", runtime="onnxruntime", threads=1, seconds={1: 0.0005, 8: 0.0031})
    first, second = manifest.variants
    manifest = manifest.model_copy(update={"variants": (first.model_copy(update={"latency": timed}), second)})
    out = io.StringIO()
    Console(file=out, width=140).print(manifest_table(manifest))
    header, _, *rows = [line.split("  ") for line in out.getvalue().splitlines() if line.strip()]
    assert "8 rows, ms" in " ".join(header)
    size = f"{first.size} bytes"
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["fp32 onnxruntime", "2", size, "1", "0.500", "3.100", "0.0e+00", "-", "8"],
        ["fp16 onnxruntime", "2", size, "1", "-", "-", "0.0e+00", "-", "8"],
    ]


def test_the_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text() == json_schema(), "run: python -m server.repository.manifest > docs/schemas/manifest.json"


def test_manifests_fit_the_schema(tmp_path: Path) -> None:
    path = place_with_manifest(tmp_path, "net") / "1" / "manifest.json"
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))
