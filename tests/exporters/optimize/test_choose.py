"""The fastest graph is kept, and the plainest where the gain isn't clear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.optimize.choose import MARGIN, fastest, speed_up

SECONDS = st.dictionaries(st.sampled_from([1, 8, 32]), st.floats(1e-5, 10), min_size=3, max_size=3)


def test_speed_is_the_mean_over_batch_sizes() -> None:
    assert speed_up({1: 1.0, 8: 8.0}, {1: 0.5, 8: 1.0}) == pytest.approx(4.0)
    assert speed_up({1: 1.0}, {2: 3.0}) == 1.0


@pytest.mark.parametrize(
    ("times", "kept"), [([1.0], 0), ([1.0, 0.5], 1), ([1.0, 0.97], 0), ([1.0, 0.97, 0.9], 2), ([1.0, 2.0, 0.99], 0), ([1.0, 0.5, 0.49], 1)]
)
def test_a_plainer_graph_wins_unless_it_is_clearly_slower(times: list[float], kept: int) -> None:
    assert fastest([{1: seconds} for seconds in times]) == kept


@given(st.lists(SECONDS, min_size=1, max_size=5))
def test_nothing_is_clearly_faster_than_what_is_kept_but_what_came_before_a_faster_one(timed: list[dict[int, float]]) -> None:
    kept = fastest(timed)
    assert all(speed_up(timed[kept], later) < MARGIN for later in timed[kept + 1 :])
    assert kept == 0 or speed_up(timed[0], timed[kept]) >= MARGIN
