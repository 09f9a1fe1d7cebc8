"""The wheel: what is in it, and that it installs and serves in an empty environment, also beside a user's package named server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.server.models import identity_model, place

ROOT = Path(__file__).resolve().parents[1]
ROWS = np.arange(32, dtype=np.float32).reshape(2, 16)
pytestmark = pytest.mark.timeout(300)


def environment(**changes: str) -> Mapping[str, str]:
    """This process's, without what would let the empty environment see our packages."""
    return {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | changes


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


class EmptyEnvironment:
    """A virtual environment of its own, and a folder to work in that has a package named server."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv/bin"
        self.folder = folder / "work"
        venv.create(folder / "venv", with_pip=True)
        place(self.folder / "models", "echo", identity_model)
        (self.folder / "server").mkdir()
        (self.folder / "server/__init__.py").write_text("raise SystemExit('the wrong server')\n")

    def install(self, requirement: str) -> None:
        done = run(self.bin / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", requirement)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return run(self.bin / command[0], *command[1:], cwd=self.folder)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> EmptyEnvironment:
    """tidegate alone: no extra."""
    made = EmptyEnvironment(tmp_path_factory.mktemp("bare"))
    made.install(str(wheel))
    return made


@pytest.fixture(scope="module")
def cpu(bare: EmptyEnvironment, wheel: Path) -> EmptyEnvironment:
    """The same environment with tidegate[cpu]; what wants it bare runs before."""
    bare.install(f"{wheel}[cpu]")
    return bare


@pytest.fixture
def process(cpu: EmptyEnvironment) -> Iterator[subprocess.Popen[str]]:
    """`tidegate serve` in the empty environment, not yet ready."""
    command = [str(cpu.bin / "tidegate"), "serve", "--repository", "models", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    settings = environment(TIDEGATE_DRAIN_DELAY="0")
    with subprocess.Popen(command, cwd=cpu.folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"server", "exporters", "monitor", "loadtests", "tidegate.py", info}
    assert {"server/py.typed", "server/backends/t4_latency.yaml", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    tracked = run("git", "ls-files", "*.py", cwd=ROOT).stdout.split() if (ROOT / ".git").exists() else []
    assert {name for name in tracked if name.split("/")[0] in tops} <= names


def test_without_a_runtime_serve_names_both_extras(bare: EmptyEnvironment) -> None:
    shown = bare.run("tidegate", "serve", "--repository", "models", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "tidegate[cpu]" in shown.stderr
    assert "tidegate[gpu]" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_without_its_extra_export_names_it(bare: EmptyEnvironment) -> None:
    (bare.folder / "nets.py").write_text("import torch\n\n\ndef net() -> torch.nn.Module:\n    return torch.nn.Linear(4, 2)\n")
    np.savez(bare.folder / "x.npz", x=np.zeros((2, 4), np.float32))
    shown = bare.run("tidegate", "export", "--model", "nets.py:net", "--example", "x.npz", "--repository", "models", "--name", "net")
    assert shown.returncode == 1
    assert "tidegate[export]" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_command_starts(bare: EmptyEnvironment) -> None:
    assert bare.run("tidegate", "--version").stdout.startswith("tidegate ")
    assert "serve" in bare.run("python", "-m", "tidegate", "--help").stdout


def test_it_serves_a_bare_onnx_file_and_stops_in_order(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    ready = json.loads(line)
    assert (ready["event"], ready["models"]) == ("ready", {"echo": "READY"})
    tensor = {"name": "x", "shape": list(ROWS.shape), "datatype": "FP32", "data": ROWS.ravel().tolist()}
    answer = httpx.post(f"http://{ready['http']}/v2/models/echo/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == ROWS.ravel().tolist()
    assert "tidegate_requests_total" in httpx.get(f"http://{ready['metrics']}/metrics").text
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
