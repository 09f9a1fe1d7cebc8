"""A Grafana dashboard: what the server exports and what the rules watch, with the alerts as annotations. A panel is a line of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.metrics.families import EXPORTED
from monitor.metrics.quantities import Unit
from monitor.metrics.query import promql, selects
from monitor.rules.model import Rule, Ruleset
from server.metrics import catalogue

UID = "tidegate"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
VARIABLES = ("instance", "model", "version", "precision")
_LADDER = 'model=~"$model", precision=~"$precision", instance=~"$instance"'
_MODEL = 'model=~"$model", version=~"$version", precision=~"$precision", instance=~"$instance"'
_QUEUE = 'model=~"$model", version=~"$version", instance=~"$instance"'
_SERVER = 'instance=~"$instance"'
_UNITS = {Unit.SECONDS: "s", Unit.RATIO: "percentunit", Unit.BYTES: "bytes", Unit.CELSIUS: "celsius", Unit.WATTS: "watt"}

LATENCY, PHASES, ROWS = catalogue.REQUEST_DURATION.name, catalogue.PHASE_DURATION.name, catalogue.BATCH_ROWS.name


@dataclass(frozen=True, slots=True)
class Panel:
    """A time series: (PromQL, legend) pairs and Grafana's name of their unit. `family` is what it needs beyond this server version."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    family: str = ""


def _quantiles(name: str, by: str, labels: str) -> list[tuple[str, str]]:
    rate = f"sum by (le, {by}) (rate({name}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{{{{{by}}}}} p{q * 100:g}") for q in (0.5, 0.9, 0.99)]


def _rate(name: str, by: str, labels: str) -> tuple[str, str]:
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))", " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


PANELS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Requests",
        (
            Panel("Latency", _quantiles(LATENCY, "model", _MODEL), "s"),
            Panel("Time by phase", [_rate(f"{PHASES}_sum", "model, phase", _MODEL)], "s"),
            Panel("Requests by outcome", [_rate(catalogue.REQUESTS.name, "outcome, reason", _SERVER)], "reqps"),
        ),
    ),
    (
        "Batching",
        (
            Panel("Rows per batch", _quantiles(ROWS, "model", _MODEL)),
            Panel("Why batches are cut", [_rate(catalogue.BATCHES.name, "model, reason", _MODEL)], "ops"),
            Panel("Rows a second", [_rate(catalogue.ROWS_TOTAL.name, "model", _MODEL)], "rowsps"),
            Panel("Queue", [(f"sum by (model) ({catalogue.QUEUE_ROWS.name}{{{_QUEUE}}})", "{{model}}")]),
            Panel("Lanes busy", [_rate(catalogue.LANE_BUSY.name, "model, lane", _MODEL)], "percentunit"),
            Panel("Event loop busy", [(f"{catalogue.LOOP_BUSY.name}{{{_SERVER}}}", "{{instance}}")], "percentunit"),
            Panel("Drops", [_rate("tidegate_dropped_total", "model, reason", _MODEL)], "reqps", "tidegate_dropped_total"),
            Panel(
                "Capacity used",
                [(f"max by (model) (tidegate_capacity_utilization{{{_MODEL}}})", "{{model}}")],
                "percentunit",
                "tidegate_capacity_utilization",
            ),
        ),
    ),
    (
        "Models",
        (
            Panel("Ready", [(f"min by (model) ({catalogue.MODEL_READY.name}{{{_MODEL}}})", "{{model}}")]),
            Panel(
                "Precision that answers",
                [(f"max by (model, precision) (tidegate_active_precision{{{_MODEL}}})", "{{model}} {{precision}}")],
                "short",
                "tidegate_active_precision",
            ),
            Panel("Requests by precision", [_rate(catalogue.REQUESTS.name, "model, precision", _MODEL)], "reqps"),
            Panel(
                "Use of each precision",
                [(f"max by (model, precision) ({catalogue.LADDER_UTILIZATION.name}{{{_LADDER}}})", "{{model}} {{precision}}")],
                "percentunit",
            ),
            Panel("Steps of the ladder", [_rate(catalogue.LADDER_STEPS.name, "model, precision, reason", _LADDER)], "short"),
            Panel("Drift", [(f"max by (model) (tidegate_drift_statistic{{{_MODEL}}})", "{{model}}")], "short", "tidegate_drift_statistic"),
            Panel(
                "Canary",
                [("max by (model, version) (tidegate_canary_step)", "{{model}} {{version}}")],
                "percentunit",
                "tidegate_canary_step",
            ),
        ),
    ),
    (
        "Machine",
        (
            Panel("Memory", [(f"process_resident_memory_bytes{{{_SERVER}}}", "{{instance}}")], "bytes"),
            Panel("CPU", [(f"rate(process_cpu_seconds_total{{{_SERVER}}}[$__rate_interval])", "{{instance}}")], "percentunit"),
        ),
    ),
)
"""Row → its panels."""


def dashboard(ruleset: Ruleset) -> dict[str, Any]:
    """The dashboard as plain values."""
    panels: list[dict[str, Any]] = []
    line = 0
    for row, contents in (*PANELS, ("What alerts", tuple(_watched(ruleset)))):
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": _place(0, line, COLUMNS, 1), "panels": []}
        )
        line += 1
        for index, panel in enumerate(contents):
            x, y = index * WIDTH % COLUMNS, line + index * WIDTH // COLUMNS * HEIGHT
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": _place(x, y, WIDTH, HEIGHT)})
        line += -(-len(contents) * WIDTH // COLUMNS) * HEIGHT
    return {
        "uid": UID,
        "title": "tidegate",
        "schemaVersion": 39,
        "tags": ["tidegate"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), *(_variable(name) for name in VARIABLES)]},
        "annotations": {"list": [_alerts()]},
        "panels": panels,
    }


def dashboard_json(ruleset: Ruleset) -> str:
    """The dashboard as text."""
    return json.dumps(dashboard(ruleset), indent=2, ensure_ascii=False) + "\n"


def _watched(ruleset: Ruleset) -> Iterator[Panel]:
    """What each of the rules compares, with its threshold."""
    rules: dict[str, list[Rule]] = {}
    for rule in ruleset.rules:
        if rule.metric != "watchdog":
            rules.setdefault(promql(rule.value), []).append(rule)
    for expr, same in rules.items():
        limits = [(f"vector({rule.threshold!r})", f"{rule.level.severity} {rule.comparison}") for rule in same]
        yield Panel(same[0].alert, [(expr, "__auto"), *limits], _UNITS.get(same[0].unit, "short"), _missing(same[0]))


def _missing(rule: Rule) -> str:
    """A family that the rule reads and that this server version doesn't export, if there is one."""
    families = (re.sub(r"_(bucket|sum|count)$", "", select.name) for select, _ in selects(rule.value))
    return next((family for family in families if family not in EXPORTED), "")


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": _source(), "range": True}
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    note = (
        {"description": f"No data from this server version: {panel.family} isn't exported by it."}
        if panel.family and panel.family not in EXPORTED
        else {}
    )
    defaults = {"unit": panel.unit, "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never"}}
    return {
        "type": "timeseries",
        "title": panel.title,
        **note,
        "datasource": _source(),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": targets,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _source() -> dict[str, str]:
    return {"type": "prometheus", "uid": "${datasource}"}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(name: str) -> dict[str, Any]:
    query = f"label_values({catalogue.MODEL_READY.name}, {name})"
    return {
        "name": name,
        "type": "query",
        "label": name.capitalize(),
        "datasource": _source(),
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "sort": 1,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": _source(),
        "target": {"refId": "alerts", "expr": 'ALERTS{alertstate="firing", alertname!="Watchdog"}', "interval": "15s"},
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{model}}",
    }
