"""Who gets an alert, and when nobody does: routes, inhibition, maintenance. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from monitor.alerts import Alert, Labels
from monitor.rules.model import Rule
from monitor.rules.settings import Maintenance, Settings

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Mute(StrEnum):
    """Why nobody is told."""

    INHIBITED = "a more urgent alert says it already"
    MAINTENANCE = "maintenance"


def receivers(alert: Alert, rule: Rule | None, settings: Settings) -> tuple[str, ...]:
    """The notifiers that get it: those of its rule, else of the routes that match, else all."""
    if rule is not None and rule.notify:
        return rule.notify
    if not settings.routes:
        return tuple(settings.notifiers)
    found: list[str] = []
    for route in settings.routes:
        if (route.level is None or route.level is alert.level) and matches(alert.labels, route.match):
            found += route.to
            if not route.go_on:
                break
    return tuple(dict.fromkeys(found))


def inhibitors(alerts: Iterable[Alert]) -> Mapping[Labels, int]:
    """Of the alerts that fire: what each is about → its highest level."""
    highest: dict[Labels, int] = {}
    for alert in alerts:
        about = _about(alert)
        highest[about] = max(highest.get(about, 0), alert.level.rank)
    return highest


def muted(alert: Alert, by: Mapping[Labels, int], settings: Settings, now: float) -> Mute | None:
    """Why nobody is to be told of the alert now, if so."""
    if settings.inhibit and by.get(_about(alert), 0) > alert.level.rank:
        return Mute.INHIBITED
    if any(matches(alert.labels, window.match) and within(window, now) for window in settings.maintenance):
        return Mute.MAINTENANCE
    return None


def within(window: Maintenance, now: float) -> bool:
    """Whether a maintenance window is open. One that ends before it begins ends on the next day, and its days are those it begins on."""
    if window.start is not None and window.end is not None:
        return window.start.timestamp() <= now < window.end.timestamp()
    if window.at is None:
        return False
    moment = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(window.zone))
    begin, end = window.at
    time, today = moment.time(), moment
    if begin <= end:
        inside = begin <= time < end
    else:
        inside = time >= begin or time < end
        today = moment - timedelta(days=1) if time < end else moment
    return inside and (not window.days or _DAYS[today.weekday()] in window.days)


def matches(labels: Labels, wanted: Mapping[str, str]) -> bool:
    """Whether the labels have these values."""
    values: Mapping[str, str] = dict(labels)
    return all(values.get(name, "") == value for name, value in wanted.items())


def _about(alert: Alert, besides: Collection[str] = ("severity",)) -> Labels:
    """What the alert is about: its labels without its level."""
    return tuple(pair for pair in alert.labels if pair[0] not in besides)
