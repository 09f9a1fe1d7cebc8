"""Our evaluator and Prometheus agree: at every step of every scenario the same alerts fire, with the same labels.

What fires when is also written down in agreement.json, so that a change of both is seen:
`python -m tests.monitor.test_agreement` writes it anew, and must only be used where promtool then agrees.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from monitor.alerts import Alert, State
from monitor.metrics.query import promql_duration
from monitor.render.prometheus_rule import alerting_rule, dump
from monitor.rule_test import simulate
from monitor.rules.model import Rule
from monitor.series.notation import values
from monitor.series.text import series_named
from tests.monitor.files import ALONE, rules
from tests.monitor.scenarios import SCENARIOS, STEP, Scenario
from tests.tools import run

GOLDEN = Path(__file__).with_name("agreement.json")


def judged(scenario: Scenario, folder: Path) -> tuple[tuple[Rule, ...], list[tuple[float, list[Alert]]]]:
    """The rules, and at each step the alerts that fire."""
    text = scenario.rules if "pack:" in scenario.rules else ALONE + scenario.rules
    found = rules(folder, text).rules
    series = {series_named(name): values(text) for name, text in scenario.series.items()}
    steps = simulate(found, series, STEP, STEP * scenario.steps)
    return found, [(now, [alert for alert in alerts if alert.state is State.FIRING]) for now, alerts in steps]


def spans(steps: list[tuple[float, list[Alert]]]) -> dict[str, list[list[float]]]:
    """Alert → [first, last] second of each time that it fired."""
    found: dict[str, list[list[float]]] = {}
    for now, firing in steps:
        for alert in firing:
            label = ",".join(f"{name}={value}" for name, value in alert.labels)
            runs = found.setdefault(label, [])
            if runs and runs[-1][1] == now - STEP:
                runs[-1][1] = now
            else:
                runs.append([now, now])
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_fires_when(name: str, tmp_path: Path) -> None:
    _, steps = judged(SCENARIOS[name], tmp_path)
    assert spans(steps) == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", SCENARIOS)
def test_prometheus_agrees(name: str, tmp_path: Path) -> None:
    write_promtool_files(SCENARIOS[name], tmp_path)
    run("promtool", "test", "rules", "test.yaml", cwd=tmp_path)


def test_the_scenarios_are_many_and_most_of_them_fire_and_end() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(SCENARIOS)
    assert len(SCENARIOS) >= 30
    ended = [
        name for name, found in golden.items() if any(run[1] < STEP * SCENARIOS[name].steps for runs in found.values() for run in runs)
    ]
    assert len(ended) >= 20


def write_promtool_files(scenario: Scenario, folder: Path) -> None:
    """The rendered rules without their texts, and a promtool test that expects at every step exactly what we found."""
    found, steps = judged(scenario, folder)
    rendered = [{key: value for key, value in alerting_rule(rule).items() if key != "annotations"} for rule in found]
    (folder / "prometheus.yaml").write_text(dump({"groups": [{"name": "g", "rules": rendered}]}))
    tests = [expected(now, name, firing) for now, firing in steps for name in sorted({rule.alert for rule in found})]
    series = [{"series": name, "values": text} for name, text in scenario.series.items()]
    step = promql_duration(STEP)
    test = {
        "rule_files": ["prometheus.yaml"],
        "evaluation_interval": step,
        "tests": [{"interval": step, "input_series": series, "alert_rule_test": tests}],
    }
    (folder / "test.yaml").write_text(json.dumps(test))


def expected(now: float, name: str, firing: list[Alert]) -> dict[str, Any]:
    labels = [{key: value for key, value in alert.labels if key != "alertname"} for alert in firing if alert.name == name]
    return {"eval_time": promql_duration(now), "alertname": name, "exp_alerts": [{"exp_labels": each} for each in labels]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {name: spans(judged(scenario, Path(folder))[1]) for name, scenario in SCENARIOS.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
