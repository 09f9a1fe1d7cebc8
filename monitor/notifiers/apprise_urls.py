"""Alerts by apprise: Slack, e-mail, PagerDuty, Teams and whatever else it has a URL for. Its URLs hold passwords, and are secrets."""

from __future__ import annotations

import asyncio
import logging

import apprise

from monitor.notifiers.base import Notification, NotSent, secret
from monitor.rules.settings import Notifier as NotifierSettings

# apprise logs the URLs that it couldn't use.
logging.getLogger("apprise").addHandler(logging.NullHandler())
logging.getLogger("apprise").propagate = False


class AppriseNotifier:
    """Sends each notification to the URLs in the secret, separated by white space."""

    def __init__(self, name: str, settings: NotifierSettings) -> None:
        self._name = name
        self._settings = settings

    async def send(self, notification: Notification, now: float) -> None:
        if self._settings.secret_url is None:
            raise NotSent(f"notifier {self._name} has no secret_url", lasting=True)
        services = apprise.Apprise()
        for url in secret(self._settings.secret_url).split():
            if not services.add(url):
                raise NotSent(f"a URL of notifier {self._name} is none that apprise knows")
        kind = apprise.NotifyType.FAILURE if notification.firing else apprise.NotifyType.SUCCESS
        body, title = notification.text, notification.title
        sending = asyncio.to_thread(services.notify, body=body, title=title, notify_type=kind, interpret_escapes=False)
        try:
            sent = await asyncio.wait_for(sending, self._settings.timeout)
        except TimeoutError as error:
            raise NotSent(f"apprise took longer than {self._settings.timeout:g}s") from error
        if not sent:
            raise NotSent("apprise couldn't deliver to at least one of its URLs")

    async def close(self) -> None:
        pass
