"""Sums of two arms: adding them up is exact in any order, bounded, and loses no request."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.router import evidence
from server.router.evidence import MOST_BLOCKS, UNIT, Arm, Evidence, Sums, as_rows

Seen: TypeAlias = tuple[str, float, Arm, float, float]

SEEN = st.tuples(
    st.sampled_from(["errors", "latency"]),
    st.sampled_from([1.0, 50.0]),
    st.sampled_from(list(Arm)),
    st.floats(0, 1),
    st.integers(0, 4000).map(float),
)
MANY = st.lists(SEEN, max_size=40)


def counted(seen: list[Seen]) -> Evidence:
    found = Evidence()
    for one in seen:
        found.add(*one)
    return found


@given(MANY, MANY, MANY)
def test_merging_is_associative_and_commutative_to_the_last_bit(first: list[Seen], second: list[Seen], third: list[Seen]) -> None:
    a, b, c = counted(first), counted(second), counted(third)
    assert a.merged(b) == b.merged(a)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert a.merged(Evidence()) == a


@given(MANY, MANY)
def test_merging_equals_counting_all_at_once(first: list[Seen], second: list[Seen]) -> None:
    kept = counted(first)
    before = Evidence(kept.cells, kept.width)
    assert kept.merged(counted(second)) == counted(first + second) == counted(second + first)
    assert kept == before


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(0, 24 * MOST_BLOCKS, 17))), st.integers(0, 700))
def test_a_long_experiment_stays_bounded_in_any_order(times: list[int], cut: int) -> None:
    seen = [("errors", 50.0, Arm.CANARY, 1.0, float(at)) for at in times]
    whole = counted(seen)
    assert whole == counted(seen[:cut]).merged(counted(seen[cut:]))
    assert len(whole.strata("errors")[50.0]) <= MOST_BLOCKS
    assert whole.total("errors", Arm.CANARY) == Sums(len(times), len(times) * UNIT, len(times) * UNIT**2)


def test_the_figures_are_those_of_the_values() -> None:
    values = np.random.default_rng(3).random(1000)
    found = counted([("latency", 5.0, Arm.BASELINE, float(value), 0.0) for value in values]).total("latency", Arm.BASELINE)
    assert found.mean == pytest.approx(values.mean(), rel=1e-5)
    assert found.variance == pytest.approx(values.var(), rel=1e-5)
    assert found.sum == pytest.approx(values.sum(), rel=1e-5)
    assert Sums().mean == Sums().variance == 0.0


@pytest.mark.parametrize(("value", "units"), [(-3.0, 0), (math.inf, UNIT), (math.nan, UNIT), (0.5, UNIT // 2)])
def test_a_value_is_held_to_its_range(value: float, units: int) -> None:
    assert counted([("m", 1.0, Arm.CANARY, value, 5.0)]).total("m", Arm.CANARY) == Sums(1, units, units * units)


def test_a_day_at_a_thousand_requests_a_second_fits_64_bits() -> None:
    assert 3600 * 1000 * UNIT**2 < 2**63  # squares of an hour's worst block, far more than any block has


def test_blocks_and_strata_are_apart_and_recent_ones_found() -> None:
    found = counted([("m", 1.0, Arm.CANARY, 1.0, 3.2), ("m", 1.0, Arm.BASELINE, 0.0, 3.9), ("m", 5.0, Arm.CANARY, 0.0, 9.0)])
    assert {stratum: list(blocks) for stratum, blocks in found.strata("m").items()} == {1.0: [3], 5.0: [9]}
    assert found.strata("m")[1.0][3] == (Sums(1, 0, 0), Sums(1, UNIT, UNIT * UNIT))
    assert found.total("m", Arm.CANARY, since=9.9).n == 1
    assert next(as_rows(found)) == ("m", 1.0, 3, "baseline", 1, 0, 0)
    assert evidence.BLOCK == 1.0
