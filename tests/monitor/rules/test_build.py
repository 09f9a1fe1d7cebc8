"""Rules files: what they amount to, and what is said when they're wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.alerts import Level
from monitor.metrics.families import FAMILIES
from monitor.metrics.named import NAMED
from monitor.metrics.query import promql, selects
from monitor.rules.build import PACK, notes_on, read_rules
from tests.monitor.files import ALONE, EXAMPLE, rule, rules, wrong


def test_the_example_as_it_stands(tmp_path: Path) -> None:
    latency, gpu = rules(tmp_path, EXAMPLE).rules[:2]
    assert (latency.alert, latency.level, latency.threshold, latency.hold) == ("InferenceLatency", Level.WARNING, 0.2, 0)
    assert promql(latency.condition) == (
        "histogram_quantile(0.99, sum by (le, model) (rate(tidegate_request_duration_seconds_bucket[1m]))) > 0.2"
    )
    assert (gpu.alert, gpu.level, gpu.threshold, gpu.hold) == ("GpuUtilization", Level.CRITICAL, 0.9, 0)
    assert "max by (instance, gpu) (avg_over_time(tidegate_gpu_utilization_ratio[1m]))" in promql(gpu.condition)


def test_the_pack_ships_on_and_a_files_own_alert_replaces_one_of_it(tmp_path: Path) -> None:
    packed = {found.alert for found in rules(tmp_path, "metrics: []\n").rules}
    assert {"TargetDown", "ModelNotReady", "QueueGrowing", "LaneRestarts", "AvailabilityBudgetBurn", "Watchdog"} <= packed
    own = rules(tmp_path, "metrics:\n  - {name: target_up, alert: TargetDown, alert_level: INFO}\n").rules
    assert [found.level for found in own if found.alert == "TargetDown"] == [Level.INFO]
    assert rules(tmp_path, ALONE).rules == ()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_metric_makes_a_rule(tmp_path: Path, name: str) -> None:
    threshold = {"seconds": "200ms", "bytes": "1GiB", "ratio": "50%"}.get(NAMED[name].unit, "5")
    made = rule(tmp_path, f"metrics:\n  - {{name: {name}, threshold: {threshold}}}\n")
    assert made.metric == name
    families = {select.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for select, _ in selects(made.condition)}
    assert families <= set(FAMILIES)
    assert families == set(NAMED[name].families)


CASES = {
    "an unknown metric": (
        "metrics:\n  - name: inference_latancy\n    threshold: 1s\n",
        "rules.yaml:2:11: metrics.0.name: no metric is called 'inference_latancy'; did you mean inference_latency or queue_latency?",
    ),
    "an unknown key": (
        "metrics:\n  - name: inference_latency\n    treshold: 1s\n",
        "rules.yaml:3:5: metrics.0.treshold: unknown key 'treshold'; did you mean 'threshold'?",
    ),
    "a missing threshold": ("metrics:\n  - name: inference_latency\n", "rules.yaml:2:5: metrics.0.threshold: must be given"),
    "a number without its unit": (
        "metrics:\n  - {name: inference_latency, threshold: 200}\n",
        "rules.yaml:2:42: metrics.0.threshold: expected a duration such as 200ms or 2s, got 200 without a unit (inference_latency)",
    ),
    "another metric's unit": (
        "metrics:\n  - {name: gpu_utilization, threshold: 200ms}\n",
        "rules.yaml:2:40: metrics.0.threshold: expected a share such as 90% or 0.9, got '200ms' (gpu_utilization)",
    ),
    "an unknown level": (
        "metrics:\n  - {name: drift, alert_level: WARN}\n",
        "rules.yaml:2:32: metrics.0.alert_level: got 'WARN'; did you mean 'WARNING'?",
    ),
    "an unknown label": (
        "metrics:\n  - {name: inference_latency, threshold: 1s, labels: {modle: a}}\n",
        "rules.yaml:2:54: metrics.0.labels: inference_latency has no label 'modle'; did you mean 'model'?",
    ),
    "a quantile of a gauge": (
        "metrics:\n  - {name: queue_rows, threshold: 5, quantile: p99}\n",
        "rules.yaml:2:48: metrics.0.quantile: queue_rows is no histogram: it has no quantiles",
    ),
    "a quantile that is none": (
        "metrics:\n  - {name: inference_latency, threshold: 1s, quantile: p100}\n",
        "rules.yaml:2:56: metrics.0.quantile: expected p50 to p99.9, or mean, got 'p100'",
    ),
    "a clear threshold on the wrong side": (
        "metrics:\n  - {name: inference_latency, threshold: 100ms, clear: 200ms}\n",
        "rules.yaml:2:56: metrics.0.clear: expected a value below the threshold 100ms, got 200ms",
    ),
    "PromQL and nobody who answers it": (
        "metrics:\n  - {expr: up == 0, alert: Down, threshold: 1}\n",
        "rules.yaml:2:12: metrics.0.expr: PromQL is answered by a Prometheus server",
    ),
    "a notifier that isn't there": (
        "notifiers: {pager: {type: log}}\nroutes:\n  - {to: pagr}\n",
        "rules.yaml:3:10: routes.0.to: no notifier is called 'pagr'; this file has pager",
    ),
    "a latency that isn't counted": (
        "objectives:\n  - {name: fast, target: 99%, of: latency, threshold: 150ms}\n",
        "rules.yaml:2:55: objectives.0.threshold: latencies are counted at 100ms and 200ms, not at 150ms",
    ),
    "a target of everything": (
        "objectives:\n  - {name: all, target: 100%}\n",
        "rules.yaml:2:25: objectives.0.target: expected a target between 0% and 100%, such as 99.9%",
    ),
    "a webhook without address": (
        "notifiers:\n  hook: {type: webhook}\n",
        "rules.yaml:2:9: notifiers.hook: a notifier of type webhook needs `url`",
    ),
    "nothing to watch": ("metrics:\n  - {threshold: 5}\n", "rules.yaml:2:5: metrics.0: give one of `name`"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_and_where(tmp_path: Path, case: str) -> None:
    text, message = CASES[case]
    (found,) = wrong(tmp_path, text)
    assert found.startswith(message)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = wrong(tmp_path, "metrics:\n  - {name: nope, threshold: 1}\n  - {name: queue_rows}\n")
    assert [line.split(" ")[0] for line in found] == ["rules.yaml:2:12:", "rules.yaml:3:5:"]


def test_labels_and_levels(tmp_path: Path) -> None:
    text = """\
metrics:
  - name: inference_latency
    model: bert
    labels: {version: "~1|2"}
    quantile: p99.9
    window: 5m
    keep_firing_for: 30s
    tags: {team: nlp}
    levels:
      - {threshold: 200ms, alert_level: warning, clear: 150ms}
      - {threshold: 1s, alert_level: CRITICAL, for: 10s}
"""
    warning, critical = rules(tmp_path, ALONE + text).rules
    assert promql(warning.condition) == (
        'histogram_quantile(0.999, sum by (le, model) (rate(tidegate_request_duration_seconds_bucket{model="bert", version=~"1|2"}[5m])))'
        " > 0.2"
    )
    assert warning.keeps is not None
    assert promql(warning.keeps).endswith("> 0.15")
    assert (warning.key, critical.key) == ("InferenceLatency/warning", "InferenceLatency/critical")
    assert (warning.hold, critical.hold, critical.keep_firing_for) == (0, 10, 30)
    assert dict(warning.labels) == {"team": "nlp", "severity": "warning"}


def test_a_burn_rate_objective_has_a_page_and_a_ticket(tmp_path: Path) -> None:
    page, ticket = rules(tmp_path, ALONE + "objectives:\n  - {name: fast, target: 99%, of: latency, threshold: 200ms}\n").rules
    assert (page.level, ticket.level, page.alert) == (Level.CRITICAL, Level.WARNING, "FastBudgetBurn")
    assert 'tidegate_request_duration_seconds_bucket{le="0.2"}[1h]' in promql(page.condition)
    assert "< 0.856)" in promql(page.condition)  # 1 - 14.4 * (1 - 0.99)
    assert "< 0.99)" in promql(ticket.condition)


def test_absence_is_an_alert_of_its_own(tmp_path: Path) -> None:
    _, absent = rules(tmp_path, ALONE + "metrics:\n  - {name: inference_latency, threshold: 1s, model: bert, absent: 5m}\n").rules
    assert (absent.alert, absent.hold) == ("InferenceLatencyAbsent", 300)
    assert promql(absent.condition) == 'absent(tidegate_request_duration_seconds_count{model="bert"})'


def test_a_series_by_its_own_name(tmp_path: Path) -> None:
    made = rule(tmp_path, "metrics:\n  - {series: http_total, reduce: rate, threshold: 5/s, by: [code], alert: Busy, labels: {a: b}}\n")
    assert promql(made.condition) == 'sum by (code) (rate(http_total{a="b"}[1m])) > 5'


def test_a_metric_that_nobody_exports_is_a_note_and_no_error(tmp_path: Path) -> None:
    made = rules(tmp_path, ALONE + "metrics:\n  - {name: drift}\n")
    assert made.notes == ()
    (drift,) = made.rules
    (note,) = notes_on([replace(drift, families=("tidegate_gone",))] * 2)  # as a rule of another version's metric would be
    assert "drift: not exported by this server version: tidegate_gone" in note


def test_the_packs_places_name_no_folder(tmp_path: Path) -> None:
    places = {found.where.split(":")[0] for found in rules(tmp_path, "metrics: []\n").rules}
    assert places == {PACK.name, ""}
    assert read_rules(PACK).rules
