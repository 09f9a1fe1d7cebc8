"""What the demo of alerts is made of: load on a model, a webhook that notes what it's told, and a Prometheus that is asked what fires."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from examples.prepare import ROOT

ALERT = "InferenceLatency"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}).encode()


class TooLateError(Exception):
    """What should have happened didn't, in time."""


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Ask until it holds. Raises TooLateError with `what`."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            raise TooLateError(f"not within {seconds:g} s: {what}; the logs are in build/alerts/")
        time.sleep(0.1)


@contextmanager
def load(url: str, clients: int) -> Iterator[None]:
    """So many clients, each asking again as soon as it has its answer, until the block ends."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            request = urllib.request.Request(url, BODY, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def child(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to `log`; it's asked to stop when the block ends."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Webhook:
    """Listens on a free port of loopback. `bodies` are what it was told, `told` when."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.told: list[float] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                webhook.told.append(time.monotonic())
                webhook.bodies.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def at(self, status: str) -> float | None:
        """When it was first told that an alert is firing or resolved."""
        return next((when for when, body in zip(self.told, self.bodies, strict=False) if body["status"] == status), None)

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class PrometheusProcess:
    """A Prometheus that scrapes the server and judges rendered.yaml each second; a thread notes when the alert fires and ends there."""

    def __init__(self, folder: Path, target: str) -> None:
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        jobs = [{"job_name": "tidegate", "static_configs": [{"targets": [target]}]}]
        self._config = folder / "prometheus.json"
        self._config.write_text(json.dumps({"global": every, "rule_files": ["rendered.yaml"], "scrape_configs": jobs}))
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.started = time.monotonic()
        self.fired: float | None = None
        self.ended: float | None = None

    def scraped(self) -> bool:
        """Whether it has read the server's metrics."""
        found = self._get("/api/v1/query?query=tidegate_model_ready")
        return bool(found and found["data"]["result"])

    def __enter__(self) -> PrometheusProcess:
        binary = ROOT / ".tools" / "bin" / "prometheus"
        flags = (f"--config.file={self._config}", f"--storage.tsdb.path={self._folder / 'tsdb'}", f"--web.listen-address={self._address}")
        self._running = child([str(binary), *flags], self._folder / "prometheus.log")
        self._running.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._running.__exit__(kind, error, trace)

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            firing = self._firing()
            if firing and self.fired is None:
                self.fired = time.monotonic()
            elif firing is False and self.fired is not None and self.ended is None:
                self.ended = time.monotonic()

    def _firing(self) -> bool | None:
        answer = self._get("/api/v1/alerts")
        if answer is None:
            return None
        return any(alert["state"] == "firing" and alert["labels"]["alertname"] == ALERT for alert in answer["data"]["alerts"])

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None
