"""A user's folder with their models in it, and a reporter that remembers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.pipeline import Exported
from exporters.plan import ModelRef, Plan
from server.backends.registry import backend_named
from server.config import Settings
from server.repository.loader import describe
from server.repository.store import Entry
from server.tensors import Tensor

Writer = Callable[..., ModelRef]

NETS = """
import numpy as np
import torch
from torch import nn

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, features):
        return self.b(torch.relu(self.a(features)))

class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.head(self.body(x))

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.places, self.mix = nn.Embedding(50, 16), nn.Embedding(32, 16), nn.Linear(16, 16)

    def forward(self, input_ids, attention_mask):
        hidden = self.mix(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"hidden": hidden, "pooled": (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)}
"""


class Remembers:
    """A reporter that keeps all that it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.details: list[str] = []
        self.notes: list[str] = []

    def step(self, number: int, total: int, title: str) -> None:
        self.steps.append(title)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def reporter() -> Remembers:
    return Remembers()


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder of the user's, with nets.py and examples for it."""
    return write_user(tmp_path / "user")


def write_user(folder: Path) -> Path:
    """Make the folder `user` is."""
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    np.savez(folder / "features.npz", features=rng.normal(size=(4, 4)).astype(np.float32))
    np.savez(folder / "image.npz", image=rng.random((3, 1, 8, 8), np.float32))
    ids = rng.integers(1, 50, (2, 7))
    np.savez(folder / "text.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return folder


def plan(user: Path, factory: str, example: str | None, **changes: Any) -> Plan:
    """An export of a model of nets.py into user/models/net."""
    model = ModelRef(f"nets.py:{factory}", factory, (user,), file=user / "nets.py")
    given: dict[str, Any] = {"model": model, "name": "net", "repository": user / "models", "example": user / example if example else None}
    return Plan(**(given | changes))


def served(exported: Exported, inputs: dict[str, Tensor], precision: str | None = None) -> dict[str, Tensor]:
    """What the entry answers, read and opened as the server does it, in the precision that its model.yaml asks for."""
    assert exported.entry is not None
    folder, version = exported.entry.parent, exported.entry.name
    if precision:
        (folder / "model.yaml").write_text(f"precision: {{active: {precision}}}\n")
    spec = describe(Entry(folder.name, folder, (version,)), version, Settings(repository=folder.parent)).spec
    assert precision in (None, spec.precision)
    return backend_named(spec.backend).open(replace(spec, threads=1)).run(inputs, len(next(iter(inputs.values()))))


@pytest.fixture
def written(user: Path) -> Writer:
    """Writes a module into the user's folder and gives the reference of its factory `make`."""

    def write(code: str, name: str = "mine") -> ModelRef:
        path = user / f"{name}.py"
        path.write_text(textwrap.dedent(code))
        return ModelRef(f"{name}.py:make", "make", (user,), file=path)

    return write
