import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from server.errors import ConfigError
from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import CATALOGUE, MODEL_LABELS, OFFERED_ROWS, OUTCOMES, PHASES
from server.metrics.exposition import MAX_CONNECTIONS, MAX_HEAD, MetricsServer, Sources
from server.metrics.figures import MAX_LANES
from server.metrics.recorder import MAX_KEYS, Recorder

KEY = ModelKey("digits", "1", "fp32")
DIGITS = {"model": "digits", "version": "1", "precision": "fp32"}


class Scraped:
    """A server on a free port, and what its probes say."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.live = self.ready = True
        self.server = MetricsServer("127.0.0.1", 0, Sources(self.recorder), live=lambda: self.live, ready=lambda: self.ready)
        self.server.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=20)

    def text(self) -> str:
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        return answer.text

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parse_text(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, tuple(sorted(labels.items()))]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    made = Scraped()
    yield made
    made.client.close()
    made.server.close()


def batch(reason: str = "idle", lane: str = "digits/1/0", length: int = 1) -> BatchFacts:
    return BatchFacts(8, 4, reason, "fp32", lane, cut=1.0, started=1.5, finished=2.0, length=length, padding=0.25)


def test_figures_become_families(scraped: Scraped) -> None:
    figures = scraped.recorder.figures(KEY)
    figures.batch(batch(), 0.001, 0.002)
    for seconds in (0.15, 0.2, 0.3):
        figures.answered(seconds, 0.01, 0.0001, 0.0002)
    figures.failed("overloaded")
    scraped.recorder.unrouted("not_found")
    name = "tidegate_request_duration_seconds"
    assert scraped.value(f"{name}_bucket", **DIGITS, le="0.1") == 0
    assert scraped.value(f"{name}_bucket", **DIGITS, le="0.2") == 2
    assert scraped.value(f"{name}_bucket", **DIGITS, le="+Inf") == 3
    assert scraped.value(f"{name}_count", **DIGITS) == 3
    assert scraped.value(f"{name}_sum", **DIGITS) == pytest.approx(0.65)
    assert scraped.value("tidegate_phase_duration_seconds_sum", **DIGITS, phase="compute") == 2.0
    assert scraped.value("tidegate_phase_duration_seconds_count", **DIGITS, phase="queue") == 3
    assert scraped.value("tidegate_requests_total", **DIGITS, outcome="success", reason="") == 3
    assert scraped.value("tidegate_requests_total", **DIGITS, outcome="rejected", reason="overloaded") == 1
    assert scraped.value("tidegate_requests_total", **DIGITS, outcome="failed", reason="backend") == 0
    unknown = {"model": "", "version": "", "precision": "", "outcome": "refused", "reason": "not_found"}
    assert scraped.value("tidegate_requests_total", **unknown) == 1
    assert scraped.value("tidegate_batches_total", **DIGITS, reason="idle") == 1
    assert scraped.value("tidegate_batch_rows_bucket", **DIGITS, le="8.0") == 1
    assert scraped.value("tidegate_batch_rows_bucket", **DIGITS, le="4.0") == 0
    assert scraped.value("tidegate_rows_total", **DIGITS) == 8
    assert scraped.value("tidegate_lane_busy_seconds_total", **DIGITS, lane="digits/1/0") == 0.5


def test_gauges_are_read_at_each_scrape_and_one_that_fails_hides_no_other(scraped: Scraped, caplog: pytest.LogCaptureFixture) -> None:
    rows = [5.0]
    scraped.recorder.gauge("tidegate_queue_rows", {"model": "digits", "version": "1"}, lambda: rows[-1])
    scraped.recorder.gauge("tidegate_inflight_bytes", {}, lambda: 1 / 0)
    scraped.recorder.gauge("tidegate_log_lines_dropped_total", {}, lambda: 7)
    assert scraped.value("tidegate_queue_rows", model="digits", version="1") == 5
    rows.append(2.0)
    assert scraped.value("tidegate_queue_rows", model="digits", version="1") == 2
    assert scraped.value("tidegate_log_lines_dropped_total") == 7
    assert "tidegate_inflight_bytes" not in scraped.text()
    assert "no value for metric tidegate_inflight_bytes" in caplog.text


def test_label_values_are_escaped(scraped: Scraped) -> None:
    key = ModelKey('a"b\\c\nd', "1", "fp32")
    scraped.recorder.figures(key).failed("invalid")
    labels = {"model": key.name, "version": "1", "precision": "fp32", "outcome": "refused", "reason": "invalid"}
    assert scraped.value("tidegate_requests_total", **labels) == 1


def test_everything_shown_is_in_the_catalogue(scraped: Scraped) -> None:
    scraped.recorder.figures(KEY).batch(batch(), 0.0, 0.0)
    for family in parse_text(scraped.text()):
        if family.name.startswith("nv_"):
            continue  # Triton's own names: test_triton
        name = f"{family.name}_total" if family.type == "counter" else family.name
        metric = CATALOGUE[name]
        assert family.type == metric.kind
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)


def test_series_are_bounded(scraped: Scraped) -> None:
    for index in range(2 * MAX_KEYS):
        key = ModelKey(f"m{index}", "1", "fp32")
        figures = scraped.recorder.figures(key)
        figures.answered(0.1, 0.1, 0.1, 0.1)
        for lane in range(2 * MAX_LANES):
            figures.batch(batch(lane=f"{lane}"), 0.0, 0.0)
        for reason in ("idle", "full", "deadline", "hold", "shape", "planned", "preferred"):
            figures.batch(batch(reason, length=32), 0.0, 0.0)
        for reason in OUTCOMES:
            figures.failed(reason)
            scraped.recorder.unrouted(reason)
            scraped.recorder.tenant(f"t{index}", reason)
        labels = dict(zip(MODEL_LABELS, key, strict=True))
        for metric in CATALOGUE.values():
            if (metric.labels and labels.keys() >= set(metric.labels) and metric.kind == "gauge") or metric == OFFERED_ROWS:
                scraped.recorder.gauge(metric.name, {label: labels[label] for label in metric.labels}, lambda: 1.0)
    assert len(scraped.samples()) <= 5000


def test_openmetrics_by_accept(scraped: Scraped) -> None:
    scraped.recorder.figures(KEY).answered(0.1, 0.1, 0.1, 0.1)
    plain = scraped.client.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    answer = scraped.client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    phases = {
        sample.labels["phase"]
        for family in parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if family.name == "tidegate_phase_duration_seconds"
    }
    assert phases == {*PHASES}


def test_health(scraped: Scraped) -> None:
    def health(name: str) -> tuple[int, object]:
        answer = scraped.client.get(f"/v2/health/{name}")
        return answer.status_code, answer.json()

    assert (health("live"), health("ready")) == ((200, {"live": True}), (200, {"ready": True}))
    scraped.ready = False
    assert (health("live"), health("ready")) == ((200, {"live": True}), (503, {"ready": False}))
    scraped.live = False
    assert health("live") == (503, {"live": False})


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/", 404, "Not Found"),
        ("GET", "/metrics/", 404, "Not Found"),
        ("GET", "/v2/models/digits/infer", 404, "Not Found"),
        ("POST", "/metrics", 405, "Method Not Allowed"),
        ("DELETE", "/v2/health/live", 405, "Method Not Allowed"),
    ],
)
def test_anything_else_is_an_error_with_a_body(scraped: Scraped, method: str, path: str, status: int, text: str) -> None:
    answer = scraped.client.request(method, path, content=b"ignored" if method == "POST" else None)
    assert (answer.status_code, answer.json()) == (status, {"error": text})
    assert ("allow" in answer.headers) == (status == 405)
    assert scraped.client.get("/metrics?name=x").status_code == 200


def test_head_has_no_body(scraped: Scraped) -> None:
    answer = scraped.client.head("/v2/health/live")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "13")


def test_a_connection_serves_many_scrapes(scraped: Scraped) -> None:
    with scraped.connect() as wire:
        wire.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n" * 3)
        wire.sendall(b"GET /v2/health/ready HTTP/1.1\r\nconnection: close\r\n\r\n")
        with wire.makefile("rb") as stream:
            text = stream.read()
    assert text.count(b"HTTP/1.1 200 OK") == 4
    assert text.count(b"connection: close") == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET metrics HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD,
        b"GET /" + b"x" * MAX_HEAD * 2,
    ],
    ids=lambda junk: junk[:20],
)
def test_junk_ends_its_connection_and_nothing_else(scraped: Scraped, junk: bytes) -> None:
    with scraped.connect() as wire:
        try:
            wire.sendall(junk)
            wire.shutdown(socket.SHUT_WR)
            text = wire.recv(1000)
        except OSError:
            text = b""
    assert text == b"" or text.startswith(b"HTTP/1.1 400 Bad Request")
    assert scraped.client.get("/v2/health/live").status_code == 200


def test_clients_that_stall_stop_nobody(scraped: Scraped) -> None:
    for index in range(MAX_KEYS):  # an answer larger than socket buffers keep
        scraped.recorder.figures(ModelKey("m" * 200 + str(index), "1", "fp32")).failed("invalid")
    with ExitStack() as stack:
        for index in range(3 * MAX_CONNECTIONS):
            wire = stack.enter_context(scraped.connect())
            if index % 3 == 1:
                wire.sendall(b"GET /metr")
            elif index % 48 == 2:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                wire.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert scraped.client.get("/v2/health/live").status_code == 200
        assert "tidegate_requests_total" in scraped.text()


def test_a_port_in_use_is_told(scraped: Scraped) -> None:
    second = MetricsServer("127.0.0.1", scraped.server.port, Sources(Recorder()), live=lambda: True, ready=lambda: True)
    with pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1:\d+ for metrics.*--metrics-port"):
        second.start()
    second.close()
    with pytest.raises(ConfigError, match="can't listen on no such host"):
        MetricsServer("no such host", 0, Sources(Recorder()), live=lambda: True, ready=lambda: True).start()


def test_close_frees_the_port_and_cuts_connections(scraped: Scraped) -> None:
    with scraped.connect() as wire:
        wire.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        assert wire.recv(1000).startswith(b"HTTP/1.1 200 OK")
        scraped.server.close()
        try:
            rest = wire.recv(1000)
        except ConnectionError:
            rest = b""
        assert rest == b""
    scraped.server.close()
    again = MetricsServer("127.0.0.1", scraped.server.port, Sources(Recorder()), live=lambda: True, ready=lambda: True)
    again.start()
    again.close()
