"""The pytorch backend: what a traced file says, what it answers on the CPU (CUDA is `make gpu-check`'s), and what is refused."""

from __future__ import annotations

import sys
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.models import digits
from server.backends.base import VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.backends.pytorch import PyTorchBackend
from server.errors import BackendFailure, InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec
from tests.server.models import linear_weights, place
from tests.server.repository.test_loader import defect
from tests.server.running import infer_binary, running, wire

X = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight, bias = linear_weights()
        self.linear = nn.Linear(8, 4)
        self.linear.weight.data, self.linear.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias.copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.linear(x)
        return answer


class Pooled(nn.Module):
    """Two inputs of varying length, a dict for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.words(ids) * mask.unsqueeze(-1)
        return {"hidden": hidden, "length": mask.sum(1)}


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def exported(path: Path, module: nn.Module, *example: torch.Tensor, most: int | None = None, length: int = 0) -> Path:
    """A .pt2 file whose first axis varies, and the second up to `length`."""
    rows = torch.export.Dim("rows", max=most) if most else torch.export.Dim.AUTO
    axes: Any = {0: rows, 1: torch.export.Dim("length", max=length)} if length else {0: rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=[axes for _ in example]), path)
    return path


def scripted(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module.eval()).save(str(path))  # type: ignore[no-untyped-call]
    return path


@cache
def _linear() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return exported(Path(folder) / "m.pt2", Linear(), torch.zeros(3, 8)).read_bytes()


def linear(path: Path) -> Path:
    """y = x w + b, traced once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_linear())
    return path


def opened(path: Path, **changes: Any) -> PyTorchBackend:
    return PyTorchBackend.open(
        VariantSpec(**{"model": "m", "version": "1", "precision": "fp32", "backend": "pytorch", "path": path, **changes})
    )


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(ModelDefect) as caught:
        opened(path, **changes)
    return str(caught.value)


def wanted(x: Tensor) -> Tensor:
    weight, bias = linear_weights()
    answer: Tensor = x @ weight + bias
    return answer


DECLARED = {"inputs": (TensorSpec("x", "FP32", (-1, 8)),), "outputs": (TensorSpec("y", "FP32", (-1, 4)),)}


def test_a_pt2_file_says_its_tensors(tmp_path: Path) -> None:
    backend = opened(linear(tmp_path / "m.pt2"))
    assert backend.inputs == (TensorSpec("x", "FP32", (-1, 8)),)
    assert backend.outputs == (TensorSpec("output_0", "FP32", (-1, 4)),)
    np.testing.assert_allclose(backend.run({"x": X}, 5)["output_0"], wanted(X), rtol=1e-5, atol=1e-6)


def test_dicts_lengths_and_whole_numbers(tmp_path: Path) -> None:
    ids, mask = torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5)
    backend = opened(exported(tmp_path / "m.pt2", Pooled(), ids, mask, length=16))
    assert [(spec.name, spec.datatype, spec.shape, spec.max_shape) for spec in (*backend.inputs, *backend.outputs)] == [
        ("ids", "INT64", (-1, -1), (-1, 16)),
        ("mask", "FP32", (-1, -1), (-1, 16)),
        ("hidden", "FP32", (-1, -1, 4), (-1, 16, -1)),
        ("length", "FP32", (-1,), None),
    ]
    found = backend.run({"ids": np.zeros((2, 7), np.int64), "mask": np.ones((2, 7), np.float32)}, 2)
    assert found["hidden"].shape == (2, 7, 4)
    np.testing.assert_array_equal(found["length"], [7, 7])
    with pytest.raises(InvalidRequest, match="Guard failed"):
        backend.run({"ids": np.zeros((2, 17), np.int64), "mask": np.ones((2, 17), np.float32)}, 2)


def test_torchscript_with_declared_tensors(tmp_path: Path) -> None:
    backend = opened(scripted(tmp_path / "m.pt", Linear()), **DECLARED)
    np.testing.assert_allclose(backend.run({"x": X}, 5)["y"], wanted(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_batch_is_its_rows(tmp_path: Path, rows: int) -> None:
    backend = opened(linear(tmp_path / "m.pt2"))
    x = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    whole = backend.run({"x": x}, rows)["output_0"]
    single = np.concatenate([backend.run({"x": row[None]}, 1)["output_0"] for row in x])
    np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["pt2", "pt"])
def test_fp16_is_autocast_and_answers_as_declared(tmp_path: Path, kind: str) -> None:
    path = linear(tmp_path / "m.pt2") if kind == "pt2" else scripted(tmp_path / "m.pt", Linear())
    declared = {} if kind == "pt2" else DECLARED
    (found,) = opened(path, precision="fp16", **declared).run({"x": X}, 5).values()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted(X), rtol=5e-3, atol=5e-3)
    assert not np.array_equal(found, opened(path, **declared).run({"x": X}, 5).popitem()[1])
    assert "precision 'int8': expected fp32 or fp16" in refusal(path, precision="int8", **declared)


def test_any_view_is_taken_and_answers_are_the_callers(tmp_path: Path) -> None:
    backend = opened(exported(tmp_path / "m.pt2", Same(), torch.zeros(3, 8)))
    frozen = X.copy()
    frozen.flags.writeable = False
    for view in (frozen, X.astype(">f4"), np.asfortranarray(X), np.repeat(X, 2, axis=0)[::-2][::-1]):
        found = backend.run({"x": view}, 5)["output_0"]
        np.testing.assert_array_equal(found, X)
        assert found.flags.writeable
        assert not np.shares_memory(found, view)
    out = {"output_0": np.zeros((5, 8), np.float32)}
    assert backend.run({"x": X}, 5, out)["output_0"] is out["output_0"]
    np.testing.assert_array_equal(out["output_0"], X)
    with pytest.raises(BackendFailure, match=r"output 'output_0' can't be written to float32 \[4, 8\]"):
        backend.run({"x": X}, 5, {"output_0": np.zeros((4, 8), np.float32)})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "expected the inputs 'x'; got none"),
        ({"z": X}, "expected the inputs 'x'; got 'z'"),
        ({"x": X.astype(np.float64)}, "input 'x' is float64; expected FP32"),
        ({"x": X[0]}, "input 'x' has 1 axes; expected 2"),
        ({"x": X[:, :7].copy()}, "Guard failed"),
    ],
)
def test_inputs_that_are_not_the_models(tmp_path: Path, inputs: dict[str, Tensor], said: str) -> None:
    backend = opened(linear(tmp_path / "m.pt2"))
    with pytest.raises(InvalidRequest, match=said):
        backend.run(inputs, 5)


def test_rows_over_the_traces_own_bound(tmp_path: Path) -> None:
    backend = opened(exported(tmp_path / "m.pt2", Linear(), torch.zeros(3, 8), most=6))
    with pytest.raises(InvalidRequest, match=r"7 rows: .*Guard failed"):
        backend.run({"x": np.zeros((7, 8), np.float32)}, 7)


def test_files_that_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"not a module")
    assert "not a .pt2 file, or cut short" in refusal(tmp_path / "bad.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as other:
        other.writestr("readme", "no module")
    assert "can't open it as .pt2" in refusal(tmp_path / "other.pt2")
    torch.save(Linear().state_dict(), tmp_path / "weights.pt")
    assert "can't open it as TorchScript" in refusal(tmp_path / "weights.pt", **DECLARED)
    assert "no such file" in refusal(tmp_path / "none.pt2")
    assert "a T4 has no BF16: ask for fp16" in refusal(scripted(tmp_path / "good.pt", Linear()), precision="bf16")
    script = scripted(tmp_path / "m.pt", Linear())
    assert "model.yaml must, and inputs.x is missing" in refusal(script)
    assert "and outputs is missing" in refusal(script, inputs=DECLARED["inputs"])
    assert "is declared BYTES, which torch isn't given" in refusal(script, **DECLARED | {"outputs": (TensorSpec("y", "BYTES", (-1, 4)),)})
    assert "input 'x' is declared INT64" in refusal(linear(tmp_path / "l.pt2"), inputs=(TensorSpec("x", "INT64", (-1, 8)),))


def test_answers_that_are_not_as_declared(tmp_path: Path) -> None:
    script = scripted(tmp_path / "m.pt", Linear())
    wrong = opened(script, **DECLARED | {"outputs": (TensorSpec("y", "INT64", (-1, 4)),)})
    with pytest.raises(BackendFailure, match="output 'y' is float32, and INT64 is declared"):
        wrong.run({"x": X}, 5)
    two = opened(script, **DECLARED | {"outputs": (TensorSpec("y", "FP32", (-1, 4)), TensorSpec("z", "FP32", (-1, 4)))})
    with pytest.raises(BackendFailure, match="it gives 1 tensors, and 2 outputs are declared"):
        two.run({"x": X}, 5)
    with pytest.raises(BackendFailure, match="cannot be multiplied"):
        opened(script, **DECLARED).run({"x": X[:, :7].copy()}, 5)


def test_threads_close_and_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = linear(tmp_path / "m.pt2"), torch.get_num_threads()
    backend = opened(path, threads=1)
    backend.run({"x": X}, 5)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    backend.close()
    with pytest.raises(BackendFailure, match="it is closed"):
        backend.run({"x": X}, 5)
    if not torch.cuda.is_available():
        assert "finds no GPU; see `tidegate doctor`" in refusal(path, device="cuda:0")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch, which isn't installed" in refusal(path)


SCRIPT = "inputs: {x: {dtype: FP32, shape: [-1, 8]}}\noutputs: {y: {dtype: FP32, shape: [-1, 4]}}\n"


def test_parity_with_onnxruntime_on_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = digits.build(), digits.data().test_images
    example = torch.from_numpy(images[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: Any = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": {"image": {0: "N"}, "logits": {0: "N"}}}
        torch.onnx.export(network, (example,), str(tmp_path / "m.onnx"), opset_version=17, dynamo=False, **names)
    ours = opened(exported(tmp_path / "m.pt2", network, example)).run({"image": images}, len(images))["logits"]
    spec = VariantSpec("digits", "1", "fp32", "onnxruntime", tmp_path / "m.onnx")
    theirs = OnnxRuntimeBackend.open(spec).run({"image": images}, len(images))["logits"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize(("name", "yaml"), [("model.pt2", "precision: {active: fp16}"), ("model.pt", SCRIPT)])
async def test_the_server_finds_and_serves_it_in_a_process(tmp_path: Path, name: str, yaml: str) -> None:
    def build(path: Path) -> Path:
        file = path.with_name(name)
        file.parent.mkdir(parents=True)
        return linear(file) if name == "model.pt2" else scripted(file, Linear())

    place(tmp_path, "net", build, yaml=yaml + "\nlanes: {count: 1, threads: 1}")
    async with running(tmp_path) as app:
        served = app.table.default("net")
        assert served is not None
        assert served.platform == "pytorch"
        assert served.lanes.startswith("1 x process with 1 threads: the pytorch backend sets its whole process")
        async with wire(app) as connection:
            answer = await connection.ask(infer_binary("net", X))
        tolerance = 5e-3 if "fp16" in yaml else 1e-5
        np.testing.assert_allclose(answer.tensor().reshape(5, 4), wanted(X), rtol=tolerance, atol=tolerance)


def test_another_backend_for_a_traced_file(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    linear(folder / "1" / "model.pt2")
    (folder / "model.yaml").write_text("backend: onnxruntime")
    assert defect(folder) == f"{folder / 'model.yaml'}: backend: 'onnxruntime', but {folder / '1' / 'model.pt2'} is for 'pytorch'"
