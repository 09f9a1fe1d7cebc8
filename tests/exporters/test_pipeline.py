"""Whole exports of small models: what is written, and that nothing is where an export fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.pipeline import export, steps
from exporters.plan import ExportError
from server.repository.manifest import file_sha256, read_manifest
from tests.exporters.conftest import Remembers, Writer, plan, served


def test_level_0_keeps_the_graph_as_it_is_exported(user: Path, reporter: Remembers) -> None:
    exported = export(plan(user, "Mlp", "features.npz", level=0, output_names=("logits",), version=4), reporter)
    assert exported.entry == user / "models" / "net" / "4"
    assert read_manifest(exported.entry / "manifest.json") == exported.manifest
    variant = exported.manifest.variants[0]
    assert (variant.file, variant.precision, variant.backend, variant.opset) == ("model.fp32.onnx", "fp32", "onnxruntime", 17)
    assert variant.nodes == {"exported": 3}
    assert variant.operators == {"Gemm": 2, "Relu": 1}
    assert variant.sha256 == file_sha256(exported.entry / variant.file)
    assert variant.size == (exported.entry / variant.file).stat().st_size
    assert [(entry.name, entry.datatype, entry.shape, entry.batch_axis) for entry in (*variant.inputs, *variant.outputs)] == [
        ("features", "FP32", (-1, 4), 0),
        ("logits", "FP32", (-1, 3), 0),
    ]
    assert variant.parity.max_abs <= 1e-5
    assert variant.parity.batch_sizes == (1, 2, 5, 8, 16, 32)
    assert (variant.parity.samples, variant.parity.top1_disagreement) == (256, 0.0)
    assert variant.latency is not None
    assert set(variant.latency.seconds) == {1, 8, 32}
    assert variant.memory is not None
    assert (variant.memory.rows, variant.memory.peak > variant.memory.bare > 10 << 20) == (32, True)
    assert exported.manifest.source.code_sha256 == file_sha256(user / "nets.py")
    assert {"torch", "onnx", "onnxslim"} <= set(exported.manifest.tools)
    assert reporter.steps == [step.title for step in steps(plan(user, "Mlp", "features.npz", level=0))]
    assert not any("clean" in title for title in reporter.steps)


def test_level_1_cleans_a_cnn_with_trained_weights(user: Path, reporter: Remembers) -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
    head = torch.nn.Linear(8 * 16, 10)
    state = {f"body.{name}": value for name, value in layers.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    torch.save(state, user / "w.pt")
    exported = export(plan(user, "Cnn", "image.npz", level=1, weights=user / "w.pt"), reporter)
    variant = exported.manifest.variants[0]
    assert variant.optimization_level == 1
    assert variant.nodes["cleaned"] <= variant.nodes["exported"]
    assert exported.manifest.source.weights_sha256 == file_sha256(user / "w.pt")
    image = np.load(user / "image.npz")["image"]
    with torch.no_grad():
        body = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()).eval()
        wanted = head(body(torch.tensor(image))).numpy()
    np.testing.assert_allclose(served(exported, {"image": image})["output_0"], wanted, atol=1e-5)


def test_a_text_model_takes_any_length_and_the_next_version(user: Path, reporter: Remembers) -> None:
    axes = {"input_ids": {1: 32}, "attention_mask": {1: 32}}
    output = user / "text.onnx"
    (user / "models" / "net" / "1").mkdir(parents=True)
    exported = export(plan(user, "Text", "text.npz", dynamic=axes, output=output), reporter)
    assert exported.entry == user / "models" / "net" / "2"
    variant = exported.manifest.variants[0]
    assert [entry.max_shape for entry in variant.inputs] == [(-1, 32), (-1, 32)]
    assert [(entry.name, entry.shape) for entry in variant.outputs] == [("hidden", (-1, -1, 16)), ("pooled", (-1, 16))]
    ids = np.random.default_rng(1).integers(0, 50, (3, 20))
    found = served(exported, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert found["hidden"].shape == (3, 20, 16)
    np.testing.assert_allclose(found["pooled"], found["hidden"].mean(axis=1), atol=1e-6)
    beside = read_manifest(user / "text.onnx.manifest.json")
    assert beside.variants[0].file == "text.onnx"
    assert file_sha256(output) == beside.variants[0].sha256 == variant.sha256


def test_a_trace_that_is_not_the_model_is_not_written(user: Path, written: Writer, reporter: Remembers) -> None:
    model = written("""\
        import torch
        class Differs(torch.nn.Module):
            def forward(self, x):
                return x * (2 if torch.jit.is_tracing() else 3)
        make = Differs
    """)
    with pytest.raises(ExportError, match=r"mine\.py:make: not the same model: output 'output_0' differs from PyTorch by up to"):
        export(plan(user, "Mlp", "features.npz", model=model, output=user / "o.onnx"), reporter)
    assert not (user / "models").exists()
    assert not list(user.glob("*o.onnx*"))


def test_a_loop_over_a_value_is_found_and_its_line_named(user: Path, reporter: Remembers, written: Writer) -> None:
    code = """
        import torch
        from torch import nn

        class make(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(3)
                self.a = nn.Linear(4, 4)

            def forward(self, x):
                for _ in range(int(x[0, 0].abs() * 3) + 1):
                    x = torch.tanh(self.a(x))
                return x
    """
    np.savez(user / "rows.npz", x=np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    with pytest.raises(ExportError, match="not the same model") as caught:
        export(plan(user, "", "rows.npz", model=written(code)), reporter)
    assert "mine.py:12: Converting a tensor to a Python integer" in str(caught.value)
    assert not (user / "models").exists()


def test_an_operator_without_onnx_says_what_to_do(user: Path, reporter: Remembers, written: Writer) -> None:
    code = """
        import torch
        from torch import nn

        class make(nn.Module):
            def forward(self, x):
                return torch.linalg.svdvals(x.reshape(-1, 2, 2))
    """
    with pytest.raises(ExportError, match=r"aten::linalg_svdvals.* or try --exporter dynamo"):
        export(plan(user, "", "features.npz", model=written(code)), reporter)


def test_a_batch_size_in_the_trace_is_found_and_its_line_named(user: Path, written: Writer, reporter: Remembers) -> None:
    model = written("""\
        from torch import nn
        class Baked(nn.Module):
            def forward(self, x):
                return x.reshape(int(x.shape[0]), 2, 2).sum(2)
        make = Baked
    """)
    with pytest.raises(ExportError, match=r"(?s)the file has FP32 \[2, 2\].*where the fault may lie:\n  mine\.py:4: Converting a tensor"):
        export(plan(user, "Mlp", "features.npz", model=model), reporter)
    assert not (user / "models").exists()


def test_a_model_that_is_not_batched_says_why(user: Path, written: Writer, reporter: Remembers) -> None:
    model = written("""\
        import numpy as np
        from torch import nn
        class Centred(nn.Module):
            def forward(self, x, unused):
                return x - x.mean(0)
        make = Centred
        def example():
            return {"x": np.arange(12, dtype=np.float32).reshape(3, 4) ** 2, "unused": np.zeros((3, 1), np.float32)}
    """)
    exported = export(plan(user, "Mlp", None, model=model), reporter)
    assert exported.manifest.unbatched == "output 'output_0' of a row changes with the other rows of its batch"
    variant = exported.manifest.variants[0]
    assert [(entry.name, entry.shape, entry.batch_axis) for entry in variant.inputs] == [("x", (3, 4), None)]
    assert variant.latency is not None
    assert list(variant.latency.seconds) == [1]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(served(exported, {"x": x})["output_0"], x - x.mean(axis=0), atol=1e-6)
    assert [note.split(":")[0] for note in reporter.notes] == [
        "not batched, so requests will run one by one",
        "input 'unused' reaches no output",
    ]


def test_a_version_that_exists_is_refused_before_any_work(user: Path, reporter: Remembers) -> None:
    (user / "models" / "net" / "1").mkdir(parents=True)
    with pytest.raises(ExportError, match="a version is never overwritten"):
        export(plan(user, "Mlp", "features.npz", version=1), reporter)
    assert reporter.steps == []
