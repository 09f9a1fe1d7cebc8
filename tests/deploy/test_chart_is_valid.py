"""Every scenario of the chart against the real validators: helm, Kubernetes' schemas, those of custom resources, promtool, and our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from monitor.render.grafana.dashboards import BOARDS
from monitor.rules.build import read_rules
from server.config import load_settings
from tests.deploy.chart import CHART, SCENARIOS, objects, one
from tests.deploy.pages import PAGES
from tests.tools import NODE_MODULES, PYTHON_TOOLS, fetch, run

ROOT = CHART.parents[1]
VERSIONS = ("1.30.0", "1.37.0")
CUSTOM = ("monitoring.coreos.com", "keda.sh", "gateway.networking.k8s.io")
CHECK = """
import json, sys, kubernetes_validate
for scenario, thing in json.load(sys.stdin):
    try:
        kubernetes_validate.validate(thing, sys.argv[1], strict=True)
    except Exception as error:
        print(f"{scenario}: {thing['kind']} {thing['metadata']['name']}: {type(error).__name__}: {error}")
"""


def is_custom(thing: dict[str, str]) -> bool:
    return thing["apiVersion"].startswith(CUSTOM)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "make render"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_helm_lints_it(scenario: str) -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", CHART, "--values", SCENARIOS[scenario])


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_schemas_take_it(version: str) -> None:
    fetch()
    plain = [(scenario, thing) for scenario in SCENARIOS for thing in objects(scenario) if not is_custom(thing)]
    assert kubernetes_says(version, json.dumps(plain)) == ""
    assert "Deployment" in {thing["kind"] for _, thing in plain}
    right = one("default", "Deployment", "demo-tidegate")
    wrong = {**right, "spec": {**right["spec"], "replica": 1}}
    assert "'replica' was unexpected" in kubernetes_says(version, json.dumps([["wrong", wrong]]))


def kubernetes_says(version: str, things: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PYTHON_TOOLS)}
    command = [sys.executable, "-W", "ignore", "-c", CHECK, version]
    done = subprocess.run(command, input=things, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_custom_resources_fit_their_definitions() -> None:
    fetch()
    found = [thing for scenario in SCENARIOS for thing in objects(scenario) if is_custom(thing)]
    assert {thing["kind"] for thing in found} == {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "GRPCRoute"}
    assert definitions_say(found) == ""
    broken = [
        {**thing, "spec": {**thing["spec"], "endpoints": 5, "groups": 5, "triggers": 5, "rules": 5, "minReplicaCount": "two"}}
        for thing in {thing["kind"]: thing for thing in found}.values()
    ]
    assert len(definitions_say(broken).splitlines()) >= len(broken)


def definitions_say(things: list[dict[str, str]]) -> str:
    command = ["node", str(ROOT / ".ci" / "node" / "validate.mjs"), str(NODE_MODULES)]
    done = subprocess.run(command, input=json.dumps(things), capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_promtool_takes_the_shipped_rules(tmp_path: Path) -> None:
    rule = one("everything", "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    assert "SUCCESS" in run("promtool", "check", "rules", tmp_path / "rules.yaml")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    assert "{{ $labels.model }}" in json.dumps(rule["spec"]), "what looks like a template there is Prometheus' and must stay"


def test_each_dashboard_is_a_config_map_that_the_sidecar_finds() -> None:
    found = [thing for thing in objects("everything") if "-dashboard-" in thing["metadata"]["name"]]
    assert {thing["metadata"]["name"] for thing in found} == {f"demo-inference-dashboard-{board.key}" for board in BOARDS}
    for thing in found:
        assert thing["kind"] == "ConfigMap"
        assert thing["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert thing["metadata"]["annotations"] == {"folder": "ML"}
        ((name, text),) = thing["data"].items()
        assert text == (CHART / "files" / "dashboards" / name).read_text().rstrip("\n"), "what looks like a template is Grafana's"
        assert f"{json.loads(text)['uid']}.json" == name
        assert len(text) < 256 << 10, "kubectl apply keeps a copy in an annotation"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_server_reads_its_settings(scenario: str, tmp_path: Path) -> None:
    """By the server's own reader; the files that it names are put where it looks for them."""
    (text,) = (thing["data"]["server.yaml"] for thing in objects(scenario) if "server.yaml" in thing.get("data", ()))
    for folder in ("/etc/tidegate-tls", "/etc/tidegate-tokens", "/etc/tidegate-redis", "/models", "/var/lib/tidegate"):
        (tmp_path / folder[1:]).mkdir(parents=True)
        text = text.replace(folder, str(tmp_path / folder[1:]))
    for name in ("tidegate-tls/tls.crt", "tidegate-tls/tls.key", "tidegate-tls/ca.crt", "tidegate-redis/password", "tidegate-redis/ca.crt"):
        (tmp_path / "etc" / name).touch()
    (tmp_path / "server.yaml").write_text(text)
    settings = load_settings(tmp_path / "server.yaml", {}, {"TIDEGATE_HOST": "", "TIDEGATE_REPOSITORY": "", "TIDEGATE_LANES_DEVICE": ""})
    assert (settings.host, settings.http_port, settings.grpc_port, settings.metrics_port) == ("0.0.0.0", 8000, 8001, 8002)
    assert settings.log.format == "json"


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "monitor-off"])
def test_the_monitor_reads_its_rules(scenario: str, tmp_path: Path) -> None:
    (text,) = (thing["data"]["monitor.yaml"] for thing in objects(scenario) if "monitor.yaml" in thing.get("data", ()))
    (tmp_path / "monitor.yaml").write_text(text)
    ruleset = read_rules(tmp_path / "monitor.yaml")
    (target,) = ruleset.settings.sources.targets
    service = "demo-inference" if scenario == "everything" else "demo-tidegate"
    assert target == f"dns://{service}-headless.ml.svc:8002"
    assert {"ModelNotReady", "Watchdog"} <= {rule.alert for rule in ruleset.rules}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("server: {replica: 2}", "'replica' not allowed"),
        ("server: {config: {limits: {max_bdy: 1}}}", "'max_bdy' not allowed"),
        ("server: {config: {http_port: 9000}}", "'http_port' not allowed"),
        ("monitor: {config: {state: /x}}", "'state' not allowed"),
        ("monitor: {config: {metrics: [{name: inference_latancy, threshold: 1s}]}}", "/monitor/config/metrics/0"),
        ("autoscaling: {kind: both}", "/autoscaling/kind"),
        ("service: {type: External}", "/service/type"),
        ("server: {gpu: {count: 0}}", "/server/gpu/count"),
        ("server: {replicas: two}", "/server/replicas"),
        ("admin: {enabled: true}", "admin.enabled needs auth.existingSecret"),
        ("admin: {port: 8000}", "/admin/port"),
        ("state: {pvc: {enabled: true}}\nserver: {replicas: 2}", "a claim has one writer"),
        ("state: {pvc: {enabled: true}}\nautoscaling: {kind: keda}", "a claim has one writer"),
        ("server: {config: {state: /x}}", "'state' not allowed"),
        ("surprise: 1", "'surprise' not allowed"),
        ("exporter: {enabled: true}", "exporter.enabled needs models.existingClaim or models.claim.create"),
    ],
)
def test_a_value_that_nothing_reads_is_an_error(values: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(values)
    shown = run("helm", "template", "demo", CHART, "--values", tmp_path / "values.yaml", status=1)
    assert said in shown


def test_the_defaults_fit_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text()), schema)


def test_values_stay_readable() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    assert len(lines) <= 350
    assert [line for line in lines if len(line) > 160] == []
    assert [line for line in lines if line.strip() and "#" not in line] == []
