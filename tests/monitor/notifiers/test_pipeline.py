"""Grouping: what is told when, and that nothing is lost, whatever alerts do and whenever the monitor is restarted."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts import Alert, Level, State, labels_of
from monitor.notifiers.base import Notification
from monitor.notifiers.pipeline import Pipeline
from monitor.rules.settings import Settings

GROUP = {"by": ["alertname"], "wait": 10, "interval": 60, "repeat": 600}


def settings(**given: object) -> Settings:
    return Settings.model_validate({"notifiers": {"log": {"type": "log"}}, "group": GROUP, **given})


def alert(model: str, fired_at: float, name: str = "Slow") -> Alert:
    labels = labels_of({"alertname": name, "model": model, "severity": "warning"})
    return Alert(f"{name}/warning", labels, Level.WARNING, State.FIRING, 1.0, fired_at, fired_at)


def over(firing: Alert, now: float) -> Alert:
    return replace(firing, state=State.RESOLVED, resolved_at=now)


def told(notifications: list[Notification]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(n.kind, sorted((dict(a.labels)["model"], a.state.value) for a in n.alerts)) for n in notifications]


def test_wait_interval_and_repeat() -> None:
    pipeline = Pipeline(settings(), [])
    a, b = alert("a", 0), alert("b", 5)
    assert pipeline.plan([a], [], 0) == []
    assert told(pipeline.plan([a, b], [], 10)) == [("change", [("a", "firing"), ("b", "firing")])]
    assert pipeline.plan([a], [over(b, 20)], 20) == []
    assert told(pipeline.plan([a], [], 70)) == [("change", [("a", "firing"), ("b", "resolved")])]
    assert pipeline.plan([a], [], 660) == []
    assert told(pipeline.plan([a], [], 670)) == [("repeat", [("a", "firing")])]
    assert told(pipeline.plan([], [over(a, 740)], 740)) == [("change", [("a", "resolved")])]
    assert pipeline.plan([], [], 5000) == []
    assert pipeline.groups == {}


def test_an_alert_that_came_and_went_between_two_messages_is_told() -> None:
    pipeline = Pipeline(settings(), [])
    a, b = alert("a", 0), alert("b", 20)
    pipeline.plan([a], [], 0)
    pipeline.plan([a], [], 10)
    assert pipeline.plan([a, b], [], 20) == []
    assert pipeline.plan([a], [over(b, 30)], 30) == []
    assert told(pipeline.plan([a], [], 70)) == [("change", [("a", "firing"), ("b", "resolved")])]


def test_flapping_is_told_once_an_interval() -> None:
    pipeline = Pipeline(settings(group={**GROUP, "wait": 0}), [])
    sent = []
    for second in range(0, 600, 5):
        fired = alert("a", second - second % 10)
        up = second % 10 == 0
        sent += pipeline.plan([fired] if up else [], [] if up else [over(fired, second)], second)
    assert len(sent) <= 600 / 60 + 1


def test_repeats_have_keys_of_their_own_and_sending_again_the_same() -> None:
    first, second = (Pipeline(settings(), []) for _ in range(2))
    keys = []
    for pipeline in (first, second):
        pipeline.plan([alert("a", 0)], [], 0)
        keys.append([plan.key for now in (10, 610, 1210) for plan in pipeline.plan([alert("a", 0)], [], now)])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 3


def test_a_muted_alert_is_told_when_it_is_no_longer_and_not_as_resolved() -> None:
    quiet = settings(
        maintenance=[{"name": "m", "start": "1970-01-01T00:02:00Z", "end": "1970-01-01T00:10:00Z"}], group={**GROUP, "wait": 0}
    )
    pipeline = Pipeline(quiet, [])
    a, b = alert("a", 0), alert("b", 130)
    assert told(pipeline.plan([a], [], 0)) == [("change", [("a", "firing")])]
    assert pipeline.plan([a, b], [], 130) == []
    assert told(pipeline.plan([a, b], [], 600)) == [("change", [("a", "firing"), ("b", "firing")])]


def test_an_alertmanager_is_told_at_once_and_each_minute() -> None:
    pipeline = Pipeline(settings(notifiers={"am": {"type": "alertmanager", "url": "http://am"}}), [])
    a = alert("a", 0)
    kinds = [(now, plan.kind) for now in range(0, 130, 5) for plan in pipeline.plan([a], [], now)]
    assert kinds == [(0, "change"), (60, "repeat"), (120, "repeat")]


EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.sampled_from([1, 5, 60, 700])), max_size=60)


@given(EVENTS)
def test_every_alert_that_fired_is_told_and_every_end_after_it(events: list[tuple[str, bool, bool, int]]) -> None:
    """Alerts of three models fire and end at random, the monitor is restarted at random; then all is quiet."""
    pipeline, now, firing, sent = Pipeline(settings(), []), 0.0, dict[str, Alert](), list[Notification]()
    fired: list[tuple[str, float]] = []
    for model, up, restart, pause in [*events, *[("a", False, False, 700)] * 2]:
        now += pause
        resolved = []
        if up and model not in firing:
            firing[model] = alert(model, now)
            fired.append((model, now))
        elif not up and model in firing:
            resolved = [over(firing.pop(model), now)]
        sent += pipeline.plan(firing.values(), resolved, now)
        if restart:
            kept = json.loads(json.dumps({name: state.as_json() for name, state in pipeline.groups.items()}))
            pipeline = Pipeline(settings(), [], kept)
    mentioned = {(dict(a.labels)["model"], a.fired_at) for n in sent for a in n.alerts}
    latest = dict(fired)
    assert set(latest.items()) <= mentioned
    last = {dict(a.labels)["model"]: a.state for n in sent for a in n.alerts}
    assert all(last[model] is (State.FIRING if model in firing else State.RESOLVED) for model in latest)
    assert len({n.key for n in sent}) == len(sent)
