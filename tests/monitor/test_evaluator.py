"""The evaluator: its table, single steps, and alerts that outlive a restart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts import Alert, Level, State, Vector, labels_of
from monitor.evaluator import TABLE, Evaluator, Reason, Seen, diagram, step, texts
from monitor.metrics.query import Query, Raw
from monitor.rules.model import Rule

VALUE, CONDITION = Raw("value"), Raw("condition")
RULE = Rule("R/warning", "R", Level.WARNING, VALUE, CONDITION, labels=(("severity", "warning"),), summary="{model}: {value}", runbook="r")
SERIES = labels_of({"model": "a"})


class Answers:
    """What queries answer: set by the test."""

    def __init__(self, condition: Vector | None, value: Vector | None = None) -> None:
        self.answers = {CONDITION: condition, VALUE: value if value is not None else condition}

    def __call__(self, query: Query) -> Vector | None:
        return self.answers[query]  # type: ignore[index]


HOLDS, QUIET = Answers({SERIES: 5.0}), Answers({}, {SERIES: 1.0})


def test_the_table_has_a_row_for_all_that_can_be_seen() -> None:
    stays = {(State.INACTIVE, Seen.FALSE), (State.INACTIVE, Seen.FALSE_LONG_ENOUGH)}  # there is no alert to speak of
    states = {State.INACTIVE, State.PENDING, State.FIRING}
    assert set(TABLE) == {(state, seen) for state in states for seen in Seen} - stays


def test_the_diagram_has_every_edge() -> None:
    drawn = diagram()
    for (before, _), (after, _) in TABLE.items():
        assert f"{before} --> {after}: " in drawn


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 5))
def test_an_alert_fires_after_for_and_ends_after_keep_firing_for(truth: list[bool], hold: int, keep: int) -> None:
    """Against the definitions, by counting."""
    rule = replace(RULE, hold=float(hold), keep_firing_for=float(keep))
    evaluator = Evaluator([rule])
    states: list[State] = []
    for now, holds in enumerate(truth):
        evaluator.judge(HOLDS if holds else QUIET, float(now))
        states.append(next((alert.state for alert in evaluator.active()), State.INACTIVE))
    for now, state in enumerate(states):
        true_for = next((n for n in range(now + 1) if not truth[now - n]), now + 1)
        if true_for > hold:
            assert state is State.FIRING
        if state is State.FIRING and true_for == 0 and now:
            assert states[now - 1] is State.FIRING
            assert not all(not held for held in truth[max(0, now - keep) : now + 1]) or now < keep
    assert (State.FIRING, State.PENDING) not in set(pairwise(states))


def test_no_answer_changes_nothing() -> None:
    evaluator = Evaluator([RULE])
    evaluator.judge(HOLDS, 0.0)
    assert evaluator.judge(Answers(None), 1.0) == []
    assert [alert.state for alert in evaluator.active()] == [State.FIRING]


def test_a_resolved_alert_is_reported_once_with_its_times() -> None:
    evaluator = Evaluator([RULE])
    (fired,) = evaluator.judge(HOLDS, 10.0)
    (resolved,) = evaluator.judge(QUIET, 20.0)
    assert (fired.before, fired.alert.state, fired.reason, fired.alert.fired_at) == (State.INACTIVE, State.FIRING, Reason.HELD, 10.0)
    assert (resolved.alert.state, resolved.reason, resolved.alert.resolved_at) == (State.RESOLVED, Reason.ENDED, 20.0)
    assert resolved.alert.fingerprint == fired.alert.fingerprint
    assert evaluator.judge(QUIET, 30.0) == []


def restored(now: float = 100.0) -> tuple[Evaluator, Alert]:
    before = Evaluator([RULE])
    (fired,) = before.judge(HOLDS, 0.0)
    return Evaluator([RULE], [fired.alert], now=now, grace=60.0), fired.alert


def test_a_restored_alert_stays_while_nothing_is_known() -> None:
    evaluator, alert = restored()
    assert evaluator.judge(Answers({}, {}), 110.0) == []
    assert list(evaluator.active()) == [alert]


def test_a_restored_alert_resolves_once_its_query_says_so() -> None:
    evaluator, _ = restored()
    (move,) = evaluator.judge(QUIET, 110.0)
    assert move.alert.state is State.RESOLVED


def test_a_restored_alert_resolves_when_nothing_comes_for_too_long() -> None:
    evaluator, _ = restored()
    (move,) = evaluator.judge(Answers({}, {}), 160.0)
    assert move.alert.state is State.RESOLVED


def test_a_restored_alert_of_a_rule_that_is_gone_is_forgotten() -> None:
    _, alert = restored()
    assert list(Evaluator([replace(RULE, key="other")], [alert]).active()) == []


@pytest.mark.parametrize("nasty", ["{{ .Env.SECRET }}", "{value.__class__}", "{severity}", "${HOME}", "%s", "\n{alertname}"])
def test_what_a_label_holds_is_never_a_template(nasty: str) -> None:
    assert texts(RULE, labels_of({"model": nasty}), 5.0)["summary"] == f"{nasty}: 5"


def test_one_step_by_hand() -> None:
    pending = Alert("R/warning", SERIES, Level.WARNING, State.PENDING, 1.0, active_at=0.0)
    rule = replace(RULE, hold=10.0)
    assert step(rule, pending, 2.0, 5.0).reason is Reason.WAITS
    assert step(rule, pending, 2.0, 10.0).alert.state is State.FIRING
    assert step(rule, pending, None, 10.0).reason is Reason.ENDED_EARLY
