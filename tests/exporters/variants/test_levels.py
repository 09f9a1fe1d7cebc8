"""Levels 3 and 4 keep another graph only where it was measured to be faster, and say what they tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporters.draft import Candidate, Draft
from exporters.formats.to_onnx import check
from exporters.pipeline import export
from exporters.variants.levels import note_fallback, settle
from server.numerics import Distance
from tests.exporters.conftest import Remembers, Writer, plan, served
from tests.server.models import linear_model

BLOCK = """
import torch
from torch import nn

class make(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.norm = nn.Linear(16, 64), nn.Linear(64, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.b(nn.functional.gelu(self.a(x))))

def example():
    return {"x": torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))}
"""


def test_level_3_says_that_a_cnn_has_nothing_to_fuse(user: Path, reporter: Remembers) -> None:
    exported = export(plan(user, "Cnn", "image.npz", level=3), reporter)
    (variant,) = exported.manifest.variants
    assert variant.optimization_level == 2
    assert [tried.verdict for tried in variant.tried] == ["kept"]
    assert any("has nothing to fuse" in note for note in reporter.notes)
    assert any(note.startswith("level 3 gains nothing here") for note in reporter.notes)


def test_level_4_times_every_graph_and_keeps_one_that_holds(user: Path, written: Writer, reporter: Remembers) -> None:
    asked = plan(user, "Mlp", None, model=written(BLOCK), level=4, precisions=("fp32", "fp16"))
    exported = export(asked, reporter)
    fp32, fp16 = exported.manifest.variants
    assert [tried.optimization_level for tried in fp32.tried] == [1, 2, 3, 4]
    assert all(set(tried.seconds) == {1, 8, 32} for tried in fp32.tried)
    kept = [tried for tried in fp32.tried if tried.verdict == "kept"]
    assert [tried.optimization_level for tried in kept] == [fp32.optimization_level]
    assert all("holds its gate, at " in tried.verdict for tried in fp32.tried if tried not in kept)
    x = np.random.default_rng(1).normal(size=(3, 5, 16)).astype(np.float32)
    np.testing.assert_allclose(served(exported, {"x": x}, "fp16")["output_0"], served(exported, {"x": x}, "fp32")["output_0"], atol=0.02)
    assert fp16.parity.max_relative is not None


def test_for_a_device_that_is_not_here_the_fused_graph_is_kept_untimed(user: Path, written: Writer, reporter: Remembers) -> None:
    exported = export(plan(user, "Mlp", None, model=written(BLOCK), level=3, target="cuda", precisions=("fp32", "fp16")), reporter)
    for variant in exported.manifest.variants:
        assert (variant.optimization_level, variant.target, variant.latency) == (3, "cuda", None)
        assert "SkipLayerNormalization" in variant.operators
    assert exported.manifest.variants[0].tried[-1].verdict == "kept, though not timed: its device isn't here"


@pytest.fixture
def draft(user: Path, tmp_path: Path, reporter: Remembers) -> Draft:
    return Draft(plan(user, "Mlp", "features.npz", level=3, target="cuda"), tmp_path, reporter)


def candidate(folder: Path, level: int, *failures: str) -> Candidate:
    path = linear_model(folder / f"{level}.onnx")
    return Candidate("fp32", f"level {level}", level, path, check(path), {}, distances={"y": Distance()}, failures=list(failures))


def test_what_breaks_the_model_is_never_kept(draft: Draft, tmp_path: Path, reporter: Remembers) -> None:
    chosen = settle(draft, [candidate(tmp_path, 2), candidate(tmp_path, 3, "output 'y' differs")])
    assert chosen.level == 2
    assert [tried.verdict for tried in chosen.tried] == ["kept, though not timed: its device isn't here", "output 'y' differs"]
    note_fallback(draft, chosen)
    assert reporter.notes == ["level 3 gains nothing here (output 'y' differs): level 2 is kept"]
