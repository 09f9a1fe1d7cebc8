"""Several precisions of one model: each is proved, and the entry serves each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters.formats.to_trt import faults
from exporters.pipeline import Exported, export
from exporters.plan import GATES, ExportError, Gate
from server.repository.manifest import file_sha256, read_manifest
from tests.exporters.conftest import Remembers, Writer, plan, served, write_user

PRECISIONS = ("fp32", "fp16", "int8")
IMAGES = np.random.default_rng(5).random((6, 1, 8, 8), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_user(tmp_path_factory.mktemp("variants") / "user")


@pytest.fixture(scope="module")
def told() -> Remembers:
    return Remembers()


@pytest.fixture(scope="module")
def exported(folder: Path, told: Remembers) -> Exported:
    """A small CNN in every precision."""
    rng = np.random.default_rng(6)
    np.savez(folder / "calibration.npz", image=rng.random((20, 1, 8, 8), np.float32))
    np.savez(folder / "labelled.npz", image=rng.random((30, 1, 8, 8), np.float32), labels=rng.integers(0, 10, 30))
    rows = {"calibration": folder / "calibration.npz", "evaluation": folder / "labelled.npz"}
    return export(plan(folder, "Cnn", "image.npz", precisions=PRECISIONS, **rows), told)


def test_the_entry_holds_a_file_and_a_proof_for_each(exported: Exported, told: Remembers) -> None:
    assert exported.entry is not None
    assert read_manifest(exported.entry / "manifest.json") == exported.manifest
    for variant, precision in zip(exported.manifest.variants, PRECISIONS, strict=True):
        assert (variant.precision, variant.file, variant.target) == (precision, f"model.{precision}.onnx", "cpu")
        assert variant.sha256 == file_sha256(exported.entry / variant.file)
        assert variant.parity.cosine_mean is not None
        assert variant.parity.cosine_mean >= GATES[precision].cosine
        assert variant.parity.device is not None
        assert variant.parity.device.startswith("cpu (")
        assert variant.latency is not None
        assert set(variant.latency.seconds) == {1, 8, 32}
    assert [title for title in told.steps if "make" in title] == [f"make {name} and prove it" for name in PRECISIONS[1:]]


def test_calibration_is_on_record(exported: Exported) -> None:
    first, *others = exported.manifest.variants
    assert first.calibration is None
    for variant in others:
        assert variant.calibration is not None
        assert (variant.calibration.origin, variant.calibration.rows, variant.calibration.chosen_by) == ("--calibration", 10, 10)
        assert 0.0 <= variant.calibration.inputs["image"].least < variant.calibration.inputs["image"].greatest <= 1.0


def test_a_labelled_set_judges_each(exported: Exported) -> None:
    for variant in exported.manifest.variants:
        task = variant.parity.task
        assert task is not None
        assert (task.metric, task.output, task.rows, task.tolerance) == ("accuracy", "output_0", 30, GATES[variant.precision].metric)
        assert abs(task.value - task.reference) <= task.tolerance
        assert task.cosine_mean >= GATES[variant.precision].cosine


def test_half_the_bits_are_half_the_file(exported: Exported) -> None:
    fp32, fp16 = (exported.manifest.variant(precision) for precision in ("fp32", "fp16"))
    assert fp32 is not None
    assert fp16 is not None
    assert fp16.size < 0.7 * fp32.size
    assert fp16.method == "cast to FP16"
    assert {"exported", "cleaned", "cast"} == set(fp16.nodes)


def test_a_quarter_of_the_bits(exported: Exported) -> None:
    int8 = exported.manifest.variant("int8")
    assert int8 is not None
    assert (int8.method or "").startswith("static QDQ, U8 activations, S8 weights per channel, ")
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(int8.operators)
    assert sorted(tried.verdict for tried in int8.tried)[-1] == "kept"
    assert len(int8.tried) == 2


def test_the_server_takes_the_precision_that_is_asked_for(exported: Exported) -> None:
    wanted = served(exported, {"image": IMAGES})["output_0"]
    for precision in PRECISIONS[1:]:
        found = served(exported, {"image": IMAGES}, precision)["output_0"]
        gap = float(np.abs(found - wanted).max())
        assert 0 < gap <= GATES[precision].relative * float(np.abs(wanted).max())


def test_a_precision_that_fails_its_gate_is_not_written(folder: Path, reporter: Remembers) -> None:
    strict = {**GATES, "fp16": Gate(relative=1e-9, cosine=0.0, confident=1.0)}
    asked = replace(plan(folder, "Mlp", "features.npz", precisions=("fp32", "fp16"), name="strict"), gates=strict)
    with pytest.raises(
        ExportError,
        match=r"nets\.py:Mlp: fp16 isn't the same model: output 'output_0' differs .*it first differs at .*--precisions fp32 does",
    ):
        export(asked, reporter)
    assert not (folder / "models" / "strict").exists()


def test_another_target_is_proved_here_but_not_timed(folder: Path, reporter: Remembers) -> None:
    exported = export(plan(folder, "Mlp", "features.npz", precisions=("fp16",), target="cuda", name="cuda"), reporter)
    (variant,) = exported.manifest.variants
    assert (variant.precision, variant.target, variant.latency) == ("fp16", "cuda", None)
    assert any("proved on this CPU but not timed" in note for note in reporter.notes)
    assert variant.calibration is not None
    assert variant.calibration.origin == "made from the example"


def test_what_tensorrt_takes(user: Path, reporter: Remembers) -> None:
    asked = plan(user, "Cnn", "image.npz", precisions=("fp32", "fp16", "int8"), target="tensorrt")
    exported = export(asked, reporter)
    assert exported.entry is not None
    for variant in exported.manifest.variants:
        assert (variant.target, variant.latency) == ("tensorrt", None)
        assert faults(exported.entry / variant.file, [entry.spec() for entry in variant.inputs]) == []
    int8 = exported.manifest.variant("int8")
    assert int8 is not None
    assert "S8 symmetric" in (int8.method or "")


def test_tensorrt_wants_a_greatest_length(user: Path, reporter: Remembers) -> None:
    axes = {"input_ids": {1: None}, "attention_mask": {1: None}}
    with pytest.raises(
        ExportError, match=r"nets\.py:Text: TensorRT doesn't take it: axis 1 of 'input_ids' varies .*--dynamic input_ids:1=MAX"
    ):
        export(plan(user, "Text", "text.npz", dynamic=axes, target="tensorrt"), reporter)


OUTLIERS = """
import torch
from torch import nn

class make(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(8, 32, bias=False), nn.Linear(32, 16, bias=False), nn.Linear(16, 6, bias=False)
        scale = torch.ones(32)
        scale[5] = 500.0
        self.a.weight.data *= scale[:, None]
        self.b.weight.data /= scale

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x) / 500) * 500)))

def example():
    return {"x": torch.randn(64, 8, generator=torch.Generator().manual_seed(0))}
"""


def test_a_layer_behind_an_outlier_stays_fp32(written: Writer, user: Path, reporter: Remembers) -> None:
    asked = plan(user, "Mlp", None, model=written(OUTLIERS), precisions=("fp32", "int8"))
    exported = export(asked, reporter)
    variant = exported.manifest.variant("int8")
    assert variant is not None
    assert variant.kept_fp32 == ("/model/b/MatMul",)
    assert any(note.startswith("int8: 1 of ") for note in reporter.notes)
    first, last = variant.tried[0], variant.tried[-1]
    assert "is let through" in first.verdict
    assert last.verdict == "kept"
    assert first.cosine_mean is not None
    assert last.cosine_mean is not None
    assert first.cosine_mean < GATES["int8"].cosine <= last.cosine_mean


SURE = """
import torch
from nets import Cnn

class make(Cnn):
    def forward(self, x):
        return super().forward(x) * 40

def example():
    return {"x": torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
"""


def test_few_rows_do_not_prove_a_classifier(written: Writer, user: Path, reporter: Remembers) -> None:
    asked = plan(user, "Mlp", None, model=written(SURE), precisions=("fp32", "int8"))
    loose = Gate(relative=0.5, cosine=0.9, confident=0.5)
    many = replace(asked, gates={**GATES, "int8": replace(loose, rows=10_000)})
    with pytest.raises(
        ExportError, match=r"int8 isn't proved: PyTorch is sure of \d+ of the 25\d rows .*expected 10000, .*--precisions fp32 does"
    ):
        export(many, reporter)
    assert not (user / "models").exists()
    exported = export(replace(asked, gates={**GATES, "int8": replace(loose, rows=10)}), reporter)
    fp32, int8 = (exported.manifest.variant(precision) for precision in ("fp32", "int8"))
    assert fp32 is not None
    assert int8 is not None
    assert (fp32.parity.confident_needed, int8.parity.confident_needed) == (None, 10)
    assert (int8.parity.confident or 0) >= 10


def test_int8_that_nothing_saves_is_refused(user: Path, reporter: Remembers) -> None:
    strict = {**GATES, "int8": Gate(relative=0.5, cosine=1.0, confident=1.0)}
    asked = replace(plan(user, "Mlp", "features.npz", precisions=("int8",)), gates=strict)
    with pytest.raises(
        ExportError, match=r"nets\.py:Mlp: int8 isn't the same model: output 'output_0' points elsewhere: .*below 1; --precisions fp32 does"
    ):
        export(asked, reporter)
    assert not (user / "models").exists()
