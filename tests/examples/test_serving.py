"""A server as a child process: what starts, what doesn't, and how it ends."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from examples.serving import LOG_LINES, ServerError, ServerProcess, free_port, server_environment
from tests.server.models import place

READY = 'import json, signal, sys, time; print(json.dumps({"event": "ready", "http": "h"}), flush=True); '


def python(code: str, log: Path) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", code], log)


def test_a_real_server(tmp_path: Path) -> None:
    place(tmp_path / "models", "linear")
    command = [
        sys.executable,
        "-m",
        "tidegate",
        "serve",
        "--repository",
        str(tmp_path / "models"),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    server = ServerProcess(command, tmp_path / "logs" / "server.log")
    with server:
        assert server.ready["models"] == {"linear": "READY"}
        with urllib.request.urlopen(f"http://{server.ready['http']}/v2/health/ready") as answer:
            assert answer.status == 200
        assert os.getpgid(server.pid) == server.pid, "Ctrl-C on the terminal isn't for it"
    assert server.stop() == 0
    assert '"event":"stopped"' in server.log.read_text()


def test_one_that_ends_before_it_is_ready(tmp_path: Path) -> None:
    code = f"import sys; sys.stderr.write(''.join(f'line {{n}}\\n' for n in range({LOG_LINES + 5}))); print('{{}}'); sys.exit(3)"
    with pytest.raises(ServerError) as caught:
        python(code, tmp_path / "log").start()
    assert "the server ended with status 3 before it was ready" in str(caught.value)
    assert "    line 5\n" in str(caught.value)
    assert "    line 4\n" not in str(caught.value)


def test_one_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    server = python("import time; print('no JSON'); print('[1]', flush=True); time.sleep(600)", tmp_path / "log")
    with pytest.raises(ServerError, match=r"wasn't ready within 0\.3 s"):
        server.start(timeout=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_one_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    server = python(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY} time.sleep(600)", tmp_path / "log")
    assert server.start() == {"event": "ready", "http": "h"}
    with pytest.raises(ServerError, match=r"didn't stop within 0\.3 s of SIGTERM and was killed"):
        server.stop(timeout=0.3)


def test_its_exit_status(tmp_path: Path) -> None:
    server = python(f"{READY} sys.exit(7)", tmp_path / "log")
    server.start()
    assert server.wait() == server.stop() == 7
    assert ServerProcess(["never started"], tmp_path / "log").stop() == 0


def test_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS", "/weights")
    monkeypatch.setenv("TIDEGATE_LOG_LEVEL", "warning")
    found = server_environment()
    assert "TIDEGATE_MODELS" not in found
    assert (found["TIDEGATE_LOG_LEVEL"], found["TIDEGATE_DRAIN_DELAY"]) == ("warning", "0")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) == 0
    assert free_port(port) == port
