"""Programs that were traced before, and torch's newer exporter: entries like those of any other source."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.pipeline import export
from exporters.plan import ExportError
from exporters.sources.names import find_model
from exporters.sources.trace_call import bind
from exporters.sources.trace_state import Program, RefusedError, as_module, program_module
from tests.exporters.conftest import Remembers, plan, served


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.mix(x) * mask
        return scores


ARRAYS = {"x": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32), "mask": np.ones((4, 1), np.float32)}
TENSORS = tuple(torch.from_numpy(array) for array in ARRAYS.values())


def exported_program(folder: Path, tokens: bool = False) -> Path:
    batch, path = torch.export.Dim("batch"), folder / "masked.pt2"
    if tokens:
        ids = torch.randint(0, 9, (2, 7))
        shapes = ({0: batch, 1: torch.export.Dim("tokens", min=2, max=32)},)
        torch.export.save(torch.export.export(nn.Embedding(9, 4), (ids,), dynamic_shapes=shapes), path)
    else:
        shapes = {name: {0: batch} for name in ARRAYS}  # type: ignore[assignment]
        torch.export.save(torch.export.export(Masked().eval(), TENSORS[:1], {"mask": TENSORS[1]}, dynamic_shapes=shapes), path)
    return path


def script(folder: Path) -> Path:
    path = folder / "masked.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what is deprecated is still what many have
        torch.jit.trace(Masked().eval(), TENSORS).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("kind", ["torch.export", "torchscript"])
def test_a_program_becomes_an_entry(kind: str, user: Path, reporter: Remembers) -> None:
    path = exported_program(user) if kind == "torch.export" else script(user)
    np.savez(user / "masked.npz", x=ARRAYS["x"], mask=ARRAYS["mask"])
    exported = export(plan(user, "", "masked.npz" if kind == "torchscript" else None, model=find_model(path.name, user)), reporter)
    assert exported.manifest.source.kind == kind
    assert exported.manifest.source.weights_sha256 is not None
    (variant,) = exported.manifest.variants
    assert [(entry.name, entry.shape, entry.batch_axis) for entry in variant.inputs] == [("x", (-1, 4), 0), ("mask", (-1, 1), 0)]
    wanted = Masked()(*TENSORS).detach().numpy()
    np.testing.assert_allclose(served(exported, ARRAYS)["output_0"], wanted, atol=1e-6)


def test_open_axes_and_the_example_are_the_programs_own(tmp_path: Path) -> None:
    module = program_module(exported_program(tmp_path, tokens=True))
    assert module.dynamic() == {"input": {1: 32}}
    assert module.example()["input"].shape == (2, 7)
    assert program_module(exported_program(tmp_path)).dynamic() == {}


def test_a_program_is_called_as_its_module_was(tmp_path: Path) -> None:
    for path in (exported_program(tmp_path), script(tmp_path)):
        model = as_module(program_module(path).make)
        assert isinstance(model, Program)
        call = bind(model, ARRAYS)
        np.testing.assert_allclose(call.answer(ARRAYS)[0], Masked()(*TENSORS).detach().numpy(), atol=1e-6)
        assert list(bind(model, {"arr_0": ARRAYS["x"], "arr_1": ARRAYS["mask"]}).example) == ["x", "mask"]
        with pytest.raises(RefusedError, match=r"the example lacks mask|the example's names don't fit"):
            bind(model, {"x": ARRAYS["x"], "y": ARRAYS["mask"]})


@pytest.mark.parametrize(
    ("name", "said"), [("a.pt2", "isn't a program that torch.export.save wrote"), ("a.ts", "isn't a TorchScript file")]
)
def test_files_that_are_no_programs(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"neither")
    with pytest.raises(RefusedError, match=said):
        program_module(tmp_path / name)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript isn't installed: pip install 'tidegate[dynamo]'")
def test_the_newer_exporter(user: Path, reporter: Remembers) -> None:
    exported = export(
        plan(user, "Text", "text.npz", exporter="dynamo", dynamic={"input_ids": {1: 32}, "attention_mask": {1: 32}}), reporter
    )
    (variant,) = exported.manifest.variants
    assert variant.opset == 18
    assert [(entry.name, entry.shape) for entry in variant.outputs] == [("hidden", (-1, -1, 16)), ("pooled", (-1, 16))]
    ids = np.random.default_rng(1).integers(0, 50, (3, 20))
    found = served(exported, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(found["pooled"], found["hidden"].mean(axis=1), atol=1e-6)


def test_what_the_newer_exporter_needs_is_said(user: Path, reporter: Remembers, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "onnxscript" else known(name, package))
    with pytest.raises(ExportError, match=r"aren't installed \(onnxscript\)"):
        export(plan(user, "Mlp", "features.npz", exporter="dynamo"), reporter)
