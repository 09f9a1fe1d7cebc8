"""Who gets an alert, and when nobody does."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from monitor.alerts import Alert, Level, State, labels_of
from monitor.notifiers.routing import Mute, inhibitors, muted, receivers, within
from monitor.rules.settings import Maintenance, Settings


def alert(level: Level = Level.WARNING, model: str = "a", name: str = "Slow") -> Alert:
    labels = labels_of({"alertname": name, "model": model, "severity": level.severity})
    return Alert(f"{name}/{level.severity}", labels, level, State.FIRING, 1.0, 0.0, 1.0)


def settings(**given: object) -> Settings:
    return Settings.model_validate({"notifiers": {"log": {"type": "log"}, "pager": {"type": "log"}}, **given})


def test_routes() -> None:
    routed = settings(routes=[{"level": "critical", "to": "pager", "go_on": True}, {"match": {"model": "b"}, "to": []}, {"to": "log"}])
    assert receivers(alert(), None, routed) == ("log",)
    assert receivers(alert(Level.CRITICAL), None, routed) == ("pager", "log")
    assert receivers(alert(model="b"), None, routed) == ()
    assert receivers(alert(), None, settings()) == ("log", "pager")


def test_critical_silences_warning_of_the_same_thing_only() -> None:
    warning, critical, other = alert(), alert(Level.CRITICAL), alert(model="b")
    by = inhibitors([warning, critical, other])
    assert [muted(each, by, settings(), 0.0) for each in (warning, critical, other)] == [Mute.INHIBITED, None, None]
    assert muted(warning, by, settings(inhibit=False), 0.0) is None


ONCE = {"name": "x", "start": "2026-12-01T22:00:00Z", "end": "2026-12-01T23:00:00Z"}
NIGHTLY = {"name": "x", "days": ["fri"], "at": ["23:00", "02:00"], "zone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("window", "moment", "inside"),
    [
        (ONCE, "2026-12-01T22:30", True),
        (ONCE, "2026-12-01T23:00", False),
        (ONCE, "2026-12-01T21:59", False),
        ({"name": "x", "at": ["10:00", "11:00"]}, "2026-12-01T10:00", True),
        ({"name": "x", "at": ["10:00", "11:00"], "days": ["wed"]}, "2026-12-01T10:30", False),  # a Tuesday
        (NIGHTLY, "2026-12-04T22:30", True),  # Friday, 23:30 in Berlin
        (NIGHTLY, "2026-12-05T00:30", True),  # the night from Friday to Saturday
        (NIGHTLY, "2026-12-05T22:30", False),
        (NIGHTLY, "2026-12-04T00:30", False),
    ],
)
def test_maintenance_windows(window: dict[str, object], moment: str, inside: bool) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
    assert within(Maintenance.model_validate(window), now) is inside


def test_maintenance_mutes_what_it_names() -> None:
    quiet = settings(maintenance=[{**ONCE, "match": {"model": "a"}}])
    now = datetime(2026, 12, 1, 22, 30, tzinfo=UTC).timestamp()
    assert muted(alert(), {}, quiet, now) is Mute.MAINTENANCE
    assert muted(alert(model="b"), {}, quiet, now) is None


@pytest.mark.parametrize(
    "window",
    [{}, {"start": "2026-12-01T22:00:00Z"}, {**ONCE, "end": "2026-12-01T21:00:00Z"}, {"at": ["1:00", "2:00"], "zone": "Mars/Base"}],
)
def test_a_maintenance_window_that_is_none(window: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Maintenance.model_validate({"name": "x", **window})
