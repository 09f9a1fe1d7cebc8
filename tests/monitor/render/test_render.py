"""What is rendered: read back, and checked by the tools it's meant for."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.metrics.named import NAMED
from monitor.render.alertmanager import alertmanager_yaml
from monitor.render.grafana import VARIABLES, dashboard, dashboard_json
from monitor.render.helm import chart_files
from monitor.render.prometheus_rule import rule_yaml
from tests.monitor.files import ALONE, EXAMPLE, rules
from tests.tools import NODE_MODULES, fetch, run

ROUTED = """\
metrics:
  - {name: inference_latency, threshold: 200ms, notify: pager, for: 90s, keep_firing_for: 1m, summary: "{model} {{ $value }} is {value}"}
notifiers:
  pager: {type: webhook, secret_url: {file: pager.url}, hmac: {env: KEY}}
  chat: {type: webhook, url: "http://chat/hook"}
  screen: {type: log}
routes:
  - {level: critical, to: [pager, chat], go_on: true}
  - {match: {model: 'a"b'}, to: chat}
maintenance: [{name: sundays, days: [sun], at: ["02:00", "04:00"]}]
"""


def everything(folder: Path) -> str:
    """A file with every named metric, and what else there is."""
    thresholds = {"seconds": "200ms", "bytes": "1GiB", "ratio": "50%"}
    metrics = "".join(
        f"  - {{name: {name}, threshold: {thresholds.get(metric.unit, '5')}, absent: 5m}}\n" for name, metric in NAMED.items()
    )
    hysteresis = "  - {name: queue_rows, alert: Hysteresis, threshold: 5, clear: 2, window: 90s}\n"
    return f"metrics:\n{metrics}{hysteresis}objectives:\n  - {{name: fast, target: 99%, of: latency, threshold: 200ms}}\n"


def test_a_rule_as_prometheus_reads_it(tmp_path: Path) -> None:
    (group,) = yaml.safe_load(rule_yaml(rules(tmp_path, ALONE + ROUTED)))["groups"]
    assert (group["name"], group["interval"]) == ("tidegate", "5s")
    (rule,) = group["rules"]
    assert (rule["for"], rule["keep_firing_for"], rule["labels"]) == ("1m30s", "1m", {"severity": "warning"})
    # What was text stays text; {model} and {value} are Prometheus' own.
    assert rule["annotations"]["summary"] == '{{ $labels.model }} {{ "{{" }} $value }} is {{ $value | humanizeDuration }}'
    assert rule["annotations"]["runbook_url"] == "docs/runbooks/InferenceLatency.md"


def test_promtool_takes_all_rules(tmp_path: Path) -> None:
    ruleset = rules(tmp_path, everything(tmp_path))
    (tmp_path / "rendered.yaml").write_text(rule_yaml(ruleset))
    assert f"{len(ruleset.rules)} rules found" in run("promtool", "check", "rules", "rendered.yaml", cwd=tmp_path)


def test_alertmanager(tmp_path: Path) -> None:
    text = alertmanager_yaml(rules(tmp_path, ALONE + ROUTED))
    config = yaml.safe_load(text)
    routes = [(route["receiver"], route.get("matchers", []), route["continue"]) for route in config["route"]["routes"]]
    assert routes == [
        ("pager", ['alertname="InferenceLatency"', 'severity="warning"'], False),
        ("pager", ['severity="critical"'], True),
        ("chat", ['severity="critical"'], True),
        ("chat", [r'model="a\"b"'], False),
    ]
    receivers = {receiver["name"]: receiver for receiver in config["receivers"]}
    assert receivers["pager"]["webhook_configs"][0]["url_file"] == "pager.url"
    assert receivers["screen"] == {"name": "screen"}
    assert {"alertname", "model"} <= set(config["inhibit_rules"][0]["equal"])
    for said in ("notifier screen", "notifier pager: Alertmanager's webhooks have a body of their own", "maintenance sundays"):
        assert f"# not said here: {said}" in text


# url_file needs Alertmanager 0.26; Debian's is 0.25.
@pytest.mark.parametrize("text", [EXAMPLE, ROUTED.replace("secret_url: {file: pager.url}", 'url: "http://pager"')])
def test_amtool_takes_the_routes(tmp_path: Path, text: str) -> None:
    (tmp_path / "alertmanager.yaml").write_text(alertmanager_yaml(rules(tmp_path, text)))
    assert "SUCCESS" in run("amtool", "check-config", "alertmanager.yaml", cwd=tmp_path)


def test_the_dashboard(tmp_path: Path) -> None:
    board = dashboard(rules(tmp_path, everything(tmp_path)))
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", *VARIABLES}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert not overlapping([panel["gridPos"] for panel in board["panels"]])
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(board))))
    assert used <= {*VARIABLES, "__rate_interval"}
    titles = {panel["title"] for panel in board["panels"]}
    assert {"Latency", "Time by phase", "Why batches are cut", "Precision that answers", "Drift", "Canary", "InferenceLatency"} <= titles


def overlapping(places: list[dict[str, int]]) -> list[tuple[int, int]]:
    cells: set[tuple[int, int]] = set()
    twice = []
    for place in places:
        inside = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        twice += sorted(cells & inside)
        cells |= inside
    return twice


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """As recording rules: promtool parses them."""
    board = dashboard(rules(tmp_path, everything(tmp_path)))
    queries = [expr.replace("$__rate_interval", "1m") for expr in expressions(board)]
    recorded = [{"record": f"q:{number}", "expr": expr} for number, expr in enumerate(queries)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": recorded}]}))
    assert f"{len(queries)} rules found" in run("promtool", "check", "rules", "queries.yaml", cwd=tmp_path)


def test_the_charts_files_are_the_same_texts_each_time(tmp_path: Path) -> None:
    ruleset = rules(tmp_path, EXAMPLE)
    files = chart_files(ruleset)
    assert set(files) == {"rules.yaml", "alertmanager.yaml", "dashboard.json"}
    assert files == chart_files(rules(tmp_path, EXAMPLE))
    assert json.loads(files["dashboard.json"]) == json.loads(dashboard_json(ruleset))


# What Grafana's own types leave to the data source's plugin: Prometheus' part of an annotation.
BOARD_TYPES = """\
import type { AnnotationQuery, Dashboard, DataQuery } from '@grafana/schema';
type Annotation = AnnotationQuery<DataQuery & { expr: string; interval?: string }> & { titleFormat?: string; textFormat?: string };
type Board = Omit<Dashboard, 'annotations'> & { annotations?: { list?: Annotation[] } };
"""


def compiled(board: dict[str, Any], folder: Path) -> str:
    """What TypeScript says of a dashboard held against Grafana's own types; nothing where it fits."""
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "board.ts").write_text(f"{BOARD_TYPES}export const board: Board = {json.dumps(board)};\n")
    fetch()
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "board.ts")
    command = ["node", str(NODE_MODULES / "typescript" / "bin" / "tsc"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100).stdout


def test_grafanas_types_take_the_dashboard(tmp_path: Path) -> None:
    board = dashboard(rules(tmp_path, everything(tmp_path)))
    (tmp_path / "good").mkdir()
    assert compiled(board, tmp_path / "good") == ""
    (tmp_path / "bad").mkdir()
    assert "DashboardCursorSync" in compiled({**board, "graphTooltip": "shared"}, tmp_path / "bad")
