import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from typer.testing import CliRunner

from server.commands.doctor import STYLES, app, as_text, show, verdict
from server.commands.machine import Finding, Report, cpu_quota, machine, nvml_findings, run_on, safely, within
from server.commands.trial import DOUBLE, try_device
from server.config import VERSION
from server.errors import ModelDefect

NVML = """
class NVMLError(Exception): ...
class Memory: total = 16 << 30
def nvmlInit(): ...
def nvmlShutdown(): ...
def nvmlSystemGetDriverVersion(): return b"580.65"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetName(handle): return "Tesla T4"
"""


def asked(path: Path) -> tuple[int, dict[str, Any]]:
    """What the doctor finds in a process of its own, with `path` before what is installed. It must not say a word besides."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    command = [sys.executable, "-P", "-c", "from server.commands.doctor import app; app()", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def found(answer: dict[str, Any], name: str) -> dict[str, str]:
    check: dict[str, str] = next(check for check in answer["checks"] if check["name"] == name)
    return check


def distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    return asked(tmp_path_factory.mktemp("nothing"))


def test_this_machine_serves_on_the_cpu(here: tuple[int, dict[str, Any]]) -> None:
    code, answer = here
    assert code == 0
    assert answer["serves"]["cpu"] is True
    assert found(answer, "A model on cpu")["state"] == "ok"
    assert found(answer, "tidegate")["seen"] == VERSION
    assert found(answer, "uvicorn")["state"] == "ok"
    assert {check["state"] for check in answer["checks"]} <= STYLES.keys()


def test_what_it_looks_at(here: tuple[int, dict[str, Any]]) -> None:
    names = {check["name"] for check in here[1]["checks"]}
    assert names >= {
        "Python",
        "CPU cores",
        "Memory",
        "Open files",
        "onnxruntime",
        "Providers listed",
        "A model on cpu",
        "A model on cuda:0",
        "CUDA",
        "TensorRT",
    }
    assert "unproven on a GPU" in found(here[1], "Proof")["seen"]


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError(\"No module named 'onnxruntime'\")")
    code, answer = asked(tmp_path)
    assert code == 1
    assert answer["serves"] == {"cpu": False, "gpu": False}
    assert "pip install 'tidegate[cpu]'" in found(answer, "A model on cpu")["seen"]
    assert "pip install 'tidegate[gpu]'" in found(answer, "A model on cpu")["seen"]


def test_a_runtime_that_kills_the_process_is_a_finding(tmp_path: Path) -> None:
    """As a build for another CPU is."""
    (tmp_path / "onnxruntime.py").write_text("import os\nos.kill(os.getpid(), 9)")
    code, answer = asked(tmp_path)
    assert code == 1
    assert found(answer, "Providers")["seen"] == "the process was killed by signal 9"
    assert found(answer, "A model on cpu")["seen"] == "the process was killed by signal 9"


def test_both_builds_beside_each_other_clash(tmp_path: Path) -> None:
    distribution(tmp_path, "onnxruntime-gpu", "1.31.1")
    code, answer = asked(tmp_path)
    assert code == 0
    clash = found(answer, "onnxruntime")
    assert clash["state"] == "warning"
    assert re.fullmatch(r"onnxruntime 1\.\S+, onnxruntime-gpu 1\.31\.1: a clash", clash["seen"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in clash["advice"]
    assert found(answer, "A model on cuda:0")["state"] in ("failure", "ok")


def test_another_uvicorn_is_a_failure(tmp_path: Path) -> None:
    distribution(tmp_path, "uvicorn", "0.53.1")
    uvicorn = found(asked(tmp_path)[1], "uvicorn")
    assert uvicorn["state"] == "failure"
    assert "0.53.1, but the hot path is built for " in uvicorn["seen"]


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for NVML's binding, to be written by the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    yield tmp_path / "pynvml.py"
    sys.modules.pop("pynvml", None)


def test_gpus_are_listed(nvml: Path) -> None:
    nvml.write_text(NVML)
    assert nvml_findings() == [
        Finding("gpu", "NVML", "ok", "driver 580.65"),
        Finding("gpu", "GPU 0", "ok", "Tesla T4, 16.0 GiB"),
        Finding("gpu", "GPU 1", "ok", "Tesla T4, 16.0 GiB"),
    ]


def test_a_binding_without_a_driver(nvml: Path) -> None:
    nvml.write_text("class NVMLError(Exception): ...\ndef nvmlInit(): raise NVMLError('NVML Shared Library Not Found')")
    assert nvml_findings() == [Finding("gpu", "NVML", "note", "NVML Shared Library Not Found")]


def test_a_probe_that_fails_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("oops")

    assert safely("gpu", broken) == [Finding("gpu", "broken", "warning", "couldn't be looked at: ZeroDivisionError: oops")]


def test_the_trial_model_is_what_it_says() -> None:
    model = onnx.load_model_from_string(DOUBLE)
    onnx.checker.check_model(model)
    (y,) = ReferenceEvaluator(model).run(None, {"x": np.array([1, 2, 3], np.float32)})
    assert np.asarray(y).tolist() == [2, 4, 6]


def test_the_trial_names_what_is_missing() -> None:
    assert try_device("cpu").startswith("onnxruntime ")
    with pytest.raises(ModelDefect, match="CUDAExecutionProvider"):
        try_device("cuda:99")


def test_a_device_that_is_none() -> None:
    finding = run_on("tpu")
    assert finding.state == "failure"
    assert finding.seen == "unknown device 'tpu'; expected cpu or cuda:N"


def test_the_machine_as_it_is() -> None:
    cores, memory, files = machine()
    assert re.match(r"[0-9]+ of [0-9]+ usable", cores.seen)
    assert re.match(r"[0-9.]+ GiB free of [0-9.]+ GiB", memory.seen)
    assert files.seen.isdecimal() or files.seen == "unlimited"


@pytest.mark.parametrize(
    ("installed", "bounds", "fits"),
    [
        ("0.54.0", "<0.55,>=0.54", True),
        ("0.55.0", "<0.55,>=0.54", False),
        ("0.53.9", "<0.55,>=0.54", False),
        ("1.31.1.dev2+cu13", ">=1.31", True),
        ("2.0", "!=2.0", False),
        ("1.4.9", "~=1.4.2", True),
        ("1.5", "~=1.4.2", False),
        ("1.0", "", True),
        ("", ">=1.0", False),
        ("", "", False),
    ],
)
def test_bounds(installed: str, bounds: str, fits: bool) -> None:
    assert within(installed, bounds) is fits


@pytest.mark.parametrize(("line", "cores"), [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", 0.0), ("", 0.0), ("1 0", 0.0)])
def test_quota(line: str, cores: float) -> None:
    assert cpu_quota(line) == cores


REPORT = Report((Finding("runtime", "onnxruntime", "failure", "[not] installed", "pip install 'tidegate[cpu]'"),), cpu=False, gpu=False)


def test_the_table_shows_what_to_do() -> None:
    out = io.StringIO()
    show(REPORT, Console(file=out, width=100))
    assert "failure  onnxruntime  [not] installed" in out.getvalue()
    assert "→ pip install 'tidegate[cpu]'" in out.getvalue()
    assert verdict(REPORT) in out.getvalue()


@pytest.mark.parametrize(
    ("cpu", "gpu", "text"),
    [(True, True, "on the CPU and a GPU."), (True, False, "on the CPU."), (False, True, "on a GPU."), (False, False, "can't serve")],
)
def test_verdicts(cpu: bool, gpu: bool, text: str) -> None:
    assert text in verdict(Report((), cpu, gpu))


def test_json_is_the_report() -> None:
    assert json.loads(as_text(REPORT))["checks"][0]["advice"] == "pip install 'tidegate[cpu]'"


def test_the_command_as_a_person_calls_it() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "This machine serves models on" in result.output


def test_a_provider_that_is_listed_and_cannot_run_is_told(tmp_path: Path) -> None:
    """As onnxruntime-gpu does on a machine without a GPU: it lists both, and would run on the CPU without a word."""
    (tmp_path / "onnxruntime.py").write_text(LISTING)
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    distribution(tmp_path, "onnxruntime-gpu", "1.31.1")
    _, answer = asked(tmp_path)
    assert "TensorrtExecutionProvider" in found(answer, "Providers listed")["seen"]
    for name in ("A model by TensorRT", "A model on cuda:0", "CUDA", "TensorRT"):
        assert found(answer, name)["state"] == "failure", name
    assert "libnvinfer.so.10" in found(answer, "TensorRT")["seen"]


LISTING = """
import os, sys
before = list(sys.path)
sys.path[:] = [folder for folder in before if os.path.realpath(folder) != os.path.dirname(os.path.realpath(__file__))]
del sys.modules["onnxruntime"]
import onnxruntime
sys.path[:] = before
onnxruntime.get_available_providers = lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
"""
"""The installed onnxruntime, which says that it has more providers."""
