"""Rules → a rule file for Prometheus: the same queries, `for`, labels and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from monitor.metrics.quantities import Unit
from monitor.metrics.query import labels_by, promql, promql_duration
from monitor.rules.model import Rule, Ruleset

GROUP = "tidegate"
_VALUES = {
    Unit.SECONDS: "{{ $value | humanizeDuration }}",
    Unit.RATIO: "{{ $value | humanizePercentage }}",
    Unit.BYTES: "{{ $value | humanize1024 }}B",
    Unit.RATE: '{{ $value | printf "%.4g" }}/s',
    Unit.CELSIUS: '{{ $value | printf "%.4g" }}°C',
    Unit.WATTS: '{{ $value | printf "%.4g" }}W',
    Unit.COUNT: '{{ $value | printf "%.4g" }}',
}


def rule_file(ruleset: Ruleset) -> dict[str, Any]:
    """The rule file as plain values: one group, evaluated as often as the monitor ticks."""
    interval = promql_duration(ruleset.settings.interval)
    return {"groups": [{"name": GROUP, "interval": interval, "rules": [alerting_rule(rule) for rule in ruleset.rules]}]}


def alerting_rule(rule: Rule) -> dict[str, Any]:
    """One alerting rule."""
    text: dict[str, Any] = {"alert": rule.alert, "expr": expression(rule)}
    if rule.hold:
        text["for"] = promql_duration(rule.hold)
    if rule.keep_firing_for:
        text["keep_firing_for"] = promql_duration(rule.keep_firing_for)
    text["labels"] = {name: _literal(value) for name, value in rule.labels}
    text["annotations"] = {"summary": _template(rule.summary, rule.unit), "runbook_url": _literal(rule.runbook)}
    return text


def expression(rule: Rule) -> str:
    """The rule's PromQL. Hysteresis asks Prometheus itself whether the alert was firing."""
    condition = promql(rule.condition)
    if rule.keeps is None:
        return condition
    own = f'ALERTS{{alertname="{rule.alert}", alertstate="firing", severity="{rule.level.severity}"}}'
    return f"({condition}) or (({promql(rule.keeps)}) and on ({', '.join(labels_by(rule.value))}) {own})"


def rule_yaml(ruleset: Ruleset) -> str:
    """The rule file as text."""
    return HEADER + dump(rule_file(ruleset))


def rule_files(ruleset: Ruleset) -> dict[str, str]:
    """File name → text."""
    return {"rules.yaml": rule_yaml(ruleset)}


HEADER = "# Written by `tidegate monitor render`: change the rules file and render again.\n"


def dump(data: object) -> str:
    """YAML as people like to read it: keys in their order, no line broken."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)


def _template(summary: str, unit: Unit) -> str:
    """{value} and {LABEL} as Prometheus' templates have them; everything else is text, braces too."""
    parts: Iterable[str] = re.split(r"(\{\w+\})", summary)
    return "".join(_placeholder(part[1:-1], unit) if re.fullmatch(r"\{\w+\}", part) else _literal(part) for part in parts)


def _placeholder(name: str, unit: Unit) -> str:
    return _VALUES[unit] if name == "value" else f"{{{{ $labels.{name} }}}}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
