"""From the queue on disk to the notifiers: one task for each, so that a dead one keeps nobody waiting. In order, tried again with growing
pauses until it arrives, for at most GIVE_UP_AFTER."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from random import random

from monitor.notifiers.base import Notification, Notifier, NotSent
from monitor.store import Queued, Store, alert_from

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
GIVE_UP_AFTER = 24 * 3600.0


class Delivery:
    """Sends what waits in the store. `tell` hears of what failed; `outcomes` counts (notifier, sent | failed | given_up | dropped)."""

    def __init__(self, store: Store, notifiers: Mapping[str, Notifier], clock: Callable[[], float], tell: Callable[[str], None]) -> None:
        self._store = store
        self._notifiers = notifiers
        self._clock = clock
        self._tell = tell
        self._wake = {name: asyncio.Event() for name in notifiers}
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        """Begin, with what was left from the last time."""
        self._tasks = [asyncio.create_task(self._work(name), name=f"notifier {name}") for name in self._notifiers]

    def queue(self, notification: Notification) -> None:
        """Into the store; `wake` says that there is something."""
        body = {"alerts": [asdict(alert) for alert in notification.alerts], "monitor": notification.monitor}
        queued = Queued(0, notification.notifier, notification.group, notification.kind, notification.key, body, self._clock())
        dropped = self._store.enqueue(queued)
        if dropped:
            self.outcomes[notification.notifier, "dropped"] += dropped
            self._tell(f"notifier {notification.notifier}: {dropped} of the oldest undelivered notifications dropped for want of room")

    def wake(self) -> None:
        for event in self._wake.values():
            event.set()

    async def once(self) -> None:
        """Try everything that waits once, each notifier beside the others."""
        await asyncio.gather(*(self._drain(name) for name in self._notifiers))

    async def close(self) -> None:
        """Stop; what isn't delivered stays in the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for notifier in self._notifiers.values():
            await notifier.close()

    async def _work(self, name: str) -> None:
        failures = 0
        while True:
            self._wake[name].clear()
            failures = 0 if await self._drain(name) else failures + 1
            if failures:
                await asyncio.sleep(pause(failures, random()))
            else:
                await self._wake[name].wait()

    async def _drain(self, name: str) -> bool:
        """Send all that waits for a notifier; False where one couldn't be sent."""
        while (queued := self._store.next(name)) is not None:
            if not await self._send(name, queued):
                return False
        return True

    async def _send(self, name: str, queued: Queued) -> bool:
        alerts = [alert_from(alert) for alert in queued.body["alerts"]]
        notification = Notification(name, queued.group, queued.kind, queued.key, alerts, queued.body["monitor"])
        try:
            await self._notifiers[name].send(notification, self._clock())
            self.outcomes[name, "sent"] += 1
        except NotSent as error:
            if not error.lasting and self._clock() - queued.created < GIVE_UP_AFTER:
                self.outcomes[name, "failed"] += 1
                self._tell(f"notifier {name}: {error}; it will be tried again")
                return False
            self.outcomes[name, "given_up"] += 1
            self._tell(f"notifier {name}: {error}; given up: {notification.title}")
        self._store.delivered(queued.id)
        return True


def pause(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row: doubling, to LONGEST_PAUSE, half of it left to `chance` (0 to 1)."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 20))
    return longest * (0.5 + 0.5 * chance)
