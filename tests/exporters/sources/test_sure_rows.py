"""The child counts the rows that a classifier is sure of just as the proof does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.sources.trace_study import MOST_BYTES, PATIENT_BYTES, SURE_ROWS, _Budget, sure
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


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 40, 64), (0.4, SURE_ROWS / 0.4, 256), (0.05, 200, 256), (1.0, SURE_ROWS, 96)])
def test_large_rows_go_on_while_few_are_sure(share: float, least: float, most: float) -> None:
    budget, run, row = _Budget(256), 0, MOST_BYTES // 64
    while rows := budget.next_batch():
        run += rows
        budget.spend(rows, rows * row, round(rows * share))
    assert least <= run <= most
    assert run * row <= PATIENT_BYTES
