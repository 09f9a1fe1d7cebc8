"""Alerts → notifications: who is told what, and when. Pure but for what the groups remember, which the caller keeps in the store.

Alerts that agree in `group.by` are told together. The first message of a group waits `group.wait`; after that one comes when something
changed, at least `group.interval` apart, and every `group.repeat` while anything fires. An alert that came and went between two messages
is in the next one: nothing is lost by grouping.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from monitor.alerts import Alert, State
from monitor.notifiers.alertmanager import REPEAT
from monitor.notifiers.base import Notification
from monitor.notifiers.routing import inhibitors, muted, receivers
from monitor.rules.model import Rule
from monitor.rules.settings import Group, Settings
from monitor.store import alert_from


@dataclass(slots=True)
class GroupState:
    """What one notifier was told of one group. `told` and `untold` are by fingerprint; `repeats` only grows, so that
    every repeat has a key of its own."""

    first: float
    sent: float | None = None
    repeats: int = 0
    told: dict[str, Alert] = field(default_factory=dict)
    untold: dict[str, Alert] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> GroupState:
        alerts = {part: {key: alert_from(alert) for key, alert in body[part].items()} for part in ("told", "untold")}
        return cls(body["first"], body["sent"], body["repeats"], **alerts)


class Pipeline:
    """The groups of every notifier."""

    def __init__(self, settings: Settings, rules: Iterable[Rule], groups: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._settings = settings
        self._rules = {rule.key: rule for rule in rules}
        self.groups = {name: GroupState.from_json(body) for name, body in (groups or {}).items()}
        self.muted: dict[str, str] = {}

    def plan(self, alerts: Iterable[Alert], resolved: Iterable[Alert], now: float) -> list[Notification]:
        """What is to be sent now. `alerts` fire; `resolved` ended in this tick. The groups remember it as told: queue it, and keep them."""
        firing = {alert.fingerprint: alert for alert in alerts}
        ended = {alert.fingerprint: alert for alert in resolved}
        found = self._grouped(firing, now)
        plans = []
        for name in [*found, *(name for name in self.groups if name not in found)]:
            planned = self._plan(name, found.get(name, {}), (firing, ended), now)
            if planned is not None:
                plans.append(planned)
        return plans

    def _grouped(self, firing: Mapping[str, Alert], now: float) -> dict[str, dict[str, Alert]]:
        """Notifier and group → its alerts that aren't muted."""
        by = inhibitors(firing.values())
        self.muted = {}
        found: dict[str, dict[str, Alert]] = {}
        for key, alert in firing.items():
            reason = muted(alert, by, self._settings, now)
            if reason is not None:
                self.muted[key] = reason
                continue
            for notifier in receivers(alert, self._rules.get(alert.rule), self._settings):
                found.setdefault(self._name(notifier, alert), {})[key] = alert
        return found

    def _name(self, notifier: str, alert: Alert) -> str:
        labels = dict(alert.labels)
        return json.dumps([notifier, [labels.get(label, "") for label in self._settings.group.by]], ensure_ascii=False)

    def _plan(
        self, name: str, current: Mapping[str, Alert], known: tuple[Mapping[str, Alert], Mapping[str, Alert]], now: float
    ) -> Notification | None:
        firing, ended = known
        state = self.groups.setdefault(name, GroupState(now))
        notifier = json.loads(name)[0]
        settings = self._settings.notifiers.get(notifier)
        if settings is None:  # the file no longer has it
            del self.groups[name]
            return None
        self._note(state, current, ended)
        gone = {key: _ended(alert, ended, now) for key, alert in {**state.told, **state.untold}.items() if key not in firing}
        group = _manner(settings.type, self._settings.group)
        kind = _due(state, current, gone, group, now)
        if kind is None:
            self._forget(name, state, group, now)
            return None
        over = gone if settings.resolved else {}
        plan = self._notification((notifier, name, kind), [*current.values(), *over.values()], state)
        still = {key: alert for key, alert in state.told.items() if key in firing and key not in current}  # muted: not over yet
        state.told, state.untold = {**still, **current}, {}
        state.sent, state.repeats = now, state.repeats + (kind == "repeat")
        return plan if plan.alerts else None

    def _note(self, state: GroupState, current: Mapping[str, Alert], ended: Mapping[str, Alert]) -> None:
        """Remember what the group hasn't been told, and what came of it since."""
        for key, alert in current.items():
            told = state.told.get(key)
            if told is None or told.fired_at != alert.fired_at:
                state.untold[key] = alert
        for part in (state.told, state.untold):
            part.update({key: ended[key] for key in part if key in ended})

    def _forget(self, name: str, state: GroupState, group: Group, now: float) -> None:
        """A group with nothing to say is kept for an interval, so that what comes back at once waits its turn."""
        if not state.told and not state.untold and (state.sent is None or now - state.sent >= group.interval):
            del self.groups[name]

    def _notification(self, about: tuple[str, str, str], alerts: list[Alert], state: GroupState) -> Notification:
        notifier, name, kind = about
        content: list[object] = [self._settings.identity, name, sorted((a.fingerprint, a.state, a.fired_at) for a in alerts)]
        if kind == "repeat":
            content.append(state.repeats + 1)
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        return Notification(notifier, name, kind, key, alerts, self._settings.identity)


def _due(state: GroupState, current: Mapping[str, Alert], gone: Mapping[str, Alert], group: Group, now: float) -> str | None:
    """Whether something is to be sent now: a change, a repeat, or nothing."""
    changed = bool(gone) or any(key in current for key in state.untold)
    if changed:
        since, least = (state.first, group.wait) if state.sent is None else (state.sent, group.interval)
        return "change" if now - since >= least else None
    return "repeat" if current and state.sent is not None and now - state.sent >= group.repeat else None


def _manner(kind: str, group: Group) -> Group:
    """An Alertmanager groups by itself: it's told at once, and each minute again."""
    return group.model_copy(update={"wait": 0.0, "interval": 0.0, "repeat": REPEAT}) if kind == "alertmanager" else group


def _ended(alert: Alert, ended: Mapping[str, Alert], now: float) -> Alert:
    over = ended.get(alert.fingerprint, alert)
    return over if over.state is State.RESOLVED else replace(over, state=State.RESOLVED, resolved_at=now)
