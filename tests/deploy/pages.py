"""What is generated for the chart: `make render` writes it, a test compares it. values.yaml is the source, with the server's and the
monitor's own settings: the chart's schema takes under server.config and monitor.config just what those take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from monitor.render.grafana.dashboards import BOARDS
from monitor.render.helm import chart_files
from monitor.rules.build import read_rules, rules_schema
from server.config import settings_schema

CHART = Path(__file__).resolve().parents[2] / "helm" / "tidegate"

SET_BY_THE_CHART = ("host", "http_port", "grpc_port", "metrics_port", "repository", "drain_delay", "drain_timeout", "tls", "admin", "state")
"""Settings of the server that the chart derives from values of its own; giving them twice could only disagree."""
MONITORS_OWN = ("state", "listen")

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_ANY = {"type": "object"}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_WORDS = {"type": "array", "items": {"type": "string"}}
_BOUND: Mapping[str, Any] = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}
_SCALING = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
        "policies": _OBJECTS,
    },
}
_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"type": "object", "additionalProperties": {"type": ["string", "number"]}} for name in ("requests", "limits")},
}

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "server.strategy": _ANY,
    "server.affinity": _ANY,
    "server.podDisruptionBudget.maxUnavailable": _BOUND,
    "models.claim.accessModes": {
        "type": "array",
        "items": {"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]},
    },
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "admin.port": {"type": "integer", "minimum": 1024, "maximum": 65535, "not": {"enum": [8000, 8001, 8002]}},
    "autoscaling.kind": {"enum": ["none", "hpa", "keda"]},
    "autoscaling.minReplicas": {"type": "integer", "minimum": 1},
    "autoscaling.maxReplicas": {"type": "integer", "minimum": 1},
    "autoscaling.scaleUp": _SCALING,
    "autoscaling.scaleDown": _SCALING,
    "autoscaling.keda.target": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "autoscaling.hpa.cpuUtilization": {"type": "integer", "minimum": 1, "maximum": 100},
    "server.gpu.count": {"type": "integer", "minimum": 1},
    "server.probes.startupSeconds": {"type": "integer", "minimum": 5},
    "server.probes.readinessSeconds": {"type": "integer", "minimum": 1},
    "state.redis.url": {"type": "string", "pattern": r"^(rediss?://[^\s]+)?$"},
    "metrics.serviceMonitor.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
}
"""Path → its schema, where the default doesn't say enough."""

# What ends a path and is never listed key by key: maps whose keys are the user's, and lists.
ENDS: Mapping[str, Mapping[str, Any]] = {
    "nodeSelector": _TEXTS,
    "podAnnotations": _TEXTS,
    "podLabels": _TEXTS,
    "annotations": _TEXTS,
    "labels": _TEXTS,
    "commonLabels": _TEXTS,
    "resources": _RESOURCES,
    "command": _WORDS,
    "args": _WORDS,
    "hostnames": _WORDS,
}


def schema() -> str:
    """values.schema.json: strict, so that a value that nothing reads is an error."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    definitions: dict[str, Any] = {}
    made = _of("", values, dict(comments()), definitions)
    made["properties"]["global"] = {"type": "object", "description": "Helm's own, where this chart is part of another."}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart tidegate"}
    return json.dumps({**head, **made, "definitions": definitions}, indent=1, ensure_ascii=False) + "\n"


def comments() -> Iterator[tuple[str, str]]:
    """Each value's path and its comment, in the file's order."""
    above: list[tuple[int, str]] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        found = re.fullmatch(r"( *)(\w+):(?: .*?)?(?: # (.*))?", line)
        if found is None:
            assert not line.strip() or line.startswith("#"), f"values.yaml: {line!r} isn't `key: value # comment`"
            continue
        indent = len(found[1])
        above = [(depth, key) for depth, key in above if depth < indent]
        above.append((indent, found[2]))
        yield ".".join(key for _, key in above), found[3] or ""


def _of(path: str, value: Any, said: Mapping[str, str], definitions: dict[str, Any]) -> dict[str, Any]:
    description = {"description": said[path]} if said.get(path) else {}
    name = path.rpartition(".")[2]
    if path in ("server.config", "monitor.config"):
        return {**description, **_settings(path.partition(".")[0], definitions)}
    if path in SPECIAL or name in ENDS:
        return {**description, **(SPECIAL.get(path) or ENDS[name])}
    if isinstance(value, dict):
        properties = {key: _of(f"{path}.{key}".lstrip("."), inner, said, definitions) for key, inner in value.items()}
        return {**description, "type": "object", "additionalProperties": False, "properties": properties}
    return {**description, **_plain(value)}


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": 0}
    if isinstance(value, str):
        return {"type": "string"}
    assert isinstance(value, list), f"values.yaml: no schema for {value!r}"
    return _OBJECTS


def _settings(whose: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of the server's or the monitor's file, its definitions under names of their own."""
    found, excluded = {"server": (settings_schema, SET_BY_THE_CHART), "monitor": (rules_schema, MONITORS_OWN)}[whose]
    text = json.dumps(found()).replace("#/$defs/", f"#/definitions/{whose}.")
    whole = json.loads(text)
    definitions |= {f"{whose}.{name}": definition for name, definition in whole["$defs"].items()}
    properties = {key: value for key, value in whole["properties"].items() if key not in excluded}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def readme() -> str:
    """The chart's README: its text, and every value with its default."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = [f"| `{path}` | {_default(values, path)} | {said} |" for path, said in comments() if said]
    text = (CHART / "README.md").read_text()
    begin, end = "<!-- values: written by make render -->", "<!-- /values -->"
    table = "\n".join(["| Value | Default | What it is |", "| --- | --- | --- |", *rows])
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def _default(values: Any, path: str) -> str:
    for key in path.split("."):
        values = values[key]
    nested = isinstance(values, dict) and any(other.startswith(f"{path}.") for other, _ in comments())
    return "" if nested or values == "" else f"`{json.dumps(values)}`"


def rendered() -> dict[str, str]:
    """files/ of the chart, from files/monitor.yaml."""
    return chart_files(read_rules(CHART / "files" / "monitor.yaml"))


FILES = ("rules.yaml", "alertmanager.yaml", *(f"dashboards/{board.uid}.json" for board in BOARDS))
PAGES: Mapping[Path, Callable[[], str]] = {
    CHART / "values.schema.json": schema,
    CHART / "README.md": readme,
    **{CHART / "files" / name: lambda name=name: rendered()[name] for name in FILES},  # type: ignore[misc]
}
"""File → what it should hold."""


if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text())
