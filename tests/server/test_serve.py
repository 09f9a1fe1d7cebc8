"""`tidegate serve` as a process: the ready line, models that can't be served, signals, and errors before it listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest

from tests.server.models import identity_model
from tests.server.running import json_body

COMMAND = (sys.executable, "-m", "tidegate", "serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
ROWS = np.ones((1, 16), np.float32)


@contextmanager
def serving(repository: Path, *flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and its ready line. The block's end kills it if it still runs."""
    command = [*COMMAND, "--repository", str(repository), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, _rest(process.stderr)
            yield process, json.loads(line)
        finally:
            process.kill()


def _rest(stream: IO[str] | None) -> str:
    return stream.read() if stream is not None else ""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    identity_model(tmp_path / "identity" / "1" / "model.onnx")
    return tmp_path


def test_ready_line_answers_and_sigterm(repository: Path) -> None:
    (repository / "corrupt" / "1").mkdir(parents=True)
    (repository / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    with serving(repository, TIDEGATE_DRAIN_DELAY="0s", TIDEGATE_READY_WHEN="any") as (process, line):
        assert line["event"] == "ready"
        assert line["models"] == {"corrupt": "UNAVAILABLE", "identity": "READY"}
        url = f"http://{line['http']}"
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert httpx.get(f"http://{line['metrics']}/metrics").status_code == 200
        answer = httpx.post(f"{url}/v2/models/identity/infer", content=json_body(ROWS))
        assert answer.json()["outputs"][0]["data"] == [1.0] * 16
        refused = httpx.post(f"{url}/v2/models/corrupt/infer", content=json_body(ROWS))
        assert refused.status_code == 503
        assert "model.onnx" in refused.json()["error"]
        index = {row["name"]: row for row in httpx.post(f"{url}/v2/repository/index").json()}
        assert (index["identity"]["state"], index["corrupt"]["state"]) == ("READY", "UNAVAILABLE")
        assert "model.onnx" in index["corrupt"]["reason"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_not_ready_but_accepting_while_it_drains(repository: Path) -> None:
    with serving(repository, TIDEGATE_DRAIN_DELAY="30s") as (process, line):
        url = f"http://{line['http']}"
        process.send_signal(signal.SIGTERM)
        with httpx.Client() as client:
            while client.get(f"{url}/v2/health/ready").status_code == 200:
                pass
            assert httpx.get(f"http://{line['metrics']}/v2/health/ready").status_code == 503
            assert client.post(f"{url}/v2/models/identity/infer", content=json_body(ROWS)).status_code == 200
        process.send_signal(signal.SIGTERM)  # a second signal ends the wait
        assert process.wait(20) == 0


def test_a_port_in_use(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = _failed("--repository", str(repository), "--http-port", port)
    assert f"127.0.0.1:{port}" in ran.stderr
    assert "--http-port" in ran.stderr


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere" in _failed("--repository", str(tmp_path / "nowhere")).stderr


def test_a_wrong_setting_names_its_line(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"repository: {repository}\nlimit: {{max_body: 1MiB}}\n")
    ran = _failed("--config", str(file))
    assert f"{file}:2" in ran.stderr
    assert "limits" in ran.stderr


def _failed(*flags: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    return ran
