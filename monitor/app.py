"""Builds every part of the monitor, starts in order, stops in reverse, and takes a new rules file while it runs.

Tests drive the same object.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, time

from monitor.alerts import Alert, Level, State
from monitor.loop import Loop, Parts, queries
from monitor.metrics.query import promql
from monitor.notifiers import NOTIFIERS
from monitor.notifiers.base import Notifier
from monitor.notifiers.delivery import Delivery
from monitor.rules.build import read_rules
from monitor.rules.model import Ruleset
from monitor.rules.settings import Settings
from monitor.series.vectors import needed
from monitor.series.window import Window, targets_down
from monitor.sources.base import Source
from monitor.sources.host import Host
from monitor.sources.nvml import Nvml
from monitor.sources.prometheus import Prometheus
from monitor.sources.scrape import Scraper
from monitor.status import Figures, StatusServer, page
from monitor.store import Store
from server.errors import ConfigError

EXIT_CODES = {Level.WARNING: 3, Level.CRITICAL: 4}
"""`--once`: what fires → the exit code; 5 where a target didn't answer and nothing fires, 0 where all is well."""
UNANSWERED = 5


class Monitor:
    """The monitor of one rules file. `say` is told what a person should know."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._zero = time() - monotonic()
        self._stamp: object = None
        self.figures = Figures(tell=say)
        self.window = Window({})
        self.status: StatusServer | None = None

    def now(self) -> float:
        """Seconds since the epoch when the monitor started, moving on steadily: a clock that's set doesn't move it."""
        return self._zero + monotonic()

    async def start(self) -> None:
        """Read the rules, open the state, and go on where the last run stopped. Raises ConfigError."""
        self._stamp = self._stamped()
        self.ruleset = read_rules(self._path)
        for note in self.ruleset.notes:
            self._say(note)
        settings = self.ruleset.settings
        self.store = Store(settings.state)
        self._build(self.store.alerts())
        if settings.listen is not None:
            self.status = StatusServer(settings.listen, self._page, self._healthy)
            await self.status.start()

    async def run(self, stop: asyncio.Event, reload: asyncio.Event) -> None:
        """Tick until `stop` is set; `reload` asks for the rules file to be read again, as does a change of it."""
        self.delivery.start()
        due = monotonic()
        while not stop.is_set():
            if reload.is_set() or self._stamped() != self._stamp:
                reload.clear()
                await self.reload()
            await self.loop.tick()
            due = max(due + self.ruleset.settings.interval, monotonic())
            await _wait_for(stop, reload, due - monotonic())

    async def once(self) -> int:
        """Look twice, an interval apart, tell what there is to tell, and return the exit code."""
        await self.loop.tick()
        await asyncio.sleep(self.ruleset.settings.interval)
        await self.loop.tick()
        await self.loop.settle()
        await self.delivery.once()
        firing = [alert.level for alert in self.loop.evaluator.active() if alert.state is State.FIRING]
        worst = max((EXIT_CODES.get(level, 0) for level in firing), default=0)
        down = list(targets_down(self.window.targets))
        for reading in down:
            self._say(f"target {reading.instance} of {reading.job}: {reading.error}")
        return worst or (UNANSWERED if down else 0)

    async def reload(self) -> None:
        """Read the rules file again. One that can't be used keeps the old one, and sets what MonitorConfigBroken watches."""
        self._stamp = self._stamped()
        try:
            ruleset = read_rules(self._path)
            notifiers = _notifiers(ruleset.settings)
        except ConfigError as error:
            self.figures.reload_failed = True
            self._say(f"the rules file can't be used, the one before it still is: {error}")
            return
        if ruleset.settings.state != self.ruleset.settings.state or ruleset.settings.listen != self.ruleset.settings.listen:
            self._say("`state` and `listen` change with a restart")
        await self.loop.settle()
        alerts = list(self.loop.evaluator.active())
        await self._close_parts()
        self.ruleset = ruleset
        self.figures.reload_failed = False
        self._build(alerts, notifiers)
        self.store.keep_only(self.loop.evaluator.active())
        self.delivery.start()
        self._say(f"{len(ruleset.rules)} rules from {self._path}")

    async def stop(self) -> None:
        """Stop; what isn't delivered yet waits in the state file."""
        if self.status is not None:
            await self.status.close()
        await self.loop.settle()
        await self._close_parts()
        self.store.close()

    def _build(self, restored: Sequence[Alert], notifiers: dict[str, Notifier] | None = None) -> None:
        settings = self.ruleset.settings
        self.window.need(needed(queries(self.ruleset.rules)))
        self.sources = _sources(self.ruleset)
        self.delivery = Delivery(self.store, notifiers or _notifiers(settings), self.now, self._say)
        parts = Parts(self.ruleset, self.sources, self.window, self.store, self.delivery, self.figures)
        self.loop = Loop(parts, self.now, restored)

    async def _close_parts(self) -> None:
        await self.delivery.close()
        for source in self.sources:
            await source.close()

    def _stamped(self) -> object:
        """What changes when the file does. None where it isn't there, as for a moment while it's replaced."""
        try:
            found = self._path.stat()
        except OSError:
            return self._stamp
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _healthy(self) -> bool:
        patience = 3 * self.ruleset.settings.interval + self.ruleset.settings.sources.timeout
        return not self.figures.ticks or self.now() - self.figures.last_tick < patience

    def _page(self) -> str:
        alerts = Counter(alert.state.value for alert in self.loop.evaluator.active())
        queued = {name: self.store.queued(name) for name in self.ruleset.settings.notifiers}
        return page(self.figures, alerts, self.delivery.outcomes, queued)


def _sources(ruleset: Ruleset) -> list[Source]:
    """What the file says is to be asked."""
    settings, wanted = ruleset.settings.sources, needed(queries(ruleset.rules))
    if settings.prometheus is not None:
        return [Prometheus(settings, map(promql, queries(ruleset.rules)))]
    found: list[Source] = [Scraper("tidegate", settings.targets, settings, wanted)]
    if settings.dcgm:
        found.append(Scraper("dcgm", settings.dcgm, settings, wanted))
    here = platform.node() or "localhost"
    if settings.nvml != "off":
        found.append(Nvml(here, settings.nvml))
    if settings.host:
        found.append(Host(here))
    return found


def _notifiers(settings: Settings) -> dict[str, Notifier]:
    """The notifiers that the file names. Raises ConfigError where one's library isn't there."""
    found: dict[str, Notifier] = {}
    for name, notifier in settings.notifiers.items():
        module, _, attribute = NOTIFIERS[notifier.type].partition(":")
        try:
            make = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ConfigError(f"notifier {name}: {error.name} isn't installed: pip install 'tidegate[monitor]'") from error
        found[name] = make(name, notifier)
    return found


async def _wait_for(stop: asyncio.Event, reload: asyncio.Event, seconds: float) -> None:
    """Until either is set, or the time is over."""
    waiting = [asyncio.create_task(event.wait()) for event in (stop, reload)]
    await asyncio.wait(waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
