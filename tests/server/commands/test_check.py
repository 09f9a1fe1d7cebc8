"""serve --check: how each model is understood, its faults, and that nothing is started."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from server.cli import app
from server.commands.check import show, understand
from server.config import load_settings
from tests.server.models import place, place_with_manifest, two_inputs_model

PBTXT = """
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "b" data_type: TYPE_FP32 dims: [ 4 ] } ]
metric_tags { key: "a" value: "b" }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One of each kind of source, and an ensemble."""
    place(tmp_path, "bare")
    place(tmp_path, "own", yaml="batching: {max_rows: 4}\nlanes: {kind: thread, count: 2}")
    place_with_manifest(tmp_path, "exported", ["fp16", "fp32"])
    (place(tmp_path, "tritons", two_inputs_model) / "config.pbtxt").write_text(PBTXT)
    (tmp_path / "both" / "1").mkdir(parents=True)
    (tmp_path / "both" / "model.yaml").write_text("ensemble: {steps: [{model: bare, inputs: {x: in}, outputs: {y: out}}]}")
    return tmp_path


def checked(repository: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["--repository", str(repository), "--check", *more])
    return result.exit_code, result.stdout


def test_each_model_is_told(repository: Path) -> None:
    status, printed = checked(repository)
    assert status == 0, printed
    lines = dict(line.split(": ", 1) for line in printed.splitlines()[:-1] if ": warning: " not in line)
    plain = "onnxruntime fp32; x FP32 [-1, 8] → y FP32 [-1, 4]; up to {} rows a run; {} lanes on cpu"
    assert lines == {
        "bare/1": f"from the model's file: {plain.format(64, 'auto auto')}",
        "both/1": "from model.yaml: ensemble of bare",
        "exported/1": f"from the model's file: {plain.format(64, 'auto auto')}",
        "own/1": f"from model.yaml: {plain.format(4, '2 thread')}",
        "tritons/1": "from config.pbtxt: onnxruntime fp32; a FP32 [-1, 4], b FP32 [-1, 4] → total FP32 [-1, 4], product FP32 [-1, 4]; "
        "up to 8 rows a run; auto auto lanes on cpu",
    }
    assert f"tritons/1: warning: {repository / 'tritons' / 'config.pbtxt'}:4:1: metric_tags: nothing here acts on it" in printed
    assert printed.splitlines()[-1] == "5 can be served."


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "a wrong key": ({"own/model.yaml": "batching: {max_row: 1}"}, "own/model.yaml:1: batching.max_row: unknown key"),
    "a wrong field": ({"tritons/config.pbtxt": "max_batch: 1"}, "tritons/config.pbtxt:1:1: unknown field 'max_batch'"),
    "a corrupt file": ({"bare/1/model.onnx": "no"}, "bare/1/model.onnx: not an ONNX file"),
    "a changed file": ({"exported/1/model.fp32.onnx": "no"}, "exported/1/model.fp32.onnx: 2 bytes, not the"),
    "an unknown backend": ({"own/model.yaml": "backend: nonesuch"}, "unknown backend 'nonesuch'"),
    "Triton's own Python class": (
        {"tritons/config.pbtxt": PBTXT + 'backend: "python"', "tritons/1/model.py": "class TritonPythonModel: pass"},
        "tritons/config.pbtxt:5:1: backend: a TritonPythonModel (model.py) isn't run here. Put what its `execute` does into the `infer`",
    ),
    "a missing part": (
        {"both/model.yaml": "ensemble: {steps: [{model: nobody, inputs: {x: in}, outputs: {y: out}}]}"},
        "step 1 (model 'nobody'): the repository offers no such model or version",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_and_is_the_exit_status(repository: Path, case: str) -> None:
    files, text = FAULTS[case]
    for name, content in files.items():
        (repository / name).write_text(content)
    status, printed = checked(repository)
    assert status == 1
    (fault,) = [line for line in printed.splitlines() if ": fault: " in line]
    assert text in fault
    assert printed.splitlines()[-1] == "1 of 5 can't be served."


def test_what_is_to_be_loaded_and_is_not_there(repository: Path) -> None:
    status, printed = checked(repository, "--model-control", "explicit", "--load-model", "nobody")
    assert (status, "nobody: fault: no such model" in printed) == (1, True)


def test_an_empty_repository(tmp_path: Path) -> None:
    assert checked(tmp_path) == (0, "The repository holds no model.\n")


@pytest.mark.parametrize("flags", [["--host", "0.0.0.0", "--model-control", "explicit"], ["--http-port", "99999999"]])
def test_settings_that_stop_a_start_stop_this(repository: Path, flags: list[str]) -> None:
    assert checked(repository, *flags)[0] == 1


def test_nothing_is_bound(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert checked(repository, "--http-port", str(taken.getsockname()[1]))[0] == 0


def test_on_a_terminal_it_is_a_table(repository: Path) -> None:
    (repository / "bare" / "1" / "model.onnx").write_bytes(b"no")
    written: Any = io.StringIO()
    show(understand(load_settings(None, {"repository": repository})), Console(file=written, force_terminal=True, width=200, no_color=True))
    printed = written.getvalue()
    assert "understood as" in printed
    assert "→" in printed
    assert "not an ONNX file" in printed
    assert "1 of 5 can't be served." in printed
