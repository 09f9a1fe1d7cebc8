"""The simulated autoscaler is Kubernetes', the simulated fleet loses nothing, and the chart's defaults are those that were simulated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.autoscale import DEFAULTS, SIGNALS, play, turns
from benchmarks.autoscale_fleet import STEP, TRACES, Fleet, device
from benchmarks.autoscale_hpa import PERIOD, Autoscaler, Policy, Rules, Settings, recommended
from tests.deploy.chart import CHART

FREE = Rules(0.0, ())
PLAIN = Settings(target=0.5, least=1, most=100, up=FREE, down=FREE)


def test_the_documented_example() -> None:
    """Kubernetes' documentation: 200m where 100m is wanted doubles the replicas, 50m halves them; within a tenth nothing is done."""
    per_pod = replace(PLAIN, target=100.0, per_pod=True)
    assert [recommended(per_pod, figure, 4, 4) for figure in (200.0, 50.0, 109.0, 91.0, 111.0)] == [8, 2, 4, 4, 5]
    assert [recommended(replace(PLAIN, target=100.0), figure * 4, 4, 4) for figure in (200.0, 50.0, 109.0, 91.0, 111.0)] == [8, 2, 4, 4, 5]


def test_pods_that_are_not_ready_dampen_a_resource_metric_and_not_a_sum() -> None:
    per_pod = replace(PLAIN, per_pod=True)
    assert recommended(per_pod, 1.0, 4, 4) == 8
    assert recommended(per_pod, 1.0, 4, 2) == 4, "half of them count as idle: on target"
    assert recommended(PLAIN, 2.0, 4, 2) == 4
    assert recommended(PLAIN, 4.0, 4, 2) == 8


def test_shrinking_waits_for_the_window_and_growing_does_not() -> None:
    scaler = Autoscaler(replace(PLAIN, down=Rules(300.0, ())))
    assert scaler.decide(0.0, 5.0, 2, 2) == 10
    sizes = [scaler.decide(PERIOD * number, 1.0, 10, 10) for number in range(1, 22)]
    assert sizes.index(2) == 20, "the last high recommendation is 300 s old"
    assert set(sizes[:20]) == {10}


def test_policies_bound_a_period_and_the_most_generous_counts() -> None:
    up = Rules(0.0, (Policy("Percent", 100, 60.0), Policy("Pods", 4, 60.0)))
    scaler = Autoscaler(replace(PLAIN, up=up))
    assert scaler.decide(0.0, 50.0, 2, 2) == 6
    assert scaler.decide(15.0, 50.0, 6, 6) == 6, "four within a minute is all there is"
    assert scaler.decide(61.0, 50.0, 6, 6) == 12
    down = Autoscaler(replace(PLAIN, down=Rules(0.0, (Policy("Percent", 25, 60.0),))))
    assert down.decide(0.0, 0.0, 8, 8) == 6


@given(
    figures=st.lists(st.floats(0, 50, allow_nan=False), min_size=1, max_size=60),
    per_pod=st.booleans(),
    starting=st.integers(0, 5),
)
def test_it_stays_within_its_bounds_and_policies(figures: list[float], per_pod: bool, starting: int) -> None:
    settings = replace(DEFAULTS, per_pod=per_pod)
    scaler, replicas = Autoscaler(settings), settings.least
    for number, figure in enumerate(figures):
        wanted = scaler.decide(PERIOD * number, figure, replicas, max(1, replicas - starting))
        assert settings.least <= wanted <= settings.most
        assert wanted <= replicas * 2
        assert wanted >= math.floor(replicas * 0.75)
        replicas = wanted


@given(rows=st.lists(st.floats(0, 2000), min_size=1, max_size=80), ready=st.integers(1, 5), ladder=st.booleans())
def test_rows_are_answered_refused_or_waiting(rows: list[float], ready: int, ladder: bool) -> None:
    fleet = Fleet(device("fp16"), device("int8") if ladder else None)
    done = refused = 0.0
    for offered in rows:
        step = fleet.step(offered, ready)
        done, refused = done + step.done, refused + step.refused
        assert 0 <= step.busy <= 1
        assert step.done <= ready * STEP * device("int8" if ladder else "fp16").rate * (1 + 1e-9)
    assert done + refused + fleet.waiting * ready == pytest.approx(sum(rows))


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_peaks_where_it_says(trace: str) -> None:
    rows = TRACES[trace](1000.0, np.random.default_rng(1))
    minutes = rows[: len(rows) // 240 * 240].reshape(-1, 240).mean(axis=1) / STEP
    assert 900 < minutes.max() < 1500
    assert minutes.min() < 350


def test_utilization_scales_where_cpu_at_its_usual_target_does_not() -> None:
    """A device that's full keeps the CPU at 65 %: a target of 70 % is never reached, and the fleet stays as small as it is."""
    utilization = play("flash crowd", "capacity", DEFAULTS, ladder=False, seed=1)
    cpu = play("flash crowd", "cpu", replace(DEFAULTS, target=0.7, per_pod=True), ladder=False, seed=1)
    assert utilization.goodput > 0.95
    assert cpu.most == 3, "as many as it began with"
    assert cpu.goodput < 0.75


def test_the_ladder_holds_what_replicas_come_too_late_for() -> None:
    without = play("flash crowd", "capacity", DEFAULTS, ladder=False, seed=1)
    with_it = play("flash crowd", "capacity", DEFAULTS, ladder=True, seed=1)
    assert with_it.goodput > without.goodput
    assert with_it.hours == pytest.approx(without.hours), "stepping down doesn't talk the autoscaler into fewer replicas"


def test_turns() -> None:
    assert turns([2, 4, 4, 8, 6, 6, 3, 5]) == 2


def test_the_charts_defaults_are_what_was_simulated() -> None:
    values: Any = yaml.safe_load((CHART / "values.yaml").read_text())["autoscaling"]
    assert values["keda"]["target"] == DEFAULTS.target
    assert values["minReplicas"] == DEFAULTS.least
    for name, rules in (("scaleUp", DEFAULTS.up), ("scaleDown", DEFAULTS.down)):
        assert values[name]["stabilizationWindowSeconds"] == rules.window
        policies = [{"type": policy.kind, "value": policy.value, "periodSeconds": policy.period} for policy in rules.policies]
        assert values[name]["policies"] == policies
    assert DEFAULTS.target in SIGNALS["capacity"].targets
