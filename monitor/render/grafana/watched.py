"""What the rules compare, as panels with their thresholds, each on the dashboard where it belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from monitor.alerts import Level
from monitor.metrics.named import NAMED
from monitor.metrics.quantities import Unit
from monitor.metrics.query import labels_by, promql, selects
from monitor.render.grafana.panels import Limits, Panel
from monitor.rules.model import Rule, Ruleset

UNITS: Mapping[Unit, str] = {
    Unit.SECONDS: "s",
    Unit.RATIO: "percentunit",
    Unit.BYTES: "bytes",
    Unit.CELSIUS: "celsius",
    Unit.WATTS: "watt",
}
COLOURS: Mapping[Level, str] = {Level.INFO: "blue", Level.WARNING: "yellow", Level.CRITICAL: "red"}
_BY_FAMILY: Mapping[str, str] = {
    "tidegate_gpu_": "gpu",
    "DCGM_FI_": "gpu",
    "tidegate_active_precision": "precision",
    "tidegate_drift_": "precision",
    "tidegate_canary_": "precision",
}
"""How a family begins → the dashboard of what is watched there."""


def watched(ruleset: Ruleset, board: str) -> Iterator[Panel]:
    """The panels of those rules that belong to `board`; rules that ask the same share one."""
    rules: dict[str, list[Rule]] = {}
    for rule in ruleset.rules:
        if rule.metric != "watchdog" and _board(rule) == board:
            rules.setdefault(promql(rule.value), []).append(rule)
    for expr, same in rules.items():
        yield Panel(same[0].alert, _tells(same), [(expr, "__auto")], UNITS.get(same[0].unit, "short"), limits=_limits(same))


def _board(rule: Rule) -> str:
    names = [select.name for select, _ in selects(rule.value)]
    for start, board in _BY_FAMILY.items():
        if any(name.startswith(start) for name in names):
            return board
    return "model" if "model" in labels_by(rule.value) else "overview"


def _tells(rules: list[Rule]) -> str:
    """What the rules watch, and when each alerts."""
    named = NAMED.get(rules[0].metric)
    what = f"{named.what[0].upper()}{named.what[1:]}. " if named is not None else ""
    limits = "; ".join(f"{rule.level} where it is {rule.comparison} {rule.threshold:g}" for rule in rules)
    return f"{what}Alerts: {limits}. What to do: {rules[0].runbook}"


def _limits(rules: list[Rule]) -> Limits:
    """The rules' thresholds: worse upwards, or downwards where they alert below."""
    steps = sorted((rule.threshold, COLOURS[rule.level]) for rule in rules)
    if rules[0].comparison in (">", ">="):
        return Limits(steps)
    after = [*(colour for _, colour in steps[1:]), "green"]
    return Limits([(value, colour) for (value, _), colour in zip(steps, after, strict=True)], steps[0][1])
