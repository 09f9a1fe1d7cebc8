"""Delivery: at least once, in order, with one key; a dead notifier keeps nobody waiting; what's queued outlives a restart."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from monitor.alerts import Alert, Level, State, labels_of
from monitor.notifiers.alertmanager import AlertmanagerNotifier
from monitor.notifiers.base import Notification, Notifier, NotSent
from monitor.notifiers.delivery import GIVE_UP_AFTER, LONGEST_PAUSE, Delivery, pause
from monitor.notifiers.webhook import WebhookNotifier, filled
from monitor.rules.settings import Notifier as NotifierSettings
from monitor.store import MAX_QUEUED, Store
from server.errors import ConfigError
from tests.monitor.pages_served import Request, reply, serving


def notification(notifier: str = "hook", key: str = "k", kind: str = "change", state: State = State.FIRING) -> Notification:
    labels = labels_of({"alertname": "Slow", "model": "{value} {{ .Env }}", "severity": "warning"})
    fired = Alert("Slow/warning", labels, Level.WARNING, state, 0.25, 1.0, 2.0, annotations={"summary": "p99 is 250ms"})
    return Notification(notifier, "group", kind, key, [fired], "monitor-1")


class Flaky:
    """Fails `failures` times, then remembers the keys that it was sent."""

    def __init__(self, failures: int = 0, *, lasting: bool = False) -> None:
        self.failures = failures
        self.lasting = lasting
        self.keys: list[str] = []

    async def send(self, notification: Notification, now: float) -> None:
        if self.failures:
            self.failures -= 1
            raise NotSent("down", lasting=self.lasting)
        self.keys.append(notification.key)

    async def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def delivery(store: Store, clock: Clock | None = None, **notifiers: Notifier) -> Delivery:
    return Delivery(store, notifiers, clock or Clock(), lambda text: None)


async def test_in_order_and_again_with_the_same_key() -> None:
    hook = Flaky(failures=2)
    sender = delivery(Store(":memory:"), hook=hook)
    for key in ("1", "2", "3"):
        sender.queue(notification(key=key))
    for _ in range(3):
        await sender.once()
    assert hook.keys == ["1", "2", "3"]
    assert sender.outcomes["hook", "failed"] == 2


async def test_a_dead_notifier_keeps_nobody_waiting() -> None:
    dead, alive = Flaky(failures=10**9), Flaky()
    sender = delivery(Store(":memory:"), dead=dead, alive=alive)
    for name in ("dead", "alive"):
        sender.queue(notification(name))
    await sender.once()
    assert alive.keys == ["k"]


async def test_what_is_queued_outlives_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    delivery(store, hook=Flaky(1)).queue(notification())
    store.close()
    hook = Flaky()
    store = Store(tmp_path / "state.db")
    await delivery(store, hook=hook).once()
    assert hook.keys == ["k"]
    assert store.queued("hook") == 0
    store.close()


async def test_what_never_arrives_is_given_up() -> None:
    store, clock, hook = Store(":memory:"), Clock(), Flaky(failures=10**9)
    sender = delivery(store, clock, hook=hook)
    sender.queue(notification())
    await sender.once()
    assert store.queued("hook") == 1
    clock.now = GIVE_UP_AFTER + 1
    await sender.once()
    assert (store.queued("hook"), sender.outcomes["hook", "given_up"]) == (0, 1)


async def test_a_body_that_the_receiver_refuses_holds_up_no_other() -> None:
    hook = Flaky(failures=1, lasting=True)
    sender = delivery(Store(":memory:"), hook=hook)
    for key in ("refused", "good"):
        sender.queue(notification(key=key))
    await sender.once()
    assert hook.keys == ["good"]


def test_the_queue_is_bounded_and_a_repeat_replaces_a_repeat() -> None:
    store = Store(":memory:")
    sender = delivery(store, hook=Flaky())
    for key in ("1", "2", "3"):
        sender.queue(notification(key=key, kind="repeat"))
    assert store.queued("hook") == 1
    for number in range(MAX_QUEUED + 5):
        sender.queue(notification(key=str(number)))
    assert (store.queued("hook"), sender.outcomes["hook", "dropped"]) == (MAX_QUEUED, 6)


def test_pauses_grow_to_a_bound() -> None:
    pauses = [pause(failures, 1.0) for failures in range(1, 60)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    assert pause(3, 0.0) == pause(3, 1.0) / 2


def test_one_monitor_at_a_time_has_the_file(tmp_path: Path) -> None:
    first = Store(tmp_path / "state.db")
    with pytest.raises(ConfigError, match="another monitor uses it"):
        Store(tmp_path / "state.db")
    first.close()
    (tmp_path / "no.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="is no state file of this monitor"):
        Store(tmp_path / "no.db")


def webhook(url: str, **more: object) -> WebhookNotifier:
    return WebhookNotifier("hook", NotifierSettings.model_validate({"type": "webhook", "url": url, **more}))


async def test_a_webhook_is_signed_and_carries_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "s3cret")
    async with serving(reply()) as served:
        hook = webhook(f"{served.url}/hook", hmac={"env": "HOOK_KEY"})
        await hook.send(notification(key="abc"), 5.0)
        await hook.close()
    (request,) = served.requests
    assert request.headers["idempotency-key"] == "abc"
    expected = hmac.new(b"s3cret", request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-tidegate-signature"] == f"sha256={expected}"
    body = request.json()
    assert (body["status"], body["level"], body["monitor"], body["key"]) == ("firing", "WARNING", "monitor-1", "abc")
    assert body["alerts"][0]["startsAt"] == "1970-01-01T00:00:02.000Z"


async def test_a_template_of_ones_own_fills_in_once() -> None:
    async with serving(reply()) as served:
        hook = webhook(served.url, template={"text": "{title}: {alerts} {nobody}"})
        await hook.send(notification(), 5.0)
        await hook.close()
    text = served.requests[0].json()["text"]
    assert text.startswith("[WARNING] Slow: ")
    assert "{value} {{ .Env }}" in text
    assert text.endswith(" {nobody}")
    assert filled("{a}", {"a": "{b}", "b": "no"}) == "{b}"


@pytest.mark.parametrize(
    ("status", "lasting"), [("500 Oops", False), ("429 Slowly", False), ("404 Where", False), ("400 No", True), ("302 There", False)]
)
async def test_what_a_receiver_says(status: str, lasting: bool) -> None:
    async with serving(reply(status=status, headers="location: http://elsewhere/\r\n")) as served:
        hook = webhook(f"{served.url}/secret-path")
        with pytest.raises(NotSent) as caught:
            await hook.send(notification(), 5.0)
        await hook.close()
    assert caught.value.lasting is lasting
    assert "secret-path" not in str(caught.value)
    assert len(served.requests) == 1


async def test_a_secret_that_is_not_there_is_named_and_a_url_that_is_one_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = WebhookNotifier("hook", NotifierSettings.model_validate({"type": "webhook", "secret_url": {"env": "HOOK_URL"}}))
    with pytest.raises(NotSent, match="environment variable HOOK_URL is empty"):
        await hook.send(notification(), 0.0)
    monkeypatch.setenv("HOOK_URL", "http://127.0.0.1:1/token-in-path")
    with pytest.raises(NotSent) as caught:
        await hook.send(notification(), 0.0)
    assert "token-in-path" not in str(caught.value)
    await hook.close()


async def test_an_alertmanager_hears_when_it_began_and_ended() -> None:
    def answer(request: Request) -> bytes:
        return reply()

    async with serving(answer) as served:
        notifier = AlertmanagerNotifier("am", NotifierSettings.model_validate({"type": "alertmanager", "url": served.url}))
        await notifier.send(notification(), 100.0)
        await notifier.close()
    (request,) = served.requests
    assert request.path == "/api/v2/alerts"
    (posted,) = json.loads(request.body)
    assert (posted["startsAt"], posted["endsAt"]) == ("1970-01-01T00:00:02.000Z", "1970-01-01T00:05:40.000Z")
    assert posted["labels"]["alertname"] == "Slow"
