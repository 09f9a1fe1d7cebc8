"""The ladder: steps before the objective breaks, comes back with hysteresis, never to a forbidden variant, and says why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.latency_table import BUILT_IN, read_table
from server.engine.cost_model import CostModel
from server.precision.ladder import Ladder, Policy, Reason, Rung, Settings, Sight, Skip, capacity

NAMES = ("fp32", "fp16", "int8")
LADDER = Settings(policy=Policy.LADDER, ladder=NAMES, objective=0.05)


@dataclass(frozen=True)
class Affine:
    """T(b) = a + c·b, to the point."""

    a: float
    c: float

    def mean(self, rows: int) -> float:
        return self.a + self.c * rows

    def estimate(self, rows: int) -> float:
        return self.mean(rows)


COSTS: Mapping[str, Affine] = {"fp32": Affine(0.002, 0.004), "fp16": Affine(0.001, 0.001), "int8": Affine(0.001, 0.0005)}
RUNGS = tuple(Rung(name, cost) for name, cost in COSTS.items())
MOST = {name: capacity(cost, 0.05, 64) for name, cost in COSTS.items()}


def barring(name: str, why: Skip) -> tuple[Rung, ...]:
    return tuple(replace(rung, barred=why) if rung.precision == name else rung for rung in RUNGS)


def play(ladder: Ladder, rates: Sequence[float], rungs: Sequence[Rung] = RUNGS, rows: tuple[int, ...] = (4,)) -> list[str]:
    """One decision a second, each acted upon; the precisions that were stepped to."""
    steps = []
    for now, rate in enumerate(rates):
        decision = ladder.decide(rungs, Sight(float(now), rate, rows=rows))
        if decision.precision != ladder.active:
            ladder.stepped(decision.precision, float(now))
            steps.append(decision.precision)
    return steps


def decide(active: str, rate: float, rungs: Sequence[Rung] = RUNGS, settings: Settings = LADDER) -> tuple[str, Reason]:
    decision = Ladder(settings, active).decide(rungs, Sight(0.0, rate, rows=(4,)))
    return decision.precision, decision.reason


def test_capacity_is_within_the_objective() -> None:
    cost = Affine(0.010, 0.001)
    rows = max(b for b in range(1, 65) if cost.mean(b) * (2 - 1 / b) <= 0.05)
    assert capacity(cost, 0.05, 64) == rows / cost.mean(rows)
    assert capacity(cost, 0.05, 8) == 8 / cost.mean(8)
    assert capacity(cost, 0.010, 64) == 0.0  # not even one row
    assert capacity(cost, None, 64) == 64 / cost.mean(64)


def test_it_steps_before_the_objective_breaks() -> None:
    assert decide("fp32", 0.84 * MOST["fp32"]) == ("fp32", Reason.STEADY)
    assert decide("fp32", 0.86 * MOST["fp32"]) == ("fp16", Reason.THREATENED)


def test_a_rate_that_is_foreseen_counts() -> None:
    sight = Sight(0.0, 0.5 * MOST["fp32"], ahead=0.9 * MOST["fp32"], rows=(4,))
    assert Ladder(LADDER, "fp32").decide(RUNGS, sight).reason is Reason.THREATENED


def test_it_steps_at_once_to_where_the_objective_keeps() -> None:
    assert decide("fp32", 1.2 * MOST["fp16"]) == ("int8", Reason.THREATENED)
    assert decide("int8", 5 * MOST["int8"]) == ("int8", Reason.NO_BETTER)


def test_it_comes_back_after_a_calm_spell() -> None:
    ladder, rate = Ladder(LADDER, "fp32"), 0.5 * MOST["fp32"]
    ladder.stepped("fp16", 0.0)
    seen = {now: ladder.decide(RUNGS, Sight(float(now), rate, rows=(4,))).reason for now in range(31)}
    assert {seen[now] for now in range(30)} == {Reason.COOLING}
    assert seen[30] is Reason.ROOM


def test_a_burst_ends_the_calm_spell() -> None:
    ladder, low, between = Ladder(LADDER, "fp16"), 0.5 * MOST["fp32"], 0.8 * MOST["fp32"]
    reasons = [ladder.decide(RUNGS, Sight(float(now), between if now == 5 else low, rows=(4,))).reason for now in range(17)]
    assert reasons[5] is Reason.STEADY
    assert reasons.index(Reason.ROOM) == 16


def test_a_step_down_waits_for_the_one_before_it_to_settle() -> None:
    ladder = Ladder(LADDER, "fp32")
    ladder.stepped("fp16", 0.0)
    sights = [Sight(now, 2 * MOST["fp16"], rows=(4,)) for now in (1.0, 2.0)]
    assert [ladder.decide(RUNGS, sight).reason for sight in sights] == [Reason.COOLING, Reason.THREATENED]


@pytest.mark.parametrize("why", [Skip.UNPROVEN, Skip.PINNED_OUT, Skip.FAILED])
def test_what_is_forbidden_is_passed_over_and_said(why: Skip) -> None:
    decision = Ladder(LADDER, "fp32").decide(barring("fp16", why), Sight(0.0, MOST["fp32"], rows=(4,)))
    assert (decision.precision, decision.skipped) == ("int8", (("fp16", why),))


def test_int8_that_is_slower_than_fp16_is_skipped_and_said() -> None:
    slow = (*RUNGS[:2], Rung("int8", Affine(0.002, 0.0011)))
    decision = Ladder(LADDER, "fp32").decide(slow, Sight(0.0, 9 * MOST["fp16"], rows=(1, 16)))
    assert (decision.precision, decision.skipped) == ("fp16", (("int8", Skip.SLOWER),))


def test_faster_means_at_every_batch_size_in_use() -> None:
    large_only = (*RUNGS[:2], Rung("int8", Affine(0.004, 0.0005)))
    found = {
        rows: Ladder(LADDER, "fp16").decide(large_only, Sight(0.0, MOST["fp16"], rows=rows)).precision for rows in ((1,), (1, 64), (64,))
    }
    assert found == {(1,): "fp16", (1, 64): "fp16", (64,): "int8"}


def test_what_was_never_measured_or_is_not_there_is_skipped() -> None:
    decision = Ladder(LADDER, "fp32").decide((RUNGS[0], Rung("fp16")), Sight(0.0, MOST["fp32"]))
    assert (decision.precision, decision.reason) == ("fp32", Reason.NO_BETTER)
    assert decision.skipped == (("fp16", Skip.UNMEASURED), ("int8", Skip.ABSENT))


def test_an_objective_that_fp32_cannot_keep_is_left_even_without_load() -> None:
    rungs = (Rung("fp32", Affine(0.06, 0.01)), *RUNGS[1:])
    assert decide("fp32", 0.0, rungs) == ("fp16", Reason.THREATENED)


def test_without_an_objective_nothing_moves() -> None:
    assert decide("fp32", 9e9, settings=replace(LADDER, objective=None)) == ("fp32", Reason.NO_OBJECTIVE)


def test_an_experiment_freezes_it_unless_the_active_variant_may_not_answer() -> None:
    sight = Sight(0.0, MOST["fp32"], rows=(4,), frozen=True)
    assert Ladder(LADDER, "fp32").decide(RUNGS, sight).reason is Reason.FROZEN
    assert Ladder(LADDER, "fp32").decide(barring("fp32", Skip.FAILED), sight).reason is Reason.BARRED


@pytest.mark.parametrize(
    ("rate", "refuge"),
    [(0.5 * MOST["fp32"], "fp32"), (1.5 * MOST["fp32"], "fp16"), (9 * MOST["fp16"], "fp16")],
    ids=["low", "high", "over"],
)
def test_a_fallback_goes_to_the_most_exact_that_bears_the_load(rate: float, refuge: str) -> None:
    assert decide("int8", rate, barring("int8", Skip.PINNED_OUT)) == (refuge, Reason.BARRED)


def test_with_nowhere_to_go_it_stays() -> None:
    assert decide("fp32", 1.0, (replace(RUNGS[0], barred=Skip.FAILED),)) == ("fp32", Reason.NO_BETTER)


FIXED = Settings(active="int8", objective=0.05)


@pytest.mark.parametrize(
    ("active", "rungs", "expected"),
    [
        ("int8", RUNGS, ("int8", Reason.STEADY)),
        ("fp32", RUNGS, ("int8", Reason.WANTED)),
        ("fp32", barring("int8", Skip.UNPROVEN), ("fp32", Reason.NO_BETTER)),
        ("int8", barring("int8", Skip.UNPROVEN), ("int8", Reason.STEADY)),  # the only one there is needs no proof
        ("int8", barring("int8", Skip.PINNED_OUT), ("fp32", Reason.BARRED)),
        ("fp32", RUNGS[:2], ("fp32", Reason.NO_BETTER)),
    ],
)
def test_fixed(active: str, rungs: Sequence[Rung], expected: tuple[str, Reason]) -> None:
    assert decide(active, 9e9, rungs, FIXED) == expected


def test_schedule_wraps_around_midnight() -> None:
    settings = Settings(policy=Policy.SCHEDULE, schedule=((8 * 3600, "int8"), (20 * 3600, "fp32")))
    assert [settings.wanted(hour * 3600) for hour in (0, 7.99, 8, 19, 20, 23, 24 + 9)] == ["fp32", "fp32", "int8", "int8"] + [
        "fp32"
    ] * 2 + ["int8"]
    decision = Ladder(settings, "fp32").decide(RUNGS, Sight(0.0, 0.0, second=9 * 3600))
    assert (decision.precision, decision.reason) == ("int8", Reason.SCHEDULED)
    assert Ladder(settings, "fp32").decide(RUNGS, Sight(0.0, 0.0, second=9 * 3600, frozen=True)).reason is Reason.FROZEN


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"up_at": 0.9}, "up_at 0.9 and down_at 0.85"),
        ({"policy": Policy.LADDER}, "name the precisions"),
        ({"ladder": ("fp32", "fp32")}, "each precision once"),
        ({"policy": Policy.SCHEDULE}, "at least one time"),
        ({"schedule": ((5, "fp32"), (5, "int8"))}, "rising order"),
        ({"schedule": ((86400, "fp32"),)}, "0 to 86399"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**wrong)  # type: ignore[arg-type]


def test_the_t4_of_the_published_table() -> None:
    """BERT base, 50 ms: 100 rows/s is 0.6 of what FP32 can; up to 2,490 and back is two steps each way, FP32 at the bottom."""
    table = read_table(BUILT_IN["t4"])
    curves = {name: table.curve("bert_base_128", name) for name in NAMES}
    rungs = [Rung(name, CostModel({rows: curve.seconds(rows) for rows in (1, 2, 4, 8, 16, 32, 64)})) for name, curve in curves.items()]
    up = [100 + 2390 * share / 300 for share in range(301)]
    ladder = Ladder(LADDER, "fp32")
    down_steps, up_steps = play(ladder, up, rungs, (8,)), []
    assert (down_steps[-1], len(down_steps) <= 2) == ("int8", True)
    up_steps = play(ladder, [*up[::-1], *[100.0] * 60], rungs, (8,))
    assert (up_steps[-1], len(up_steps) <= 2) == ("fp32", True)


costs = st.builds(Affine, st.floats(1e-4, 0.06), st.floats(1e-5, 0.01))
bars = st.sampled_from([None, None, Skip.UNPROVEN, Skip.PINNED_OUT, Skip.FAILED])
rung_sets = st.lists(st.tuples(st.none() | costs, bars), min_size=3, max_size=3).map(
    lambda found: tuple(Rung(name, cost, bar) for name, (cost, bar) in zip(NAMES, found, strict=True))
)
sizes = st.lists(st.integers(1, 64), max_size=3).map(tuple)


@given(rung_sets, st.sampled_from(NAMES), st.floats(0, 5000), sizes)
def test_a_constant_rate_never_swings(rungs: tuple[Rung, ...], start: str, rate: float, rows: tuple[int, ...]) -> None:
    """One step at the most; two where the first was forced, because the variant that answered may not any more."""
    forced = any(rung.precision == start and rung.barred in (Skip.PINNED_OUT, Skip.FAILED) for rung in rungs)
    steps = play(Ladder(LADDER, start), [rate] * 120, rungs, rows)
    assert len(steps) <= 1 + forced
    assert len(set(steps)) == len(steps)


@given(st.lists(costs, min_size=3, max_size=3), st.booleans(), st.lists(st.floats(0, 5000), min_size=1, max_size=60), sizes)
def test_a_ramp_takes_two_steps_at_the_most(found: list[Affine], rising: bool, rates: list[float], rows: tuple[int, ...]) -> None:
    rungs = tuple(Rung(name, cost) for name, cost in zip(NAMES, found, strict=True))
    ramp = [rate for rate in sorted(rates, reverse=not rising) for _ in range(40)]
    steps = play(Ladder(LADDER, NAMES[0] if rising else NAMES[-1]), ramp, rungs, rows)
    assert len(steps) <= 2


@given(st.lists(st.tuples(rung_sets, st.floats(0, 5000), st.booleans()), min_size=1, max_size=30), st.sampled_from(NAMES), sizes)
def test_it_never_steps_to_a_forbidden_variant(seen: list[tuple[tuple[Rung, ...], float, bool]], start: str, rows: tuple[int, ...]) -> None:
    ladder = Ladder(LADDER, start)
    for now, (rungs, rate, frozen) in zip(itertools.count(step=20), seen, strict=False):
        decision = ladder.decide(rungs, Sight(float(now), rate, rows=rows, frozen=frozen))
        if decision.precision == ladder.active:
            continue
        assert next(rung for rung in rungs if rung.precision == decision.precision).barred is None
        if decision.reason is not Reason.BARRED:
            assert not frozen
            assert decision.precision not in dict(decision.skipped)
        ladder.stepped(decision.precision, float(now))
