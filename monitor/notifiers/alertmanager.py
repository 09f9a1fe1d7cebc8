"""Alerts to an Alertmanager (API v2), which groups, silences and routes them itself. It's told each minute what still fires, as
Prometheus does it; what it hears no more of is over for it after ENDS_AFTER seconds."""

from __future__ import annotations

import json
from typing import Any

from monitor.alerts import Alert, State
from monitor.notifiers.base import Notification
from monitor.notifiers.log import timestamp
from monitor.notifiers.webhook import Poster
from monitor.rules.settings import Notifier as NotifierSettings

REPEAT = 60.0
ENDS_AFTER = 4 * REPEAT


class AlertmanagerNotifier:
    """Posts to /api/v2/alerts."""

    def __init__(self, name: str, settings: NotifierSettings) -> None:
        self._poster = Poster(settings, "/api/v2/alerts")

    async def send(self, notification: Notification, now: float) -> None:
        body = json.dumps([_posted(alert, now) for alert in notification.alerts], ensure_ascii=False).encode()
        await self._poster.post(body, {"idempotency-key": notification.key})

    async def close(self) -> None:
        await self._poster.close()


def _posted(alert: Alert, now: float) -> dict[str, Any]:
    ends = alert.resolved_at if alert.state is State.RESOLVED else now + ENDS_AFTER
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": timestamp(alert.fired_at),
        "endsAt": timestamp(max(ends, alert.fired_at)),
    }
