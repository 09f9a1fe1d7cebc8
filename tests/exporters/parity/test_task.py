"""The task's metric on a labelled set: which output it reads, and what it finds worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.parity.report import task, task_failures
from exporters.parity.task import judged, labelled_set
from exporters.plan import ExportError, Gate
from server.tensors import TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, 2)),)
LOGITS, VALUE, CLASS = TensorSpec("logits", "FP32", (-1, 3)), TensorSpec("value", "FP32", (-1,)), TensorSpec("class", "INT64", (-1,))
X = np.arange(20, dtype=np.float32).reshape(10, 2)
LABELS = np.arange(10) % 3
SCORES = np.eye(3, dtype=np.float32)[LABELS]
GATE = Gate(relative=1.0, cosine=0.9, confident=1.0, metric=0.1)


def written(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "e.npz", **arrays)
    return folder / "e.npz"


def test_whole_numbers_are_classes(tmp_path: Path) -> None:
    rows = labelled_set(written(tmp_path, x=X, labels=LABELS), None, INPUTS, [CLASS, VALUE, LOGITS])
    assert (rows.metric, rows.output, len(rows.keys())) == ("accuracy", "logits", 10)
    assert [len(batch["x"]) for batch in rows.batches] == [8, 2]
    wrong = SCORES.copy()
    wrong[:2] = wrong[1::-1]
    found = judged(rows, wrong, SCORES)
    assert (found.value, found.reference) == (0.8, 1.0)
    told = task_failures(found, rows, GATE)
    assert told == [
        "accuracy of 'logits' on 10 labelled rows is 0.8000, 1.0000 in FP32: 0.1 is let through",
        "output 'logits' points elsewhere on the labelled rows: their mean cosine is 0.8000, below 0.9",
    ]
    assert task_failures(judged(rows, SCORES, SCORES), rows, GATE) == []
    said = task(found, rows, 0.1)
    assert (said.rows, said.top1_disagreement, said.value) == (10, 0.2, 0.8)
    assert said.top1_upper95 is not None
    assert said.top1_upper95 > 0.2


def test_a_metric_that_gets_better_is_no_failure(tmp_path: Path) -> None:
    rows = labelled_set(written(tmp_path, x=X, labels=LABELS), None, INPUTS, [LOGITS])
    assert task_failures(judged(rows, SCORES, np.roll(SCORES, 1, axis=1)), rows, Gate(1.0, 0.0, 1.0, metric=0.0)) == []


def test_other_numbers_are_values(tmp_path: Path) -> None:
    labels = np.linspace(0, 1, 10, dtype=np.float32)
    rows = labelled_set(written(tmp_path, x=X, labels=labels), None, INPUTS, [LOGITS, VALUE])
    assert (rows.metric, rows.output) == ("error", "value")
    found = judged(rows, labels + np.float32(0.3), labels)
    assert found.reference == 0.0
    assert found.value == pytest.approx(0.3 / labels.std(), rel=1e-5)
    assert "error of 'value'" in task_failures(found, rows, GATE)[0]


def test_embeddings_are_judged_by_the_nearest_mean(tmp_path: Path) -> None:
    labels = np.repeat([7, 9], 5)
    rows = labelled_set(written(tmp_path, x=X, labels=labels), "centroid", INPUTS, [CLASS, LOGITS])
    assert (rows.metric, rows.output) == ("centroid", "logits")
    embedded = np.where((labels == 7)[:, None], np.array([1.0, 0.1, 0.0]), np.array([0.0, 0.2, 1.0])).astype(np.float32)
    assert judged(rows, embedded, embedded).value == 1.0
    assert judged(rows, embedded[::-1], embedded).value == 0.0


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "has no 'labels'; it has x"),
        ({"x": X, "labels": LABELS[:5]}, "'labels' is int64 [5]; expected numbers, one for each of 10 rows"),
        ({"x": X, "labels": LABELS + 1}, "no output suits accuracy of int64 labels [10]; outputs are logits [-1, 3]"),
        ({"x": X, "labels": np.full(10, np.nan, np.float32)}, "expected numbers"),
        ({"labels": LABELS}, "has no 'x'"),
    ],
)
def test_what_is_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError) as caught:
        labelled_set(written(tmp_path, **arrays), None, INPUTS, [LOGITS])
    assert str(caught.value).startswith("--eval e.npz")
    assert said in str(caught.value)
