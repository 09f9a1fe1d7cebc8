"""The files that the Helm chart ships, and every renderer by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monitor.render.alertmanager import alertmanager_yaml
from monitor.render.grafana import dashboard_json
from monitor.render.prometheus_rule import rule_yaml
from monitor.rules.model import Ruleset

RENDERERS: Mapping[str, Callable[[Ruleset], str]] = {
    "prometheus": rule_yaml,
    "alertmanager": alertmanager_yaml,
    "grafana": dashboard_json,
}
"""For whom → the text. Equal rules give equal text, so that a rendered file can be kept in git."""

_NAMES = {"prometheus": "rules.yaml", "alertmanager": "alertmanager.yaml", "grafana": "dashboard.json"}


def chart_files(ruleset: Ruleset) -> dict[str, str]:
    """File name → text. The chart reads them as they are (.Files.Get): what looks like a template in them is Prometheus'."""
    return {_NAMES[form]: render(ruleset) for form, render in RENDERERS.items()}
