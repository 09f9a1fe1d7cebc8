"""Every renderer by its name, and the files that the Helm chart ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from monitor.rules.model import Ruleset

RENDERERS: Mapping[str, str] = {
    "prometheus": "monitor.render.prometheus_rule:rule_files",
    "alertmanager": "monitor.render.alertmanager:alertmanager_files",
    "grafana": "monitor.render.grafana.dashboards:dashboards",
}
"""For whom → who makes the files. By name, since Grafana's builders take a while to import and only rendering needs them."""


def rendered(ruleset: Ruleset, form: str) -> Mapping[str, str]:
    """File name → text. Equal rules give equal text, so that a rendered file can be kept in git."""
    module, _, name = RENDERERS[form].partition(":")
    render: Callable[[Ruleset], Mapping[str, str]] = getattr(import_module(module), name)
    return render(ruleset)


def chart_files(ruleset: Ruleset) -> dict[str, str]:
    """File name → text. The chart reads them as they are (.Files.Get): what looks like a template in them is Prometheus'."""
    files = {name: text for form in ("prometheus", "alertmanager") for name, text in rendered(ruleset, form).items()}
    return files | {f"dashboards/{name}": text for name, text in rendered(ruleset, "grafana").items()}
