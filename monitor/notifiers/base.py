"""The seam of notifiers: a notification, and what sends one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from monitor.alerts import Alert, Level, State
from monitor.rules.secrets import reveal
from monitor.rules.settings import Secret
from server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Notification:
    """One message about a group of alerts. `key` is the same whenever it's sent again; `monitor` is who sends it."""

    notifier: str
    group: str
    kind: str
    key: str
    alerts: Sequence[Alert]
    monitor: str

    @property
    def firing(self) -> bool:
        return any(alert.state is State.FIRING for alert in self.alerts)

    @property
    def level(self) -> Level:
        """The most urgent of its alerts, those that fire before those that are over."""
        firing = [alert for alert in self.alerts if alert.state is State.FIRING]
        return max((alert.level for alert in firing or self.alerts), key=lambda level: level.rank)

    @property
    def title(self) -> str:
        """One line: [WARNING] InferenceLatency, or [RESOLVED] …"""
        names = ", ".join(dict.fromkeys(alert.name for alert in self.alerts))
        return f"[{self.level if self.firing else 'RESOLVED'}] {names}"

    @property
    def text(self) -> str:
        """A line an alert."""
        return "\n".join(_line(alert) for alert in self.alerts)


class Notifier(Protocol):
    """Somebody who is told."""

    async def send(self, notification: Notification, now: float) -> None:
        """Deliver it. Raises NotSent where that didn't work; it's tried again then, with the same key."""

    async def close(self) -> None:
        """Let go of what it holds."""


class NotSent(Exception):
    """A notification that didn't arrive, and why. `lasting`: sending it again can't help."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def secret(of: Secret) -> str:
    """The secret itself. Raises NotSent where it isn't there; it's never part of a message."""
    try:
        return reveal(of)
    except ConfigError as error:
        raise NotSent(str(error)) from error


def _line(alert: Alert) -> str:
    state = "RESOLVED" if alert.state is State.RESOLVED else alert.level
    return f"{state} {alert.annotations.get('summary') or alert.name} ({alert.annotations.get('runbook_url', '')})"
