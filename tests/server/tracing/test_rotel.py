"""Traces of real requests, by both edges, as an independent OTLP receiver (rotel) prints them."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest
import rotel
import tritonclient.grpc as stock_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from server.app import App
from tests.server.models import identity_model
from tests.server.running import in_thread

AGENT = Path(rotel.__file__).with_name("rotel-agent")
TRACE, SPAN = "ab" * 16, "cd" * 8
PHASES = ["decode", "queue", "gather", "compute", "scatter", "encode"]


@dataclass
class Collector:
    """A running rotel; `output` is where it prints what it gets."""

    endpoint: str
    output: Path

    def spans(self, at_least: int) -> list[dict[str, Any]]:
        """The spans that came, once there are so many."""
        end = monotonic() + 30
        while True:
            found = [_span(block) for block in re.split(r"^Span #\d+$", self.output.read_text(), flags=re.MULTILINE)[1:]]
            if len(found) >= at_least:
                return found
            assert monotonic() < end, self.output.read_text()
            sleep(0.02)


def _span(block: str) -> dict[str, Any]:
    facts = dict(re.findall(r"^ *([A-Z][A-Za-z ]*?) *: (.*)$", block, re.MULTILINE))
    attributes = dict(re.findall(r"^ +-> ([\w.]+): \w+\((.*)\)$", block, re.MULTILINE))
    return {**facts, "begin": int(facts["Start time"]), "end": int(facts["End time"]), "attributes": attributes}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    http, grpc = free_port(), free_port()
    output = tmp_path / "rotel.txt"
    command = [str(AGENT), "start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            end = monotonic() + 30
            while not listening(http):
                assert monotonic() < end and process.poll() is None, output.read_text()  # noqa: PT018
                sleep(0.02)
            yield Collector(f"http://127.0.0.1:{http}", output)
        finally:
            process.terminate()


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def infer(app: App, width: int = 16, traceparent: str = "") -> httpx.Response:
    body = {"id": "r1", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, width], "data": [0.5] * 2 * width}]}
    return httpx.post(
        f"http://{app.addresses.http}/v2/models/echo/infer", json=body, headers={"traceparent": traceparent} if traceparent else {}
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    identity_model(tmp_path / "models" / "echo" / "1" / "model.onnx")
    return tmp_path / "models"


def test_spans_of_a_request_and_its_phases(repository: Path, collector: Collector) -> None:
    with in_thread(repository, grpc_port=0, tracing={"endpoint": collector.endpoint, "sample": 1.0}) as app:
        assert infer(app, traceparent=f"00-{TRACE}-{SPAN}-01").status_code == 200
        assert infer(app, traceparent=f"00-{TRACE}-{SPAN}-00").status_code == 200  # its caller isn't traced: nor is it
        assert infer(app, width=3).status_code == 400
        x = stock_grpc.InferInput("x", [1, 16], "FP32")
        x.set_data_from_numpy(np.ones((1, 16), np.float32))
        with stock_grpc.InferenceServerClient(app.addresses.grpc) as client:
            client.infer("echo", [x], headers={"traceparent": f"00-{'12' * 16}-{SPAN}-01"})
        metrics = httpx.get(f"http://{app.addresses.metrics}/metrics", headers={"accept": "application/openmetrics-text"}).text
    spans = collector.spans(7 + 3 + 7)
    assert len(spans) == 17
    ours = [span for span in spans if span["Trace ID"] == TRACE]
    root = ours[0]
    assert (root["Name"], root["Kind"], root["Parent ID"], root["Status code"]) == (
        "infer echo",
        "SPAN_KIND_SERVER",
        SPAN,
        "STATUS_CODE_UNSET",
    )
    assert [span["Name"] for span in ours[1:]] == PHASES
    assert {span["Parent ID"] for span in ours[1:]} == {root["ID"]}
    assert all(root["begin"] <= span["begin"] <= span["end"] <= root["end"] + 1000 for span in ours)
    assert [span["begin"] for span in ours[1:]] == sorted(span["begin"] for span in ours[1:])
    expected = {"model": "echo", "version": "1", "precision": "fp32", "rows": "2", "batch_rows": "2", "request_id": "r1"}
    assert expected.items() <= {name.removeprefix("tidegate."): value for name, value in root["attributes"].items()}.items()
    (failed,) = [span for span in spans if span["Status code"] == "STATUS_CODE_ERROR"]
    assert (failed["attributes"]["error.type"], failed["Parent ID"]) == ("invalid", "")
    assert "unexpected shape" in failed["Status message"]
    assert sum(span["Trace ID"] == "12" * 16 for span in spans) == 7
    exemplars = [
        sample.exemplar
        for family in parse_openmetrics(metrics)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if family.name == "tidegate_request_duration_seconds" and sample.exemplar is not None
    ]
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= {TRACE, "12" * 16}
    assert exemplars


def test_a_collector_that_is_not_there_costs_no_request(repository: Path) -> None:
    with in_thread(repository, tracing={"endpoint": f"http://127.0.0.1:{free_port()}", "sample": 1.0}) as app:
        assert infer(app).status_code == 200
        sender = app.dials.sender
    assert sender is not None
    assert sender.dropped == 1
