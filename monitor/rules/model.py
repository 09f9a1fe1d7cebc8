"""What a rules file amounts to: frozen rules, each with the query that finds its alerts, and the settings around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from monitor.alerts import Labels, Level
from monitor.metrics.quantities import Unit
from monitor.metrics.query import Query
from monitor.rules.settings import Settings


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert: where `condition` has an answer it is pending, and firing once that has lasted `hold` seconds.

    `value` is what the condition compares, `threshold` what with. While firing, `keeps` counts beside the condition (hysteresis), and after
    that it goes on for `keep_firing_for` seconds. `key` tells rules apart, the same after a restart as long as the file says the same.
    """

    key: str
    alert: str
    level: Level
    value: Query
    condition: Query
    unit: Unit = Unit.COUNT
    comparison: str = ">"
    threshold: float = 0.0
    keeps: Query | None = None
    hold: float = 0.0
    keep_firing_for: float = 0.0
    labels: Labels = ()
    summary: str = ""
    runbook: str = ""
    notify: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    metric: str = ""
    where: str = ""
    families: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A file that can be used: its rules, its settings, and what a reader should know that is no error."""

    path: Path
    rules: tuple[Rule, ...]
    settings: Settings
    notes: tuple[str, ...] = ()
