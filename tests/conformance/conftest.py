"""One server for the suite, and a process with a stock client for each transport."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from server.app import App
from server.tensors import DTYPES
from tests.conformance.regions import TRANSPORTS
from tests.conformance.transports import Call, Http
from tests.server.models import identity_model, linear_model, place_with_manifest, two_inputs_model
from tests.server.running import in_thread

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """echo_DATATYPE [N,W] for every datatype, pair and spare (a + b and a * b), linear in two versions, one with a
    manifest, a corrupt one."""
    root = tmp_path_factory.mktemp("conformance")
    for datatype in DTYPES:
        identity_model(root / f"echo_{datatype}" / "1" / "model.onnx", datatype, "W")
    for name in ("pair", "spare"):
        two_inputs_model(root / name / "1" / "model.onnx")
    for version in ("1", "3"):
        linear_model(root / "linear" / version / "model.onnx", seed=int(version))
    (root / "linear" / "model.yaml").write_text("versions: {policy: all}\nbatching: {max_rows: 8}\n")
    place_with_manifest(root, "exported")
    (root / "corrupt" / "1").mkdir(parents=True)
    (root / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    settings: Any = {"ready_when": "any", "model_control": "explicit", "load_model": ["*"], "allow": ("shared-memory",)}
    with in_thread(root, grpc_port=0, **settings) as app:
        yield app


class Clients:
    """A process for each transport, started when its first case comes."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def run(self, transport: str, case: str) -> set[Call]:
        """Run a case; all calls of this transport that were answered so far. Fails with the process's traceback."""
        process = self._processes.get(transport) or self._start(transport)
        stdin, stdout = pipes(process)
        stdin.write(json.dumps(case) + "\n")
        stdin.flush()
        line = stdout.readline()
        failure, calls = json.loads(line) if line else (f"the client's process ended with status {process.wait()}", [])
        if failure is not None:
            pytest.fail(failure, pytrace=False)
        return {(verb, path) for verb, path in calls}

    def _start(self, transport: str) -> subprocess.Popen[str]:
        addresses = self._app.addresses
        address = addresses.http if issubclass(TRANSPORTS[transport], Http) else addresses.grpc
        command = [sys.executable, "-m", "tests.conformance.client", transport, str(address)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes[transport] = process
        return process

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            pipes(process)[0].close()
        for process in self._processes.values():
            process.wait(30)
            pipes(process)[1].close()


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """A child's stdin and stdout."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@pytest.fixture(scope="module")
def clients(served: App) -> Iterator[Clients]:
    """No longer than a module: other tests count this process's children."""
    started = Clients(served)
    try:
        yield started
    finally:
        started.close()
