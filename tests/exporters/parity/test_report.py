"""Distances are judged: the manifest's figures and what failing parity says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporters.parity.report import doubt, failures, missing, parity
from exporters.parity.task import Judged, LabelledSet
from exporters.plan import Gate
from server.numerics import distance
from server.tensors import TensorSpec

GATE = Gate(relative=1e-4, cosine=0.99, confident=0.1)
LOGITS = TensorSpec("logits", "FP32", (-1, 3))
CLASS = TensorSpec("class", "INT64", (-1,))
SCORES = np.array([[1.0, 5.0, 10.0], [3.0, 2.0, 1.0]], np.float32)
CLASSES = SCORES.argmax(axis=1)


def test_figures_are_the_worst_of_any_output() -> None:
    found = {"logits": distance(SCORES, SCORES[:, ::-1]), "class": distance(CLASSES, CLASSES)}
    made = parity(found, rows=[1, 2, 5, 2], tolerance=1e-4)
    assert (made.samples, made.batch_sizes, made.max_abs) == (10, (1, 2, 5), 9.0)
    assert made.max_relative == pytest.approx(0.9)
    assert made.cosine_min < 0.8
    assert (made.top1_disagreement, made.top1_upper95) == (1.0, 1.0)


def test_answers_that_are_no_scores_have_no_top1() -> None:
    made = parity({"class": distance(CLASSES, CLASSES)}, rows=[2], tolerance=1e-4)
    assert (made.top1_disagreement, made.top1_upper95) == (None, None)


def test_floats_may_differ_by_a_share_of_their_scale() -> None:
    assert failures({"logits": distance(SCORES, SCORES + np.float32(9e-4))}, [LOGITS], GATE) == []
    (told,) = failures({"logits": distance(SCORES, SCORES + np.float32(0.5))}, [LOGITS], GATE)
    assert told == "output 'logits' differs from PyTorch by up to 0.5; at values up to 10, 0.001 is let through"


def test_whole_numbers_may_not_differ() -> None:
    assert failures({"class": distance(CLASSES, CLASSES)}, [CLASS], GATE) == []
    assert failures({"class": distance(CLASSES, CLASSES + 1)}, [CLASS], GATE) == ["output 'class' (INT64) differs from PyTorch by up to 1"]


def test_nan_in_one_of_them_fails() -> None:
    broken = SCORES.copy()
    broken[0, 0] = np.nan
    (told,) = failures({"logits": distance(SCORES, broken)}, [LOGITS], GATE)
    assert "has NaN or infinities where PyTorch has numbers" in told


def test_rows_must_point_where_they_did() -> None:
    loose = Gate(relative=2.0, cosine=0.99, confident=1.0)
    (told,) = failures({"logits": distance(SCORES, SCORES[:, ::-1])}, [LOGITS], loose)
    assert told.startswith("output 'logits' points elsewhere: its rows' mean cosine is 0.")
    assert told.endswith(", below 0.99")


def test_rows_that_pytorch_is_sure_of_must_keep_their_class() -> None:
    swapped = SCORES.copy()
    swapped[1] = [2.0, 3.0, 1.0]
    found, loose = {"logits": distance(SCORES, swapped)}, Gate(relative=2.0, cosine=0.0, confident=0.1)
    (told,) = failures(found, [LOGITS], loose, strict=True)
    assert told == "output 'logits' has another best class in 1 of 2 rows that PyTorch is sure of; 10% are let through"
    assert failures(found, [LOGITS], Gate(relative=2.0, cosine=0.0, confident=0.5), strict=True) == []


def test_one_row_of_few_may_be_chance() -> None:
    loose = Gate(relative=2.0, cosine=0.0, confident=0.1)
    answers = np.eye(3, dtype=np.float32)[np.arange(14) % 3] * 9
    for wrong, fails in ((1, False), (2, False), (5, True)):
        other = answers.copy()
        other[:wrong] = other[:wrong, [1, 2, 0]]
        assert bool(failures({"logits": distance(answers, other)}, [LOGITS], loose)) == fails


def test_too_few_rows_to_judge_classes_by_are_said() -> None:
    gate = Gate(relative=2.0, cosine=0.0, confident=0.05, rows=12)
    scores = np.eye(3, dtype=np.float32)[np.arange(30) % 3] * 9
    scores[10:] = 0.1
    found = {"logits": distance(scores, scores)}
    told = missing(found, None, None, gate)
    assert told.startswith("PyTorch is sure of 10 of the 30 rows that judge the classes of 'logits'; expected 12, which some 36 rows would")
    assert told.endswith("--tolerate PRECISION:rows=10)")
    assert missing(found, None, None, replace(gate, rows=10)) == ""
    assert missing({"embedding": distance(scores[10:], scores[10:])}, None, None, gate) == "", "sure of none: no classes, it seems"


def test_labelled_rows_judge_classes_too() -> None:
    gate = Gate(relative=2.0, cosine=0.0, confident=0.05, rows=12)
    scores = np.eye(3, dtype=np.float32)[np.arange(10) % 3] * 9
    rows = LabelledSet(({"x": scores},), np.zeros(10, np.int64), "accuracy", "logits", "0" * 64)
    both = {"logits": distance(scores, scores)}
    assert missing(both, None, None, gate)
    assert missing(both, rows, Judged(1.0, 1.0, distance(scores, scores)), gate) == ""


def test_few_rows_leave_a_doubt() -> None:
    gate = Gate(relative=2.0, cosine=0.0, confident=0.05)
    sure, unsure = (np.eye(3, dtype=np.float32)[np.arange(80) % 3] * scale for scale in (9, 0.1))
    for rows, doubtful in ((7, True), (58, True), (59, False), (80, False)):
        said = doubt({"logits": distance(sure[:rows], sure[:rows])}, gate)
        assert said.startswith(f"only {rows} rows that PyTorch is sure of") == doubtful
        assert bool(said) == doubtful
    assert doubt({"embedding": distance(unsure, unsure)}, gate) == ""
