"""Channels that matter least become zeros, and what that costs is measured before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.pipeline import export
from exporters.sources.trace_call import bind, mean_cosine, worth
from exporters.sources.trace_state import RefusedError, prune_channels
from tests.exporters.conftest import Remembers, plan


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).eval().requires_grad_(False)


def test_the_weakest_channels_of_all_layers_but_the_last() -> None:
    made = network()
    before = made.state_dict()
    weight, last = before["0.weight"].clone(), before["4.weight"].clone()
    assert prune_channels(made, 0.25) == {"0": 2, "2": 2}
    after = made.state_dict()
    gone = torch.eq(after["0.weight"], 0).all(dim=1)
    weakest = torch.linalg.vector_norm(weight, dim=1).argsort()[:2]
    assert set(gone.nonzero().ravel().tolist()) == set(weakest.tolist())
    assert not after["0.bias"][gone].any()
    assert torch.equal(after["4.weight"], last)
    assert set(after) == set(before)


def test_what_has_no_whole_channel_to_spare() -> None:
    with pytest.raises(RefusedError, match="takes no whole channel of any layer but the last: there are 3 layers"):
        prune_channels(network(), 0.1)
    with pytest.raises(RefusedError, match="there are 1 layers with weights"):
        prune_channels(nn.Sequential(nn.Linear(4, 4)), 0.5)


def test_what_a_model_is_worth() -> None:
    x = np.eye(3, 4, dtype=np.float32).repeat(30, axis=0)
    call = bind(network(), {"x": x[:2]})
    answers, accuracy = worth(call, None)
    assert (answers.shape, accuracy) == ((2, 3), None)
    best = call.answer({"x": x})[0].argmax(axis=1)
    assert worth(call, {"x": x, "labels": best})[1] == 1.0
    assert worth(call, {"x": x, "labels": (best + 1) % 3})[1] == 0.0
    assert worth(call, {"x": x, "labels": best.astype(np.float32)})[1] is None
    assert mean_cosine(answers, answers * 2) == pytest.approx(1.0)


def test_an_export_says_what_pruning_cost(user: Path, reporter: Remembers) -> None:
    rng = np.random.default_rng(6)
    np.savez(user / "labelled.npz", image=rng.random((30, 1, 8, 8), np.float32), labels=rng.integers(0, 10, 30))
    exported = export(plan(user, "Cnn", "image.npz", prune=0.25, evaluation=user / "labelled.npz"), reporter)
    found = exported.manifest.pruning
    assert found is not None
    assert (found.share, found.channels, found.layers) == (0.25, 2, 1)
    assert 0.5 < found.cosine_mean < 1.0
    assert found.accuracy_before is not None
    assert found.accuracy_after is not None
    assert any(note.startswith("pruned: 2 channels of 1 layers are zeros (25% of each); its answers'") for note in reporter.notes)
    assert exported.entry is not None
    model = onnx.load(str(exported.entry / "model.fp32.onnx"))
    weights = next(onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if list(tensor.dims) == [8, 1, 3, 3])
    assert (np.abs(weights).reshape(8, -1).max(axis=1) == 0).sum() == 2
