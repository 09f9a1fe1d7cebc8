"""Read → judge → tell, every tick. The heart is `tick`; what it tells is on disk before anybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from monitor.actions import Actions, Outcome
from monitor.alerts import Alert, State, Vector, labels_of
from monitor.evaluator import Answer, Evaluator, Move
from monitor.metrics.query import Query, promql, selects
from monitor.notifiers.delivery import Delivery
from monitor.notifiers.pipeline import Pipeline
from monitor.rules.model import Rule, Ruleset
from monitor.series.vectors import Vectors, needed
from monitor.series.window import Reading, Window
from monitor.sources.base import Source
from monitor.sources.prometheus import Prometheus
from monitor.status import Figures
from monitor.store import Store

LONGEST_GRACE = 3600.0
LOCAL = frozenset({"up", "tidegate_monitor_config_reload_failed"})
"""Series that the monitor has of its own, beside those of a Prometheus server."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a loop works with."""

    ruleset: Ruleset
    sources: Sequence[Source]
    window: Window
    store: Store
    delivery: Delivery
    figures: Figures


class Loop:
    """One rules file's loop. `restored` are the alerts to go on with; `clock` gives seconds since the epoch that never go back."""

    def __init__(self, parts: Parts, clock: Callable[[], float], restored: Iterable[Alert] = ()) -> None:
        self._parts = parts
        self._clock = clock
        self._rules = {rule.key: rule for rule in parts.ruleset.rules}
        settings = parts.ruleset.settings
        self.evaluator = Evaluator(parts.ruleset.rules, restored, now=clock(), grace=grace(parts.ruleset))
        self.pipeline = Pipeline(settings, parts.ruleset.rules, parts.store.groups())
        self._actions = Actions(settings.actions, parts.store, settings.identity)
        self._doing: set[asyncio.Task[Outcome]] = set()
        self._prometheus = next((source for source in parts.sources if isinstance(source, Prometheus)), None)
        self._local = _Local()

    async def tick(self) -> list[Move]:
        """One look at everything. Returns what changed."""
        found = await asyncio.gather(*(source.read() for source in self._parts.sources))
        now = self._clock()
        readings = [reading for several in found for reading in several]
        self._parts.window.ingest([*readings, self._own()], now)
        moves = self.evaluator.judge(self._answer(now), now)
        self._tell(moves, now)
        self._act(moves, now)
        self._parts.window.expire(now)
        self._parts.figures.ticked(now, self._clock() - now, readings)
        return moves

    async def settle(self) -> None:
        """Wait for the actions under way."""
        await asyncio.gather(*self._doing)

    def _own(self) -> Reading:
        """What the monitor says of itself."""
        settings = self._parts.ruleset.settings
        labels = labels_of({"job": "tidegate-monitor", "instance": settings.identity})
        failed = ("tidegate_monitor_config_reload_failed", labels, float(self._parts.figures.reload_failed))
        return Reading("tidegate-monitor", settings.identity, [failed])

    def _answer(self, now: float) -> Answer:
        vectors = Vectors(self._parts.window, now)
        if self._prometheus is None:
            return vectors.answer
        return self._local.beside(self._prometheus.answers, vectors)

    def _tell(self, moves: Sequence[Move], now: float) -> None:
        store, delivery = self._parts.store, self._parts.delivery
        firing = [alert for alert in self.evaluator.active() if alert.state is State.FIRING]
        resolved = [move.alert for move in moves if move.alert.state is State.RESOLVED]
        before = {name: state.as_json() for name, state in self.pipeline.groups.items()}
        notifications = self.pipeline.plan(firing, resolved, now)
        with store.transaction():
            for move in moves:
                store.save_alert(move.alert)
            for notification in notifications:
                delivery.queue(notification)
            after = {name: state.as_json() for name, state in self.pipeline.groups.items()}
            for name in before.keys() | after.keys():
                if before.get(name) != after.get(name):
                    store.save_group(name, after.get(name))
        self._parts.figures.muted = len(self.pipeline.muted)
        if notifications:
            delivery.wake()

    def _act(self, moves: Sequence[Move], now: float) -> None:
        for move in moves:
            rule = self._rules.get(move.alert.rule)
            if rule is None or move.alert.state is not State.FIRING or move.alert.fingerprint in self.pipeline.muted:
                continue
            for name in rule.actions:
                task = asyncio.create_task(self._actions.take(name, move.alert, now), name=f"action {name}")
                self._doing.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Outcome]) -> None:
        self._doing.discard(task)
        if not task.cancelled():
            self._parts.figures.acted(task.result())


class _Local:
    """Answers of a Prometheus server, and of the monitor's own series beside them. While the server doesn't answer, its last word stands
    for those, so that its own absence can be alerted on."""

    def __init__(self) -> None:
        self._last: dict[Query, Vector] = {}

    def beside(self, answers: Mapping[str, Vector], vectors: Vectors) -> Answer:
        def answer(query: Query) -> Vector | None:
            theirs = answers.get(promql(query))
            names = {select.name for select, _ in selects(query)}
            if not names <= LOCAL:
                return theirs
            if theirs is not None:
                self._last[query] = theirs
            return {**self._last.get(query, {}), **(vectors.answer(query) or {})}

        return answer


def queries(rules: Iterable[Rule]) -> list[Query]:
    """Everything that the rules ask."""
    return [query for rule in rules for query in (rule.condition, rule.value, rule.keeps) if query is not None]


def grace(ruleset: Ruleset) -> float:
    """How long alerts from before a restart are kept while nothing is known: as long as the windows need to fill, at most an hour."""
    longest = max(needed(queries(ruleset.rules)).values(), default=0.0)
    return min(longest, LONGEST_GRACE) + 2 * ruleset.settings.interval
