"""The drift detector: how soon it sees a bad variant, how seldom it's wrong about a good one, and who is to blame for NaN."""

from __future__ import annotations

import math
from random import Random
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.precision import alarm_within, delays
from server.precision.drift import (
    MOST_TRIALS,
    THRESHOLD,
    Admission,
    Cusum,
    Finite,
    Rates,
    Verdict,
    differing,
    finite,
    interval,
    rates,
)
from server.tensors import Tensor

ONE_PERCENT = rates(0.01, 0.05)
NAN = float("nan")


def test_rates_come_from_the_proof_and_what_is_tolerated() -> None:
    assert ONE_PERCENT.p0 == 0.01
    assert ONE_PERCENT.p1 == pytest.approx(0.06)
    assert rates(0.01, 0.2).p1 == 0.2
    assert (rates(0.0, 0.0).p0, rates(None, 0.0).p0) == (0.001, 0.01)


@pytest.mark.parametrize("wrong", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.5, 1.0)])
def test_rates_that_cannot_be_told_apart_are_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 < p0 < p1 < 1"):
        Rates(*wrong)


def test_a_proof_that_is_itself_bad_is_refused() -> None:
    with pytest.raises(ValueError, match="p1"):
        rates(0.97, 0.05)


def test_a_low_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="13 or more, got 12"):
        Cusum(ONE_PERCENT, 12)


@given(st.lists(st.booleans(), max_size=300))
def test_the_statistic_is_that_of_page(seen: list[bool]) -> None:
    """It's the largest log-likelihood ratio of any stretch that ends now, until the alarm."""
    cusum, steps = Cusum(ONE_PERCENT), []
    for differs in seen:
        if cusum.add(differs):
            break
        steps.append(math.log(0.06 / 0.01) if differs else -math.log(0.99 / 0.94))
        tails = np.cumsum(steps[::-1])
        assert cusum.statistic == pytest.approx(max(0.0, tails.max()), abs=1e-9)
    assert (cusum.samples, cusum.differing) == (len(steps) + cusum.alarmed, sum(seen[: cusum.samples]))


def test_an_alarm_stays_and_says_its_figures() -> None:
    cusum = Cusum(ONE_PERCENT)
    assert cusum.judge().verdict is Verdict.HEALTHY
    while not cusum.add(True):
        pass
    assert all(cusum.add(False) for _ in range(1000))
    judgement = cusum.judge()
    assert (judgement.verdict, judgement.differing, judgement.samples) == (Verdict.DRIFTED, 8, 1008)
    assert judgement.statistic >= judgement.threshold == THRESHOLD
    assert judgement.low < 8 / 1008 < judgement.high


@pytest.mark.parametrize(("rate", "most"), [(0.05, 350), (0.2, 60)])
def test_a_bad_variant_is_seen_soon(rate: float, most: int) -> None:
    assert median(delays(rate, 400, seed=1)) <= most


def test_a_healthy_one_is_left_alone() -> None:
    assert alarm_within(1_000_000, 0.01, runs=1000, seed=2) <= 0.05


def test_the_fast_simulation_is_the_detector() -> None:
    """The long one skips from disagreement to disagreement; both must give the same share of alarms."""
    slow = sum(delay <= 300 for delay in delays(0.05, 1000, seed=3)) / 1000
    assert alarm_within(300, 0.05, runs=4000, seed=4) == pytest.approx(slow, abs=0.05)


def admitted(rate: float, seed: int) -> Verdict:
    random, admission = Random(seed), Admission(ONE_PERCENT)
    while admission.verdict is Verdict.UNDECIDED:
        admission.add(random.random() < rate)
    return admission.verdict


def test_admission_keeps_its_chances() -> None:
    good = [admitted(0.01, seed) for seed in range(300)]
    bad = [admitted(0.06, seed) for seed in range(300, 800)]
    assert good.count(Verdict.REFUSED) / 300 <= 0.08
    assert bad.count(Verdict.ADMITTED) <= 3


def test_an_admission_ends() -> None:
    """At the rate where it drifts neither way it's refused for want of evidence, and a verdict stays."""
    admission = Admission(Rates(0.4, 0.6))
    for trial in range(MOST_TRIALS):
        assert admission.verdict is Verdict.UNDECIDED
        admission.add(trial % 2 == 0)
    assert admission.add(False) is Verdict.REFUSED
    assert admission.judge().samples == MOST_TRIALS


@pytest.mark.parametrize("wrong", [{"admit_bad": 0.0}, {"refuse_good": 0.5}])
def test_an_admission_that_decides_by_a_coin_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0.5"):
        Admission(ONE_PERCENT, **wrong)


def scores(*rows: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(rows, dtype=np.float32)


def test_scores_differ_by_their_top_1_alone() -> None:
    reference = {"y": scores([1, 2], [3, 1], [5, 0])}
    answer = {"y": scores([1, 9], [1, 3], [2, 1])}
    assert differing(reference, answer, 0.01) == (False, True, False)


def test_embeddings_differ_by_relative_distance_of_their_row() -> None:
    reference = {"e": np.array([[[1.0, 2.0]], [[100.0, 0.0]]])}
    answer = {"e": np.array([[[1.0, 2.1]], [[100.5, 0.0]]])}
    assert differing(reference, answer, 0.02) == (True, False)


def test_where_there_are_scores_nothing_else_is_judged() -> None:
    reference: dict[str, Tensor] = {"y": scores([1, 2]), "hidden": np.zeros((1, 1, 4)), "text": np.array([["a"]], dtype=object)}
    assert differing(reference, {**reference, "hidden": np.ones((1, 1, 4))}, 0.01) == (False,)


def test_what_cannot_be_compared() -> None:
    assert differing({"t": np.array(["a"], dtype=object)}, {"t": np.array(["b"], dtype=object)}, 0.1) == ()
    assert differing({"s": np.array(1.0)}, {"s": np.array(2.0)}, 0.1) == (True,)
    with pytest.raises(ValueError, match="outputs differ"):
        differing({"a": scores([1, 2])}, {"b": scores([1, 2])}, 0.1)
    with pytest.raises(ValueError, match="unlike rows"):
        differing({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, 0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        differing({"a": scores([1, 2])}, {"a": scores([1, 2, 3])}, 0.1)


@pytest.mark.parametrize(
    ("answer", "reference", "inputs", "expected"),
    [
        ([1, 2], None, [1], Finite.CLEAN),
        ([1, 2], None, [NAN], Finite.CLEAN),
        ([NAN, 2], None, [1], Finite.RECOMPUTE),
        ([NAN, 2], [1, 2], [1], Finite.VARIANT),
        ([1, math.inf], [1, 2], [1], Finite.VARIANT),
        ([NAN, 2], [NAN, 2], [1], Finite.INPUT),
        ([-math.inf, 2], [-math.inf, 2], [1], Finite.INPUT),  # a mask
        ([NAN, NAN], [NAN, 2], [1], Finite.VARIANT),  # FP32 is finite in one place
        ([NAN, NAN], [1, 2], [NAN], Finite.INPUT),  # a client that sends NaN pins nothing out
        ([NAN, NAN], None, [math.inf], Finite.INPUT),
    ],
)
def test_who_is_to_blame(answer: list[float], reference: list[float] | None, inputs: list[float], expected: Finite) -> None:
    wanted = None if reference is None else {"y": scores(reference), "n": np.array([1])}
    assert finite({"y": scores(answer), "n": np.array([1])}, wanted, {"x": scores(inputs)}) is expected


def test_bytes_and_integers_are_finite() -> None:
    assert finite({"t": np.array(["a"], dtype=object), "n": np.array([1])}, None, {}) is Finite.CLEAN


def test_the_interval_is_that_of_wilson() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    assert list(interval(8, 400)) == pytest.approx([0.01017, 0.03893], abs=1e-4)
    assert interval(0, 100)[0] == 0.0
    assert interval(100, 100)[1] == 1.0
