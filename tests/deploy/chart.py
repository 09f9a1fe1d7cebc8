"""The chart as Kubernetes would get it: a scenario's values in, objects out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.tools import run

CHART = Path(__file__).resolve().parents[2] / "helm" / "tidegate"
SCENARIOS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
Object: TypeAlias = dict[str, Any]


@cache
def text(scenario: str, *flags: str) -> str:
    return run("helm", "template", "demo", CHART, "--namespace", "ml", "--values", SCENARIOS[scenario], *flags)


def objects(scenario: str, *flags: str) -> list[Object]:
    """Every object of a scenario."""
    return [found for found in yaml.safe_load_all(text(scenario, *flags)) if found]


def one(scenario: str, kind: str, name: str | None = None, *flags: str) -> Object:
    """The only object of that kind, and of that name."""
    found = [thing for thing in objects(scenario, *flags) if thing["kind"] == kind and name in (None, thing["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''} in {scenario}"
    return found[0]


def pods(scenario: str) -> Iterator[tuple[str, Object]]:
    """Every pod that a scenario makes: its maker's kind and name, and its template."""
    for thing in objects(scenario):
        if thing["kind"] in ("Deployment", "Job", "StatefulSet", "DaemonSet"):
            yield f"{thing['kind']} {thing['metadata']['name']}", thing["spec"]["template"]


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]
