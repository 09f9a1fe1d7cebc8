"""What the index says of versions that can't be served, or not as one would think."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.models import centred_model, place, place_with_manifest, tensor_entry, variant, write_manifest
from tests.server.running import infer_json, running, wire


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three that can't be served, below a folder whose name nobody else needs to know."""
    root = tmp_path / "secret" / "models"
    place(root, "corrupt")
    (root / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    place(root, "models", yaml="batching: {max_row: 3}")
    place_with_manifest(root, "cut")
    (root / "cut" / "1" / "model.fp32.onnx").write_bytes(b"")
    return root


REASONS = {
    "corrupt": "corrupt/1/model.onnx: ",
    "cut": "cut/1/model.fp32.onnx: 0 bytes",
    "models": "models/model.yaml:1: batching.max_row: unknown key 'max_row'",
}


@pytest.mark.parametrize("spelled", ["absolute", "relative", "a link", "here"])
async def test_reasons_are_told_from_the_repository_on(
    repository: Path, spelled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository.parent / "link").symlink_to(repository)
    monkeypatch.chdir(repository if spelled == "here" else repository.parent)
    given = {"absolute": repository, "relative": Path("models"), "a link": Path("link"), "here": Path()}[spelled]
    async with running(given) as app, wire(app) as connection:
        rows = {row.name: row for row in app.control.index()}
        assert rows.keys() == REASONS.keys()
        for name, reason in REASONS.items():
            assert rows[name].reason.startswith(reason)
            answer = await connection.ask(infer_json(name, np.zeros((1, 8), np.float32)))
            assert answer.status == 503
            assert f"({reason}" in answer.json()["error"]
            assert "secret" not in answer.json()["error"] + rows[name].reason
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    whole = {line["model"]: line["reason"] for line in logged if line["event"] == "model_unavailable"}
    assert whole["corrupt"].startswith(f"{repository}/corrupt/1/model.onnx: ")


async def test_why_a_model_is_not_batched_is_the_exporters_reason(tmp_path: Path) -> None:
    folder = tmp_path / "centred" / "1"
    file = centred_model(folder / "model.fp32.onnx")
    tensors: dict[str, Any] = {
        "inputs": [tensor_entry("x", (-1, 4), batch_axis=None)],
        "outputs": [tensor_entry("y", (-1, 4), batch_axis=None)],
    }
    write_manifest(folder, "centred", [variant(file, **tensors)], unbatched="output 'y' of a row changes with the other rows of its batch")
    place(tmp_path, "bare", centred_model)
    async with running(tmp_path) as app:
        reasons = {row.name: row.reason for row in app.control.index()}
    assert reasons["centred"] == "served unbatched: output 'y' of a row changes with the other rows of its batch"
    assert reasons["bare"].startswith("served unbatched: ")
