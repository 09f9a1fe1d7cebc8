"""What comparisons come to, and what is told of inputs beside the calibration set's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.numerics import divergence
from server.precision.drift import rates
from server.precision.guard.inputs import ENOUGH, Input, count
from server.precision.guard.record import Blame, Cause, Proof, Record, compare, is_finite, proof_of
from server.repository.manifest import InputStatistics, Variant
from server.tensors import Tensor
from tests.server.models import linear_model, variant

SCORES = np.array([[4.0, 1.0, 0.0]], np.float32)


def record() -> Record:
    return Record("int8", rates(0.01, 0.05), 0.1)


def test_a_comparison_is_the_worst_over_the_outputs_that_the_answer_has() -> None:
    reference = {"scores": SCORES, "more": np.ones((1, 4), np.float32), "text": np.array([b"x"], object)}
    same = compare(reference, {"scores": SCORES.copy()}, 0.1)
    assert same is not None
    assert (same.differs, same.cosine, same.max_relative) == (False, 1.0, 0.0)
    assert same.divergence == pytest.approx(0.0, abs=1e-12)
    other = compare(reference, {"scores": SCORES[:, ::-1], "more": np.ones((1, 4), np.float32)}, 0.1)
    assert other is not None
    assert other.differs
    assert other.divergence is not None
    assert other.divergence > 1
    assert compare(reference, {"text": reference["text"]}, 0.1) is None
    embedding = compare({"y": np.ones((1, 1, 4))}, {"y": np.full((1, 1, 4), 1.2)}, 0.1)
    assert embedding is not None
    assert (embedding.differs, embedding.divergence) == (True, None)


def test_embeddings_are_known_by_their_proof_and_judged_by_distance(tmp_path: Path) -> None:
    near = SCORES + np.array([[-3.5, 0.0, 3.9]], np.float32)  # another best class, but not far
    found = compare({"y": SCORES}, {"y": near}, 1.0, classes=False)
    assert found is not None
    assert (found.differs, found.divergence) == (False, None)
    found = compare({"y": SCORES}, {"y": near}, 1.0)
    assert found is not None
    assert found.differs
    entry = variant(linear_model(tmp_path / "model.int8.onnx"), "int8")
    parity = {**entry["parity"], "top1_upper95": 0.03, "tolerance": 0.2}
    for confident, wanted in ((0, Proof(None, 0.2, classes=False)), (7, Proof(0.03, 0.2)), (None, Proof(0.03, 0.2))):
        assert proof_of(Variant.model_validate({**entry, "parity": {**parity, "confident": confident}})) == wanted
    assert proof_of(None) == Proof()


@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_divergence_is_never_negative_and_zero_for_the_same(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(5, classes)) * 10, random.normal(size=(5, classes)) * 10
    assert (divergence(a, b) >= 0).all()
    assert np.allclose(divergence(a, a), 0, atol=1e-9)
    shares = np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    assert np.allclose(divergence(shares, shares), 0, atol=1e-9)


def test_a_divergence_of_known_distributions() -> None:
    assert divergence(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    bad = np.array([[np.nan, 1.0]])
    assert np.isinf(divergence(np.array([[0.5, 0.5]]), bad)).all()
    assert divergence(bad, bad) == pytest.approx(0.0)


def test_nan_is_an_alarm_once_and_only_if_its_the_variants() -> None:
    known = record()
    assert known.blame(Blame.INPUT) is None
    assert known.blame(Blame.NEIGHBOUR) is None
    assert known.blame(Blame.UNKNOWN) is None
    assert known.clean
    alarm = known.blame(Blame.VARIANT)
    assert alarm is not None
    assert alarm.cause is Cause.NOT_FINITE
    assert "NaN" in str(alarm)
    assert known.blame(Blame.VARIANT) is None
    assert not known.clean
    known.anew()
    assert known.clean
    assert known.nonfinite[Blame.VARIANT] == 2
    assert known.told()["verdict"] == "healthy"


@given(st.lists(st.sampled_from([0.0, 1.5, -3e38, 3e38, np.nan, np.inf, -np.inf]), min_size=1, max_size=40))
def test_finite_is_finite(values: list[float]) -> None:
    for kind in (np.float32, np.float64):
        array: Tensor = np.array(values, kind)
        assert is_finite({"y": array}) == bool(np.isfinite(array).all())
    with np.errstate(over="ignore"):
        half = np.array(values).astype(np.float16)
    assert is_finite({"y": half}) == bool(np.isfinite(half).all())
    assert is_finite({"n": np.array([1, 2]), "text": np.array([b"nan"], object)})


def test_inputs_are_told_beside_the_calibration_sets() -> None:
    random = np.random.default_rng(2)
    expected = InputStatistics(least=-3.0, greatest=3.0, mean=0.0, deviation=1.0)
    alike, moved = Input(expected), Input(expected)
    inputs = {"x": alike, "unseen": moved}
    for _ in range(round(ENOUGH) + 10):
        count(inputs, {"x": random.normal(size=(1, 64)).clip(-3, 3), "text": np.array([b"a"], object)})
        moved.add(np.append(random.normal(5.0, 2.0, size=63), np.nan))
    assert alike.shift < 0.2
    assert alike.strange == 0.0
    assert alike.deviation == pytest.approx(1.0, abs=0.1)
    assert moved.shift == pytest.approx(5.0, abs=0.4)
    assert moved.deviation == pytest.approx(2.0, abs=0.2)
    assert moved.strange > 0.7
    assert moved.told()["not_finite"] == pytest.approx(1 / 64, abs=1e-3)


def test_a_few_rows_say_nothing_of_inputs() -> None:
    few = Input(InputStatistics(least=0.0, greatest=1.0, mean=0.5, deviation=0.1))
    assert few.told() == {"rows": 0.0}
    few.add(np.full((1, 8), 100.0))
    assert (few.shift, few.strange) == (0.0, 0.0)
    few.add(np.full((1, 8), np.nan))
    assert few.told()["greatest"] == 100.0
