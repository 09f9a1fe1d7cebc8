"""Distances between answers: exact cases, special values, merging, and the bound of a rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from server.numerics import Distance, distance, looks_like_scores, merged, upper_bound

FLOATS = st.floats(-1e6, 1e6, width=32)


def test_equal_answers_are_at_distance_zero() -> None:
    scores = np.array([[0.1, 0.9], [2.0, -1.0]], np.float32)
    found = distance(scores, scores.copy())
    assert (found.max_abs, found.mean_abs, found.cosine_min, found.cosine_mean) == (0.0, 0.0, 1.0, 1.0)
    assert found.top1_disagreement == 0.0


def test_known_distance() -> None:
    found = distance(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 4.5], [2.0, 0.0]]))
    assert found.max_abs == 2.0
    assert found.mean_abs == pytest.approx(4.5 / 4)
    assert found.scale == 4.0
    assert found.max_relative == 0.5
    assert found.cosine_min == 0.0
    assert found.top1_disagreement == 0.5


def test_special_values() -> None:
    nan, inf = np.nan, np.inf
    assert distance(np.array([[nan, inf, 1.0]]), np.array([[nan, inf, 1.0]])).max_abs == 0.0
    assert distance(np.array([[1.0, 2.0]]), np.array([[nan, 2.0]])).max_abs == inf
    assert distance(np.array([[inf]]), np.array([[-inf]])).max_abs == inf
    assert distance(np.zeros((2, 3)), np.zeros((2, 3))).cosine_min == 1.0
    assert distance(np.zeros((1, 3)), np.ones((1, 3))).cosine_min == 0.0


def test_tiny_answers_are_not_divided_by_nothing() -> None:
    found = distance(np.zeros((1, 2)), np.full((1, 2), 1e-9))
    assert found.max_relative == pytest.approx(1e-7)


def test_integers_booleans_scalars_and_empty() -> None:
    assert distance(np.array([1, 2]), np.array([1, 5])).max_abs == 3.0
    assert distance(np.array([True, False]), np.array([True, True])).max_abs == 1.0
    assert distance(np.float32(2.0) + np.zeros(()), np.zeros(())).rows == 1
    assert distance(np.zeros((0, 4)), np.zeros((0, 4))) == Distance()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"reference \[1, 2\], answer \[2, 1\]"):
        distance(np.zeros((1, 2)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="BYTES"):
        distance(np.array([b"a"], object), np.array([b"a"], object))


def test_only_float_matrices_look_like_scores() -> None:
    assert looks_like_scores(np.zeros((3, 2), np.float32))
    assert not looks_like_scores(np.zeros((3, 1), np.float32))
    assert not looks_like_scores(np.zeros((3, 2), np.int64))
    assert not looks_like_scores(np.zeros((3, 2, 2), np.float32))
    assert distance(np.zeros((3, 1)), np.zeros((3, 1))).top1_upper95 is None


def test_only_rows_that_the_reference_is_sure_of_are_confident() -> None:
    logits = np.array([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 9.0, 0.0]])
    found = distance(logits, logits[:, ::-1])
    assert (found.classified, found.disagreements, found.confident, found.confident_disagreements) == (3, 2, 2, 1)
    assert found.confident_disagreement == 0.5
    distributed = np.array([[0.6, 0.4], [0.5, 0.5]])
    assert distance(distributed, distributed).confident == 1
    assert distance(np.array([[1, 2]]), np.array([[2, 1]])).confident_disagreement is None


@given(arrays(np.float32, (6, 3), elements=FLOATS), arrays(np.float32, (6, 3), elements=FLOATS), st.integers(0, 6))
def test_batches_add_up_to_the_whole(reference: np.ndarray, answer: np.ndarray, cut: int) -> None:
    whole = distance(reference, answer)
    parts = merged(distance(reference[cut:], answer[cut:]), distance(reference[:cut], answer[:cut]))
    assert (parts.elements, parts.rows, parts.max_abs, parts.scale) == (whole.elements, whole.rows, whole.max_abs, whole.scale)
    assert (parts.disagreements, parts.classified) == (whole.disagreements, whole.classified)
    assert (parts.confident, parts.confident_disagreements) == (whole.confident, whole.confident_disagreements)
    assert parts.mean_abs == pytest.approx(whole.mean_abs)
    assert parts.cosine_min == pytest.approx(whole.cosine_min)


@pytest.mark.parametrize(("events", "trials"), [(0, 1), (0, 59), (1, 100), (7, 238), (50, 100), (99, 100), (3, 100_000)])
def test_upper_bound_is_clopper_pearson(events: int, trials: int) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    assert upper_bound(events, trials) == pytest.approx(beta.ppf(0.95, events + 1, trials - events), rel=1e-6)


def test_upper_bound_at_its_ends() -> None:
    assert upper_bound(0, 300) == pytest.approx(3 / 300, rel=0.01)
    assert upper_bound(5, 5) == 1.0
    for events, trials in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="expected 0 <= events <= trials"):
            upper_bound(events, trials)
