"""onnxruntime's telemetry is off wherever our code brings it in: seen by what it leaves in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = "ORT_DISABLE_TELEMETRY"
WAYS_IN = {
    "the backend": "from server.backends.registry import backend_named; backend_named('onnxruntime')",
    "its session": "import server.backends.ort.session",
    "the doctor's trial": "from server.commands.trial import providers; providers()",
    "an export": "import exporters.pipeline, subprocess, sys; subprocess.run([sys.executable, '-c', 'import onnxruntime'], check=True)",
    "the benchmarks": "import benchmarks.raw_asgi",
}


def run(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In an environment that has nothing else: onnxruntime is silent by itself where a variable says that this is CI."""
    clean = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("way", WAYS_IN)
def test_nothing_is_left_behind(way: str, tmp_path: Path) -> None:
    ran = run(WAYS_IN[way], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("set_to", "becomes"), [("0", "0"), ("true", "true"), ("", "1"), (None, "1")])
def test_what_the_user_has_set_stays(set_to: str | None, becomes: str, tmp_path: Path) -> None:
    given = {} if set_to is None else {VARIABLE: set_to}
    ran = run(f"import os, server.backends; print(os.environ[{VARIABLE!r}])", tmp_path, **given)
    assert ran.stdout == f"{becomes}\n", ran.stderr
