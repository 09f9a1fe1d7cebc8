"""Vectors → alerts: inactive → pending → firing → resolved, by a table. Pure: it takes `now`, and knows no clock, socket or file.

A rule's alert moves by what is seen of it in a tick (the row's event) and, where the row says so, by how long that has lasted. A resolved
alert is reported once and then forgotten; one that comes back is a new one, with the same fingerprint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from monitor.alerts import Alert, Labels, State, Vector, labels_of
from monitor.metrics.quantities import show
from monitor.metrics.query import Query
from monitor.rules.model import Rule

Answer: TypeAlias = Callable[[Query], Vector | None]
"""What a query answers now; None where nobody can say, which changes no alert."""


class Seen(StrEnum):
    """What a tick shows of an alert."""

    TRUE = "true"
    TRUE_LONG_ENOUGH = "true for `for`"
    FALSE = "false"
    FALSE_LONG_ENOUGH = "false for `keep_firing_for`"


class Reason(StrEnum):
    """Why an alert moved or stayed."""

    BEGAN = "condition holds"
    HELD = "held for long enough"
    LASTS = "still holds"
    WAITS = "not yet held for long enough"
    ENDED_EARLY = "ended before it held for long enough"
    KEPT = "kept firing after it ended"
    ENDED = "no longer holds"


TABLE: Mapping[tuple[State, Seen], tuple[State, Reason]] = {
    (State.INACTIVE, Seen.TRUE): (State.PENDING, Reason.BEGAN),
    (State.INACTIVE, Seen.TRUE_LONG_ENOUGH): (State.FIRING, Reason.HELD),
    (State.PENDING, Seen.TRUE): (State.PENDING, Reason.WAITS),
    (State.PENDING, Seen.TRUE_LONG_ENOUGH): (State.FIRING, Reason.HELD),
    (State.PENDING, Seen.FALSE): (State.INACTIVE, Reason.ENDED_EARLY),
    (State.PENDING, Seen.FALSE_LONG_ENOUGH): (State.INACTIVE, Reason.ENDED_EARLY),
    (State.FIRING, Seen.TRUE): (State.FIRING, Reason.LASTS),
    (State.FIRING, Seen.TRUE_LONG_ENOUGH): (State.FIRING, Reason.LASTS),
    (State.FIRING, Seen.FALSE): (State.FIRING, Reason.KEPT),
    (State.FIRING, Seen.FALSE_LONG_ENOUGH): (State.RESOLVED, Reason.ENDED),
}
"""(state, what is seen) → (next state, why). The diagram in docs/monitor.md is drawn from it."""


@dataclass(frozen=True, slots=True)
class Move:
    """An alert that changed its state in this tick."""

    alert: Alert
    before: State
    reason: Reason


class Evaluator:
    """The alerts of a set of rules. `restored` are those that were pending or firing when the monitor last stopped.

    A restored alert stays as it was until its query has had an answer, or `grace` seconds after the start: a monitor that has just
    begun to look knows nothing, and nothing is no reason to say that all is well.
    """

    def __init__(self, rules: Iterable[Rule], restored: Iterable[Alert] = (), *, now: float = 0.0, grace: float = 0.0) -> None:
        self.rules = tuple(rules)
        known = {rule.key for rule in self.rules}
        self._alerts: dict[str, dict[Labels, Alert]] = {rule.key: {} for rule in self.rules}
        self._waiting: dict[tuple[str, Labels], float] = {}
        for alert in restored:
            if alert.rule in known and alert.state in (State.PENDING, State.FIRING):
                self._alerts[alert.rule][alert.labels] = alert
                self._waiting[alert.rule, alert.labels] = now + grace

    def active(self) -> Iterator[Alert]:
        """Alerts that are pending or firing."""
        return (alert for alerts in self._alerts.values() for alert in alerts.values())

    def judge(self, answer: Answer, now: float) -> list[Move]:
        """One tick: what every rule's query answers, and what becomes of its alerts."""
        return [move for rule in self.rules for move in self._judge(rule, answer, now)]

    def _judge(self, rule: Rule, answer: Answer, now: float) -> list[Move]:
        vector = answer(rule.condition)
        if vector is None:
            return []
        alerts = self._alerts[rule.key]
        if not vector and not alerts:
            return []
        kept = answer(rule.keeps) if rule.keeps is not None and alerts else {}
        true = {alert_labels(rule, labels): value for labels, value in vector.items()}
        still = {alert_labels(rule, labels): value for labels, value in (kept or {}).items()}
        moves = []
        for labels in [*alerts, *(labels for labels in true if labels not in alerts)]:
            before = alerts.get(labels) or _new(rule, labels, now)
            value = true.get(labels, still.get(labels) if before.state is State.FIRING else None)
            if value is None and self._unknown(rule, labels, answer, now):
                continue
            move = step(rule, before, value, now)
            if move.alert.state in (State.PENDING, State.FIRING):
                alerts[labels] = move.alert
            else:
                alerts.pop(labels, None)
            if move.alert.state is not before.state:
                moves.append(move)
        return moves

    def _unknown(self, rule: Rule, labels: Labels, answer: Answer, now: float) -> bool:
        """Whether nothing is known yet of an alert that was restored."""
        until = self._waiting.get((rule.key, labels))
        if until is None:
            return False
        values = answer(rule.value) or {}
        known = any(alert_labels(rule, found) == labels and not math.isnan(value) for found, value in values.items())
        if known or now >= until:
            del self._waiting[rule.key, labels]
        return not known and now < until


def step(rule: Rule, alert: Alert, value: float | None, now: float) -> Move:
    """What becomes of one alert; `value` is None where its condition doesn't hold."""
    seen, alert = _see(rule, alert, value, now)
    state, reason = TABLE[alert.state, seen]
    after = replace(alert, state=state)
    if state is State.FIRING and alert.state is not State.FIRING:
        after = replace(after, fired_at=now)
    if state is State.RESOLVED:
        after = replace(after, resolved_at=now)
    return Move(after, alert.state, reason)


def _see(rule: Rule, alert: Alert, value: float | None, now: float) -> tuple[Seen, Alert]:
    if value is not None:
        alert = replace(alert, value=value, quiet_since=0.0, annotations=texts(rule, alert.labels, value))
        return (Seen.TRUE_LONG_ENOUGH if now - alert.active_at >= rule.hold else Seen.TRUE), alert
    quiet_since = alert.quiet_since or now
    over = alert.state is not State.FIRING or now - quiet_since >= rule.keep_firing_for
    return (Seen.FALSE_LONG_ENOUGH if over else Seen.FALSE), replace(alert, quiet_since=quiet_since)


def _new(rule: Rule, labels: Labels, now: float) -> Alert:
    return Alert(rule.key, labels, rule.level, State.INACTIVE, 0.0, now)


def alert_labels(rule: Rule, labels: Labels) -> Labels:
    """An alert's labels: the series', then the rule's, which win."""
    return labels_of({**dict(labels), **dict(rule.labels), "alertname": rule.alert})


def texts(rule: Rule, labels: Labels, value: float) -> dict[str, str]:
    """The alert's texts. Only whole names in braces are filled in: what a label holds is never read as a template."""
    words = {**dict(labels), "value": show(value, rule.unit)}
    summary = re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], ""), rule.summary)
    return {"summary": summary, "runbook_url": rule.runbook}


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    begins = f"    [*] --> {State.INACTIVE}"
    edges: dict[tuple[State, State], list[str]] = {}
    for (before, seen), (after, _) in TABLE.items():
        edges.setdefault((before, after), []).append(seen.value)
    lines = [f"    {before} --> {after}: {' or '.join(_merged(seen))}" for (before, after), seen in edges.items()]
    return "\n".join(["stateDiagram-v2", begins, *lines, f"    {State.RESOLVED} --> [*]"])


def _merged(seen: list[str]) -> list[str]:
    """A longer form of what is already there says nothing more."""
    return [text for text in seen if not any(text != other and text.startswith(f"{other} ") for other in seen)]
