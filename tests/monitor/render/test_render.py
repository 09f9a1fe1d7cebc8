"""What is rendered: read back, and checked by the tools it's meant for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monitor.render.alertmanager import alertmanager_yaml
from monitor.render.grafana.dashboards import dashboards
from monitor.render.helm import chart_files
from monitor.render.prometheus_rule import rule_yaml
from tests.monitor.files import ALONE, EXAMPLE, rules
from tests.monitor.render.boards import everything
from tests.tools import run

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


def test_a_rule_as_prometheus_reads_it(tmp_path: Path) -> None:
    (group,) = yaml.safe_load(rule_yaml(rules(tmp_path, ALONE + ROUTED)))["groups"]
    assert (group["name"], group["interval"]) == ("tidegate", "5s")
    (rule,) = group["rules"]
    assert (rule["for"], rule["keep_firing_for"], rule["labels"]) == ("1m30s", "1m", {"severity": "warning"})
    # What was text stays text; {model} and {value} are Prometheus' own.
    assert rule["annotations"]["summary"] == '{{ $labels.model }} {{ "{{" }} $value }} is {{ $value | humanizeDuration }}'
    assert rule["annotations"]["runbook_url"] == "docs/runbooks/InferenceLatency.md"


def test_promtool_takes_all_rules(tmp_path: Path) -> None:
    ruleset = rules(tmp_path, everything())
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


def test_the_charts_files_are_the_same_texts_each_time(tmp_path: Path) -> None:
    ruleset = rules(tmp_path, EXAMPLE)
    files = chart_files(ruleset)
    boards = {f"dashboards/{name}": text for name, text in dashboards(ruleset).items()}
    assert set(files) == {"rules.yaml", "alertmanager.yaml", *boards}
    assert files == chart_files(rules(tmp_path, EXAMPLE))
    assert boards.items() <= files.items()
