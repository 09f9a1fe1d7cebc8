"""The dashboards read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from monitor.metrics.named import NAMED
from monitor.render.grafana.dashboards import dashboards
from tests.monitor.files import rules

Board: TypeAlias = dict[str, Any]


def everything() -> str:
    """A file with every named metric, and what else there is."""
    thresholds = {"seconds": "200ms", "bytes": "1GiB", "ratio": "50%"}
    metrics = "".join(
        f"  - {{name: {name}, threshold: {thresholds.get(metric.unit, '5')}, absent: 5m}}\n" for name, metric in NAMED.items()
    )
    hysteresis = "  - {name: queue_rows, alert: Hysteresis, threshold: 5, clear: 2, window: 90s}\n"
    return f"metrics:\n{metrics}{hysteresis}objectives:\n  - {{name: fast, target: 99%, of: latency, threshold: 200ms}}\n"


def boards(folder: Path, text: str) -> Mapping[str, Board]:
    """Key (overview, model, …) → dashboard, of a rules file."""
    made = dashboards(rules(folder, text))
    return {name.removeprefix("tidegate-").removesuffix(".json"): json.loads(board) for name, board in made.items()}


def panels(board: Board) -> Iterator[Board]:
    """The dashboard's panels without its rows."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


def expressions(board: Board) -> list[str]:
    """Every query of the dashboard: its panels' and its annotations'."""
    asked = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return asked + [annotation["target"]["expr"] for annotation in board["annotations"]["list"]]


def filled(expr: str) -> str:
    """A query as Grafana sends it where all values of each variable are chosen."""
    for name in ("instance", "model", "version", "precision", "gpu"):
        expr = expr.replace(f"${name}", ".*")
    return expr.replace("$__rate_interval", "1m")
