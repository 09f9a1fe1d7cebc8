"""A day of simulated time with faults: targets die, the notifier is down or loses its answers, the monitor is killed and started again.
No alert is lost, and what is sent twice has the same key."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from monitor.alerts import State, labels_of
from monitor.loop import Loop, Parts, queries
from monitor.notifiers.base import Notification, NotSent
from monitor.notifiers.delivery import Delivery
from monitor.rules.model import Ruleset
from monitor.series.vectors import needed
from monitor.series.window import Reading, Window
from monitor.status import Figures
from monitor.store import Store
from tests.monitor.files import rules

TICK, DAY = 15.0, 24 * 3600.0
MODELS = ("a", "b", "c")
RULES = """\
pack: false
watchdog: false
interval: 15s
metrics:
  - {name: queue_rows, threshold: 100, window: 15s, for: 30s}
  - {name: target_up, alert: TargetDown, for: 30s, alert_level: CRITICAL}
notifiers: {hook: {type: log}}
group: {by: [alertname], interval: 1m, repeat: 2h}
"""


class World:
    """The targets, the receiver and the clock. Everything that happens is drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1e9
        self.queue = dict.fromkeys(MODELS, 0.0)
        self.dead: set[str] = set()
        self.receiver = "up"
        self.received: list[Notification] = []

    def __call__(self) -> float:
        return self.now

    def pass_time(self) -> None:
        self.now += TICK
        for model in MODELS:
            if self.random.random() < 0.01:
                self.queue[model] = self.random.choice((0.0, 200.0))
            if self.random.random() < 0.004:
                self.dead ^= {model}
        if self.random.random() < 0.01:
            self.receiver = self.random.choice(("up", "up", "down", "deaf"))

    async def read(self) -> Sequence[Reading]:
        return [self._reading(model) for model in MODELS]

    def _reading(self, model: str) -> Reading:
        if model in self.dead:
            return Reading("tidegate", model, error="refused")
        labels = labels_of({"job": "tidegate", "instance": model, "model": model})
        return Reading("tidegate", model, [("tidegate_queue_rows", labels, self.queue[model])])

    async def send(self, notification: Notification, now: float) -> None:
        """Deaf: it arrives, and the answer doesn't."""
        if self.receiver != "down":
            self.received.append(notification)
        if self.receiver != "up":
            raise NotSent(self.receiver)

    async def close(self) -> None:
        pass


def started(world: World, ruleset: Ruleset, store: Store) -> tuple[Loop, Delivery]:
    """A monitor that goes on from what is in the store, with an empty window."""
    delivery = Delivery(store, {"hook": world}, world, lambda text: None)
    window = Window(needed(queries(ruleset.rules)))
    return Loop(Parts(ruleset, [world], window, store, delivery, Figures()), world, store.alerts()), delivery


async def test_no_alert_is_lost_in_a_day_of_faults(tmp_path: Path) -> None:
    world, ruleset = World(7), rules(tmp_path, RULES)
    store = Store(tmp_path / "state.db")
    loop, delivery = started(world, ruleset, store)
    fired: set[tuple[str, float]] = set()
    restarts = 0
    for _ in range(int(DAY / TICK)):
        world.pass_time()
        moves = await loop.tick()
        fired |= {(move.alert.fingerprint, move.alert.fired_at) for move in moves if move.alert.state is State.FIRING}
        if world.random.random() < 0.003:
            store.close()
            store, restarts = Store(tmp_path / "state.db"), restarts + 1
            loop, delivery = started(world, ruleset, store)
        else:
            await delivery.once()
    world.receiver, world.dead, world.queue = "up", set(), dict.fromkeys(MODELS, 0.0)
    for _ in range(20):
        world.now += TICK
        await loop.tick()
        await delivery.once()
    store.close()
    assert restarts > 5
    assert len(fired) > 30
    told = {(alert.fingerprint, alert.fired_at): alert.state for n in world.received for alert in n.alerts}
    assert fired <= told.keys()
    assert {told[each] for each in fired} == {State.RESOLVED}
    assert_keys_are_of_what_they_say(world.received)


def assert_keys_are_of_what_they_say(received: list[Notification]) -> None:
    contents: dict[str, set[object]] = {}
    for notification in received:
        content = tuple(sorted((alert.fingerprint, alert.state.value, alert.fired_at) for alert in notification.alerts))
        contents.setdefault(notification.key, set()).add((notification.kind, content))
    assert all(len(different) == 1 for different in contents.values())
    assert len(received) > len(contents)  # some were sent again, with the key they had
