"""What a variant costs as the ladder reckons with it: over lanes, scaled to this device, mixed with another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.cost_model import CostModel
from server.precision.costs import Mixed, OnLanes, foreseen
from server.precision.ladder import capacity
from tests.server.precision.test_ladder import Affine

ELSEWHERE = {"fp32": {1: 0.010, 8: 0.080}, "int8": {1: 0.005, 8: 0.020}}


def test_lanes_share_the_rows_but_not_a_run() -> None:
    one, two = (OnLanes(CostModel({1: 0.01, 64: 0.1}), 1, lanes) for lanes in (1, 2))
    assert two.estimate(8) == one.estimate(8)
    assert capacity(two, 0.05, 64) == pytest.approx(2 * capacity(one, 0.05, 64))


@given(st.floats(0.1, 10))
def test_a_ratio_carries_over_and_the_time_does_not(speed: float) -> None:
    here = OnLanes(CostModel({rows: seconds * speed for rows, seconds in ELSEWHERE["fp32"].items()}))
    cost = foreseen(here, ELSEWHERE["fp32"], ELSEWHERE["int8"])
    assert cost is not None
    for rows, seconds in ELSEWHERE["int8"].items():
        assert cost.mean(rows) == pytest.approx(seconds * speed, rel=0.1)
        assert cost.estimate(rows) >= cost.mean(rows)


def test_without_figures_of_both_nothing_is_foreseen() -> None:
    here = OnLanes(CostModel({1: 0.01, 8: 0.08}))
    assert foreseen(here, {}, ELSEWHERE["int8"]) is None
    assert foreseen(here, ELSEWHERE["fp32"], {}) is None


@given(st.floats(0, 1))
def test_a_mixture_lies_between_its_parts(share: float) -> None:
    slow, fast = Affine(0.002, 0.004), Affine(0.001, 0.0005)
    mixed = Mixed(fast, slow, share)
    assert fast.mean(8) <= mixed.mean(8) <= slow.mean(8)
    assert mixed.estimate(8) == (slow.estimate(8) if share else fast.estimate(8))
