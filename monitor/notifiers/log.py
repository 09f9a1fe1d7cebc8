"""Alerts as lines of JSON on stdout: what a log collector takes, and what a person sees who runs the monitor by hand."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from monitor.alerts import Alert
from monitor.notifiers.base import Notification
from monitor.rules.settings import Notifier as NotifierSettings


class LogNotifier:
    """Writes a line an alert."""

    def __init__(self, name: str, settings: NotifierSettings, stream: TextIO | None = None) -> None:
        self._stream = stream

    async def send(self, notification: Notification, now: float) -> None:
        stream = self._stream or sys.stdout
        for alert in notification.alerts:
            stream.write(json.dumps({"event": "alert", "status": alert.state, **described(alert)}, ensure_ascii=True) + "\n")
        stream.flush()

    async def close(self) -> None:
        pass


def described(alert: Alert) -> dict[str, Any]:
    """An alert in JSON's terms, as every notifier that speaks JSON has it."""
    return {
        "alert": alert.name,
        "level": alert.level,
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "value": alert.value if abs(alert.value) < float("inf") else str(alert.value),
        "startsAt": timestamp(alert.fired_at),
        "endsAt": timestamp(alert.resolved_at) if alert.resolved_at else None,
        "fingerprint": alert.fingerprint,
    }


def timestamp(seconds: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
