"""What the index says of versions that can't be served, or not as one would think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.server.models import centred_model, place, tensor_entry, variant, write_manifest
from tests.server.running import running


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
