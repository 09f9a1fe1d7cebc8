"""The child counts the rows that a classifier is sure of just as the proof does."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exporters.sources.trace_study import sure
from server.numerics import distance


@given(st.integers(1, 9), st.integers(2, 5), st.floats(0.0, 9.0), st.booleans(), st.integers(0, 2**32 - 1))
def test_it_agrees_with_the_proof(rows: int, classes: int, spread: float, shares: bool, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, spread, (rows, classes))
    if shares:
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert sure([scores]) == distance(scores, scores).confident


def test_only_scores_count() -> None:
    clear, unclear = np.eye(3)[[0, 1, 2, 0]] * 9, np.full((4, 3), 0.1)
    assert sure([clear, clear[:2], unclear]) == 2
    assert sure([clear[:, :1], np.ones((4, 2, 2)), clear.astype(np.int64)]) == 0
