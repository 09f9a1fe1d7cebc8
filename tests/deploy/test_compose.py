"""The compose file fits the specification's schema, what it mounts is there, and its Prometheus and Alertmanager take their files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import CHART
from tests.tools import NODE_MODULES, fetch, run

ROOT = CHART.parents[1]
COMPOSE = ROOT / "compose"


@pytest.fixture(scope="module")
def composed() -> Any:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def test_it_fits_the_specification(composed: Any) -> None:
    fetch()
    schema = json.loads((NODE_MODULES / "dclint" / "schemas" / "compose.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(composed)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**composed, "services": {"tidegate": {"imagine": "tidegate:cpu"}}})


def test_what_is_mounted_is_there(composed: Any) -> None:
    volumes = [each.removesuffix(":ro") for service in composed["services"].values() for each in service["volumes"]]
    mounts = [re.fullmatch(r"(.*):/[\w/.-]+", each)[1] for each in volumes]  # type: ignore[index]
    files = [each for each in mounts if each.startswith(".")]
    assert len(files) >= 6
    assert [each for each in files if not (COMPOSE / each).exists()] == []
    assert {each for each in mounts if re.fullmatch(r"\w+", each)} == set(composed["volumes"])


def test_everything_listens_on_loopback_only_and_is_locked_and_pinned(composed: Any) -> None:
    for name, service in composed["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert re.search(r":(v?[0-9]+\.[0-9.]+|cpu)$", service["image"]), name
        assert set(service.get("depends_on", ())) <= set(composed["services"])


def test_prometheus_and_alertmanager_take_their_files(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "prometheus.yaml", tmp_path)
    shutil.copy(CHART / "files" / "rules.yaml", tmp_path)
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yaml")
    assert "SUCCESS" in run("amtool", "check-config", CHART / "files" / "alertmanager.yaml")


def test_grafana_finds_its_source_and_the_dashboards(composed: Any) -> None:
    (source,) = yaml.safe_load((COMPOSE / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((COMPOSE / "grafana/dashboards/tidegate.yaml").read_text())["providers"]
    mounts = " ".join(composed["services"]["grafana"]["volumes"])
    assert f"../helm/tidegate/files/dashboards:{provider['options']['path']}:ro" in mounts
    assert len(list((CHART / "files" / "dashboards").glob("*.json"))) == 4
