"""A variant is measured through its backend, as it will be served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporters.parity.measure import TIMED_ROWS, device, distances, latencies, threads
from exporters.plan import ExportError
from exporters.sources.pytorch import Sample
from server.backends.base import Backend, VariantSpec
from server.backends.registry import backend_named
from server.tensors import Tensor
from tests.server.models import embedding_model, linear_model, linear_weights


def opened(path: Path) -> Backend:
    return backend_named("onnxruntime").open(VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1))


def sample(rows: int, off: float = 0.0) -> Sample:
    x: Tensor = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    weight, bias = linear_weights()
    return Sample(rows, {"x": x, "unused": x}, {"y": x @ weight + bias + np.float32(off)})


def test_distances_cover_all_samples(tmp_path: Path) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"))
    found = distances(backend, [sample(1), sample(5)])["y"]
    assert (found.rows, found.elements) == (6, 24)
    assert found.max_relative < 1e-6
    assert distances(backend, [sample(1), sample(5, off=0.5)])["y"].max_abs == pytest.approx(0.5, rel=1e-4)


def test_a_batch_that_fails_is_told_with_its_shapes(tmp_path: Path) -> None:
    backend = opened(embedding_model(tmp_path / "m.onnx", vocabulary=4))
    tokens = np.full((3, 2), 9)
    with pytest.raises(ExportError, match=r"a batch that PyTorch takes \(tokens \[3, 2\]\) fails in onnxruntime"):
        distances(backend, [Sample(3, {"tokens": tokens}, {"y": np.zeros((3, 4), np.float32)})])


def test_an_answer_of_another_shape(tmp_path: Path) -> None:
    backend = opened(linear_model(tmp_path / "m.onnx"))
    wrong = Sample(2, sample(2).inputs, {"y": np.zeros((2, 5), np.float32)})
    with pytest.raises(ExportError, match=r"shapes differ: reference \[2, 5\], answer \[2, 4\]"):
        distances(backend, [wrong])


def test_latency_by_rows(tmp_path: Path) -> None:
    backends = [opened(linear_model(tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    found = latencies(backends, sample(1), batched=True)
    assert [tuple(seconds) for seconds in found] == [TIMED_ROWS, TIMED_ROWS]
    assert all(0 < seconds < 1 for figures in found for runs in figures.values() for seconds in runs)
    assert all(len(found[0][rows]) == len(found[1][rows]) >= 3 for rows in TIMED_ROWS)
    assert [list(seconds) for seconds in latencies(backends[:1], sample(3), batched=False)] == [[1]]


def test_the_device_is_named() -> None:
    assert device().startswith("cpu (")
    assert threads() >= 1
