"""The command as a user runs it: exit statuses, what goes to stdout and what to stderr, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exporters.cli import app
from server.repository.manifest import read_manifest

PROJECT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-P", "-c", "from exporters.cli import app; app()"]


def environment(temporary: Path) -> dict[str, str]:
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(temporary)}


def test_an_export_from_a_folder_that_has_a_package_called_server(user: Path, tmp_path: Path) -> None:
    (user / "server").mkdir()
    (user / "server" / "__init__.py").write_text("raise ImportError('not for tidegate')")
    command = [*RUN, "--model", "nets.py:Mlp", "--example", "features.npz", "--repository", "models", "--name", "net"]
    done = subprocess.run(command, cwd=user, env=environment(tmp_path / "tmp"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "models/net/1"
    assert "1/8/32 rows" in done.stdout
    assert "fp32" in done.stdout
    assert done.stderr.splitlines()[0] == "[1/6] trace nets.py:Mlp"
    assert read_manifest(user / "models/net/1/manifest.json").model == "net"
    assert not list((tmp_path / "tmp").glob("tidegate-*"))


def test_ctrl_c_ends_the_child_and_leaves_nothing(user: Path, tmp_path: Path) -> None:
    marker = user / "runs"
    (user / "slow.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    command = [*RUN, "--model", "slow.py:Net", "--repository", "models", "--name", "net"]
    with subprocess.Popen(
        command, cwd=user, env=environment(tmp_path / "tmp"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (marker.exists() and marker.read_text()) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("error: interrupted; nothing was written\n")
    assert not (user / "models").exists()
    assert not list((tmp_path / "tmp").glob("tidegate-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_the_command_needs_no_torch_until_it_runs(tmp_path: Path) -> None:
    code = (
        "import sys, exporters.cli as cli\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'onnxslim', 'transformers'} & set(sys.modules)\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "open('nets.py', 'w').close()\n"
        "sys.argv[1:] = ['--model', 'nets.py:Net', '--output', 'o.onnx']\n"
        "cli.app()\n"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path / "tmp"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("error: packages that an export needs aren't installed (torch, onnx): pip install 'tidegate[export]'\n")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--optimization-level", "5"], 2, "--optimization-level"),
        (["--precisions", "fp32,int4"], 2, "error: --precisions int4: not built yet; built are fp32, fp16, int8"),
        (["--target", "gpu"], 2, "error: --target gpu: expected cpu, cuda, tensorrt"),
        (["--format", "tensorrt"], 2, "error: --format tensorrt: not built yet; built are onnx"),
        (["--dynamic", "features"], 2, "expected NAME:AXIS[=MAX]"),
        (["--weights", "none.pt"], 2, "--weights none.pt: no such file"),
        (["--model", "berta"], 2, "no model is known by that name"),
        (["--output", "none/o.onnx"], 1, "error: none/o.onnx: there is no folder none"),
    ],
)
def test_usage(user: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, said: str) -> None:
    monkeypatch.chdir(user)
    given = ["--model", "nets.py:Mlp", "--example", "features.npz", "--output", "o.onnx", *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == status
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_dry_run_prints_the_steps_and_does_nothing(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    given = ["--model", "nets.py:Mlp", "--repository", "models", "--name", "net", "--precisions", "fp32,int8", "--optimization-level", "3"]
    result = CliRunner().invoke(app, [*given, "--dry-run"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "1. trace nets.py:Mlp",
        "2. check the ONNX file",
        "3. clean the graph",
        "4. prove it against PyTorch",
        "5. choose its graph",
        "6. see what its tensors hold",
        "7. make int8 and prove it",
        "8. measure its latency and memory",
        "9. write the result",
    ]
    assert not (user / "models").exists()


def test_a_repository_needs_a_name(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    result = CliRunner().invoke(app, ["--model", "nets.py:Mlp", "--repository", "models"])
    assert (result.exit_code, result.stderr) == (2, "error: --name is missing: what is the model called in the repository?\n")
    assert CliRunner().invoke(app, ["--model", "nets.py:Mlp"]).exit_code == 2
    nothing = CliRunner().invoke(app, [])
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "error: --model is missing" in nothing.stderr
