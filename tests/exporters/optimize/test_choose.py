"""The fastest graph is kept, and the plainest where the gain isn't clear."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.optimize.choose import Runs, fastest, speed_up

RUNS = st.dictionaries(st.sampled_from([1, 8, 32]), st.lists(st.floats(1e-5, 10), min_size=5, max_size=5), min_size=3, max_size=3)


def medians(runs: Runs) -> dict[int, float]:
    return {rows: statistics.median(seconds) for rows, seconds in runs.items()}


def test_speed_is_the_mean_over_batch_sizes() -> None:
    assert speed_up({1: 1.0, 8: 8.0}, {1: 0.5, 8: 1.0}) == pytest.approx(4.0)
    assert speed_up({1: 1.0}, {2: 3.0}) == 1.0


@pytest.mark.parametrize(
    ("times", "kept"), [([1.0], 0), ([1.0, 0.5], 1), ([1.0, 0.97], 0), ([1.0, 0.97, 0.9], 2), ([1.0, 2.0, 0.99], 0), ([1.0, 0.5, 0.49], 1)]
)
def test_a_plainer_graph_wins_unless_it_is_clearly_slower(times: list[float], kept: int) -> None:
    assert fastest([{1: [seconds] * 9} for seconds in times]) == kept


def test_a_gain_within_the_noise_is_none() -> None:
    """One is faster in the middle by a fifth, but slower in eight rounds of twenty: that may well be chance."""
    plain = [1.0] * 20
    noisy, clear = [0.8] * 12 + [1.2] * 8, [0.8] * 16 + [1.2] * 4
    assert fastest([{1: plain}, {1: noisy}]) == 0
    assert fastest([{1: plain}, {1: clear}]) == 1
    # What else the machine did fell on both: the ratios of rounds are alike, though the times aren't.
    busy = [1.0 + index for index in range(20)]
    assert fastest([{1: busy}, {1: [seconds * 0.9 for seconds in busy]}]) == 1


@given(st.lists(RUNS, min_size=1, max_size=5))
def test_what_is_kept_over_the_plainest_was_faster_in_most_rounds(timed: list[dict[int, list[float]]]) -> None:
    kept = fastest(timed)
    assert kept == fastest([*timed, timed[kept]])
    chosen = [medians(timed[index]) for index in (0, kept)]
    assert kept in range(len(timed))
    assert kept == 0 or chosen[0] != chosen[1]
    assert fastest(timed, margin=1e9) == 0
