"""`tidegate canary` and `tidegate experiment` against a running server, and a log that is analysed without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server.commands.routing.canary import app as canary
from server.commands.routing.experiment import app as experiment
from tests.server.models import place_versions
from tests.server.running import in_thread

RUN = CliRunner()
BODY = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}]}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yaml = 'versions: {policy: all}\nrouting: {weights: {"1": 100}}\nbatching: {latency_objective: 50ms}\n'
    place_versions(tmp_path / "models", "m", [1, 2], yaml)
    with in_thread(tmp_path / "models") as served:
        yield f"http://{served.addresses.http}"


def test_a_canary_is_begun_held_shown_and_aborted(url: str) -> None:
    begun = RUN.invoke(canary, ["start", "m", "2", "--steps", "5,100", "--guard", "errors=0.02", "--min-samples", "7", "--url", url])
    assert begun.exit_code == 0, begun.output
    assert "version 2 against version 1" in begun.output
    assert "running: 5 % of the requests, step 1 of 2" in begun.output
    assert "paused" in RUN.invoke(canary, ["pause", "m", "--url", url]).output
    assert "running" in RUN.invoke(canary, ["resume", "m", "--url", url]).output
    assert '"min_samples":7' in RUN.invoke(canary, ["status", "m", "--json", "--url", url]).output
    aborted = RUN.invoke(canary, ["abort", "m", "--url", url]).output
    assert "aborted after" in aborted
    assert "asked for through the admin API" in aborted
    again = ["start", "m", "2", "--url", url]
    assert "errors" in RUN.invoke(canary, [*again, "--json"]).output
    assert "promoted" in RUN.invoke(canary, ["promote", "m", "--full", "--url", url]).output


def test_what_is_wrong_is_said(url: str) -> None:
    assert "percentages such as" in RUN.invoke(canary, ["start", "m", "2", "--steps", "a,b", "--url", url]).output
    assert "METRIC=MARGIN" in RUN.invoke(canary, ["start", "m", "2", "--guard", "errors=x", "--url", url]).output
    assert "status 404" in str(RUN.invoke(canary, ["status", "m", "--url", url]).exception)
    assert "unknown metric" in str(RUN.invoke(canary, ["start", "m", "2", "--guard", "eror", "--url", url]).exception)


def test_an_experiment_is_shown_and_its_log_says_the_same_without_a_server(url: str, tmp_path: Path) -> None:
    begun = RUN.invoke(experiment, ["start", "m", "2", "--share", "40", "--metric", "errors", "--url", url])
    assert begun.exit_code == 0, begun.output
    with httpx.Client(base_url=url) as client:
        said = client.get("/admin/models/m/experiment").json()
        for _ in range(60):
            assert client.post("/v2/models/m/infer", json=BODY).status_code == 200
        while sum(client.get("/admin/models/m/experiment").json().get("exposures", {}).values()) < 60:
            pass
        seen = client.get("/admin/models/m/experiment").json()
    shown = RUN.invoke(experiment, ["show", said["id"], "--url", url])
    assert f"experiment {said['id']} of m" in shown.output
    assert "40 % of the requests" in shown.output
    assert "undecided" in shown.output
    assert said["id"] in RUN.invoke(experiment, ["show", "m", "--url", url]).output
    file = tmp_path / "log.jsonl"
    file.write_text(RUN.invoke(experiment, ["log", said["id"], "--url", url]).output)
    again = RUN.invoke(experiment, ["analyse", str(file), "--json"])
    assert again.exit_code == 0, again.output
    assert f'"exposures":{{"baseline":{seen["exposures"]["baseline"]},"canary":{seen["exposures"]["canary"]}}}' in again.output
    assert "analysed again after" in RUN.invoke(experiment, ["analyse", str(file), "--alpha", "0.1", "--metric", "errors=0.5"]).output
    assert "stopped" in RUN.invoke(experiment, ["stop", "m", "--url", url]).output
    file.write_text(file.read_text() + "{}\n")
    assert f"{file}:" in str(RUN.invoke(experiment, ["analyse", str(file)]).exception)
    assert "can't be read" in str(RUN.invoke(experiment, ["analyse", str(tmp_path / "none")]).exception)
