"""Alerts by apprise, to its own kind of webhook."""

from __future__ import annotations

import pytest

from monitor.notifiers.apprise_urls import AppriseNotifier
from monitor.notifiers.base import NotSent
from monitor.rules.settings import Notifier as NotifierSettings
from tests.monitor.notifiers.test_delivery import notification
from tests.monitor.pages_served import reply, serving

# A plug-in of apprise looks for a module that Python 3.13 no longer has.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

SETTINGS = NotifierSettings.model_validate({"type": "apprise", "secret_url": {"env": "APPRISE_URLS"}})


async def test_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(reply()) as served:
        monkeypatch.setenv("APPRISE_URLS", f"json://127.0.0.1:{served.port}/")
        await AppriseNotifier("chat", SETTINGS).send(notification(), 0.0)
    body = served.requests[0].json()
    assert body["title"] == "[WARNING] Slow"
    assert body["message"].startswith("WARNING p99 is 250ms")


@pytest.mark.parametrize("url", ["json://127.0.0.1:1/s3cret", "nonsense://s3cret", ""])
async def test_what_does_not_arrive_is_said_without_the_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("APPRISE_URLS", url)
    with pytest.raises(NotSent) as caught:
        await AppriseNotifier("chat", SETTINGS).send(notification(), 0.0)
    assert "s3cret" not in str(caught.value)
