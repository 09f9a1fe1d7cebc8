"""Who is told: one module a kind, found by its name."""

from __future__ import annotations

from collections.abc import Mapping

NOTIFIERS: Mapping[str, str] = {
    "log": "monitor.notifiers.log:LogNotifier",
    "webhook": "monitor.notifiers.webhook:WebhookNotifier",
    "alertmanager": "monitor.notifiers.alertmanager:AlertmanagerNotifier",
    "apprise": "monitor.notifiers.apprise_urls:AppriseNotifier",
}
"""A notifier's `type` → its class."""
