"""What the chart makes of values: the policy that every pod keeps, the stop sequence, GPUs, scaling, networks, secrets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.deploy.chart import SCENARIOS, containers, objects, one, pods, text
from tests.tools import run

FULL = "demo-inference"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_pod_keeps_the_restricted_profile(scenario: str) -> None:
    found = dict(pods(scenario))
    assert found
    for maker, template in found.items():
        spec = template["spec"]
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["seccompProfile"]) == (True, 10001, {"type": "RuntimeDefault"}), (
            maker
        )
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
        for container in containers(template):
            where = f"{maker}: {container['name']}"
            own = container["securityContext"]
            assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert "memory" in container["resources"]["limits"], where
            assert not re.search(r":latest$|^[^:@]+$", container["image"]), where
            assert all("hostPort" not in port for port in container.get("ports", ()))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_runs_on_is_probed_and_every_mount_has_its_volume(scenario: str) -> None:
    for maker, template in pods(scenario):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, maker
        for container in template["spec"]["containers"] if maker.startswith("Deployment") else ():
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in ports, f"{maker} {probe}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_points_at_something_points_at_what_is_there(scenario: str) -> None:
    """Services and budgets select pods that there are, by ports that those have; routes and scalers name objects that there are."""
    labels = [template["metadata"]["labels"] for _, template in pods(scenario)]
    ports = {port["name"] for _, template in pods(scenario) for each in containers(template) for port in each.get("ports", ())}
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in objects(scenario)}
    for thing in objects(scenario):
        spec = thing.get("spec", {})
        if thing["kind"] == "Service":
            assert any(spec["selector"].items() <= each.items() for each in labels)
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        elif thing["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            wanted = (spec.get("selector") or spec.get("podSelector"))["matchLabels"]
            assert any(wanted.items() <= each.items() for each in labels)
        elif thing["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert ("Deployment", spec["scaleTargetRef"]["name"]) in names
        elif thing["kind"] in ("HTTPRoute", "GRPCRoute"):
            assert all(("Service", back["name"]) in names for rule in spec["rules"] for back in rule["backendRefs"])
        elif thing["kind"] == "ServiceMonitor":
            services = [other for other in objects(scenario) if other["kind"] == "Service"]
            (watched,) = [each for each in services if spec["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()]
            assert spec["endpoints"][0]["port"] in {port["name"] for port in watched["spec"]["ports"]}


def server(scenario: str, *flags: str) -> Any:
    name = FULL if scenario == "everything" else "demo-tidegate"
    return one(scenario, "Deployment", name, *flags)["spec"]


@pytest.mark.parametrize(
    ("scenario", "pre_stop", "delay", "timeout"), [("default", 0, 5, 30), ("everything", 5, 10, 60)], ids=["default", "everything"]
)
def test_the_grace_period_is_longer_than_the_drain(scenario: str, pre_stop: int, delay: int, timeout: int) -> None:
    spec = server(scenario)["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == pre_stop + delay + timeout + 10
    settings = next(thing["data"]["server.yaml"] for thing in objects(scenario) if "server.yaml" in thing.get("data", ()))
    assert f"drain_delay: {delay}\n" in settings
    assert f"drain_timeout: {timeout}\n" in settings
    hook = spec["containers"][0].get("lifecycle")
    assert hook == ({"preStop": {"sleep": {"seconds": pre_stop}}} if pre_stop else None)


def test_a_first_start_may_build_engines_and_a_stuck_loop_is_restarted() -> None:
    container = server("default")["template"]["spec"]["containers"][0]
    startup, live, ready = (container[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert startup["httpGet"] == ready["httpGet"] == {"path": "/v2/health/ready", "port": "metrics"}
    assert live["httpGet"] == {"path": "/v2/health/live", "port": "http"}, "the event loop's own port: the metrics port answers without it"
    assert live["periodSeconds"] * live["failureThreshold"] == 60


def test_liveness_under_tls() -> None:
    by_scheme = server("everything")["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]
    assert by_scheme == {"path": "/v2/health/live", "port": "http", "scheme": "HTTPS"}
    without_certificate = server("ingress-tls")["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]
    assert without_certificate["port"] == "metrics"


def test_a_change_of_settings_is_a_roll_out() -> None:
    before = server("default")["template"]["metadata"]["annotations"]["checksum/config"]
    after = server("default", "--set", "server.config.log.level=debug")["template"]["metadata"]["annotations"]["checksum/config"]
    assert before != after
    assert before == server("default", "--set", "service.httpPort=80")["template"]["metadata"]["annotations"]["checksum/config"]


def test_a_gpu() -> None:
    spec = server("gpu-t4")["template"]["spec"]
    container = next(each for each in spec["containers"] if each["name"] == "server")
    assert container["image"].endswith("-gpu")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "12Gi"}
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-T4"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "device: cuda:0" in text("gpu-t4")
    shared = server("gke-t4")["template"]["spec"]
    assert shared["containers"][0]["resources"]["limits"]["nvidia.com/gpu.shared"] == 1
    assert "cloud.google.com/gke-accelerator" in shared["nodeSelector"]
    assert "nvidia" not in text("default").replace("NVIDIA", "")


def test_the_models_come_first_and_are_read_only() -> None:
    spec = server("gpu-t4")["template"]["spec"]
    (fetch,) = spec["initContainers"]
    assert fetch["args"] == ["copy", "s3:models/prod", "/models", "--checksum"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "model-bucket"}}]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == "/models"]
    assert mount["readOnly"] is True
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "models"}} in server("default")["template"]["spec"]["volumes"]


def test_the_exporter_runs_on_a_gpu_and_writes_where_the_server_reads() -> None:
    job = one("exporter", "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "models", "mountPath": "/models", "subPath": "prod"} in container["volumeMounts"]
    assert container["args"][0] == "export"
    other = one("exporter", "Job", None, "--set", "exporter.backoffLimit=2")
    assert other["metadata"]["name"] != job["metadata"]["name"], "a Job can't be changed: other settings are another Job"


def test_who_scales() -> None:
    assert server("default")["replicas"] == 1
    assert "replicas" not in server("hpa")
    assert "replicas" not in server("keda")
    hpa = one("hpa", "HorizontalPodAutoscaler")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 20)
    assert hpa["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    keda = one("keda", "ScaledObject")["spec"]
    (trigger,) = keda["triggers"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["query"] == 'sum(tidegate_capacity_utilization{namespace="ml",service="demo-tidegate-headless"})'
    assert trigger["metadata"]["threshold"] == "0.65"
    assert keda["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_a_budget_only_where_there_is_more_than_one() -> None:
    kinds = {scenario: {thing["kind"] for thing in objects(scenario)} for scenario in ("default", "gpu-t4", "keda")}
    assert "PodDisruptionBudget" not in kinds["default"], "it would only keep a node from being drained"
    assert "PodDisruptionBudget" in kinds["gpu-t4"]
    assert "PodDisruptionBudget" in kinds["keda"]


def test_secrets_are_named_never_held_and_readable_by_the_server_alone() -> None:
    assert not [thing for scenario in SCENARIOS for thing in objects(scenario) if thing["kind"] == "Secret"]
    volumes = {volume["name"]: volume for volume in server("ingress-tls")["template"]["spec"]["volumes"]}
    assert volumes["tokens"]["secret"] == {"secretName": "tidegate-tokens", "defaultMode": 0o400}
    assert volumes["tls"]["secret"]["defaultMode"] == 0o400
    settings = next(thing["data"]["server.yaml"] for thing in objects("ingress-tls") if "server.yaml" in thing.get("data", ()))
    assert "token_file: /etc/tidegate-tokens/tokens" in settings
    assert "ca_certs: /etc/tidegate-tls/ca.crt" in settings


def test_replicas_share_a_state_whose_password_is_a_secret() -> None:
    written = next(thing["data"]["server.yaml"] for thing in objects("fleet") if "server.yaml" in thing.get("data", ()))
    settings = yaml.safe_load(written)
    assert settings["state"] == "rediss://tidegate@redis.data.svc:6379/1"
    files = {"password_file": "/etc/tidegate-redis/password", "ca_certs": "/etc/tidegate-redis/ca.crt"}
    assert settings["redis"] == {"prefix": "inference", "timeout": "500ms", **files}
    volumes = {volume["name"]: volume for volume in server("fleet")["template"]["spec"]["volumes"]}
    assert volumes["redis"]["secret"] == {"secretName": "redis-user", "defaultMode": 0o400}
    default = next(thing["data"]["server.yaml"] for thing in objects("default") if "server.yaml" in thing.get("data", ()))
    assert "redis" not in yaml.safe_load(default)


@pytest.mark.parametrize(("scenario", "warned"), [("fleet", False), ("keda", True), ("default", False)])
def test_the_notes_warn_of_replicas_that_share_nothing(scenario: str, warned: bool) -> None:
    notes = run("helm", "install", "demo", SCENARIOS[scenario].parents[1], "--dry-run=client", "-n", "ml", "--values", SCENARIOS[scenario])
    assert ("each replica has a state of its own" in notes.split("NOTES:")[1]) is warned


def test_the_network_policy() -> None:
    policy = one("gateway", "NetworkPolicy", "demo-tidegate")["spec"]
    clients, scrapers = policy["ingress"]
    assert clients["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}]
    assert clients["ports"] == [{"port": "http"}, {"port": "grpc"}]
    assert scrapers["ports"] == [{"port": "metrics"}]
    assert policy["egress"] == [{"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}]
    monitor = one("gateway", "NetworkPolicy", "demo-tidegate-monitor")["spec"]
    (servers,) = monitor["egress"][1]["to"]
    assert servers["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


def test_the_admin_port_is_apart() -> None:
    """A Service of its own, which nothing routes to, and reached by the monitor and those who are named; the token is a must."""
    assert "admin" not in {port["name"] for port in server("default")["template"]["spec"]["containers"][0]["ports"]}
    container = server("everything")["template"]["spec"]["containers"][0]
    assert {"name": "admin", "containerPort": 9003} in container["ports"]
    service = one("everything", "Service", f"{FULL}-admin")
    assert (service["spec"]["type"], service["spec"]["ports"][0]["port"]) == ("ClusterIP", 9003)
    public = one("everything", "Service", FULL)
    assert {port["name"] for port in public["spec"]["ports"]} == {"http", "grpc"}
    routed = [str(thing) for thing in objects("everything") if thing["kind"] in ("Ingress", "HTTPRoute", "GRPCRoute")]
    assert routed
    assert not [each for each in routed if "admin" in each or "9003" in each]
    rules = one("everything", "NetworkPolicy", FULL)["spec"]["ingress"]
    (rule,) = [each for each in rules if each["ports"] == [{"port": "admin"}]]
    monitor, named = rule["from"]
    assert monitor["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "monitor"
    assert named == {"namespaceSelector": {"matchLabels": {"team": "ops"}}}
    settings = next(thing["data"]["server.yaml"] for thing in objects("everything") if "server.yaml" in thing.get("data", ()))
    assert "admin:\n  port: 9003\n  token_file: /etc/tidegate-tokens/file\n" in settings


def test_services_say_their_protocols() -> None:
    ports = {port["name"]: port for port in one("default", "Service", "demo-tidegate")["spec"]["ports"]}
    assert (ports["http"]["appProtocol"], ports["grpc"]["appProtocol"]) == ("http", "kubernetes.io/h2c")
    headless = one("default", "Service", "demo-tidegate-headless")["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)


def test_what_was_changed_outlives_the_pod_on_a_claim_that_has_one_writer() -> None:
    spec = server("canary")
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    claim = one("canary", "PersistentVolumeClaim", "demo-tidegate-state")
    assert (claim["spec"]["accessModes"], claim["metadata"]["annotations"]["helm.sh/resource-policy"]) == (["ReadWriteOnce"], "keep")
    volumes = spec["template"]["spec"]["volumes"]
    assert {"name": "state", "persistentVolumeClaim": {"claimName": "demo-tidegate-state"}} in volumes
    given = objects("canary", "--set", "state.pvc.existingClaim=mine")
    assert "demo-tidegate-state" not in {thing["metadata"]["name"] for thing in given}
    assert "claimName: mine" in text("canary", "--set", "state.pvc.existingClaim=mine")


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "fleet"])
def test_the_state_is_written_where_it_may_be(scenario: str) -> None:
    """Also without a claim: a container that is restarted finds what it left in its pod."""
    settings = yaml.safe_load(next(thing["data"]["server.yaml"] for thing in objects(scenario) if "server.yaml" in thing.get("data", ())))
    container = server(scenario)["template"]["spec"]["containers"][0]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "state"]
    assert settings["state"] == f"{mount['mountPath']}/state.db"
    assert not mount.get("readOnly")


def test_one_monitor_with_a_state_of_its_own() -> None:
    spec = one("default", "Deployment", "demo-tidegate-monitor")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert one("default", "PersistentVolumeClaim", "demo-tidegate-monitor")["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert not [thing for thing in objects("monitor-off") if thing["metadata"]["name"].endswith("-monitor")]


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (
            "default",
            (
                "port-forward service/demo-tidegate 8000:8000",
                "WARNING: anyone who reaches",
                "tells nobody but its log",
                "lost with the pod",
            ),
        ),
        ("everything", ("https://127.0.0.1:8000", "Authorization: Bearer", "8000:80", "service/demo-inference-admin 9003")),
    ],
)
def test_the_notes_tell_how_to_send_the_first_request(scenario: str, said: tuple[str, ...]) -> None:
    notes = run("helm", "install", "demo", SCENARIOS[scenario].parents[1], "--dry-run=client", "-n", "ml", "--values", SCENARIOS[scenario])
    notes = notes.split("NOTES:")[1]
    for line in said:
        assert line in notes
    assert ("WARNING: anyone" in notes) == (scenario == "default")
