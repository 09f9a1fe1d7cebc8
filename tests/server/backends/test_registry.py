import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.backends.ort.backend import OnnxRuntimeBackend
from server.backends.registry import backend_named, known_backends
from server.errors import ModelDefect

PACKAGE = """
class Echo:
    @classmethod
    def open(cls, spec): ...
    def run(self, inputs, rows, out=None): ...
    def close(self): ...

not_a_backend = 1
"""
POINTS = """[tidegate.backends]
echo = echo_backend:Echo
gone = echo_backend:Gone
missing = no_such_module_here:Echo
number = echo_backend:not_a_backend
onnxruntime = echo_backend:Echo
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that declares backends."""
    info = tmp_path / "echo_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "echo_backend.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))


def refusal(name: str) -> str:
    with pytest.raises(ModelDefect) as caught:
        backend_named(name)
    return str(caught.value)


def test_ours_is_found_without_an_installed_distribution() -> None:
    assert backend_named("onnxruntime") is OnnxRuntimeBackend


@pytest.mark.usefixtures("third_party")
def test_another_packages_backend_is_found() -> None:
    assert backend_named("echo").__name__ == "Echo"
    assert "echo" in known_backends()


@pytest.mark.usefixtures("third_party")
def test_ours_cannot_be_taken_over() -> None:
    assert backend_named("onnxruntime") is OnnxRuntimeBackend
    assert known_backends().count("onnxruntime") == 1


@pytest.mark.usefixtures("third_party")
def test_an_unknown_name_lists_the_known() -> None:
    assert refusal("onnx") == f"unknown backend 'onnx'; expected one of {', '.join(known_backends())}"


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(("name", "part"), [("gone", "Gone"), ("missing", "no_such_module_here"), ("number", "isn't a class")])
def test_a_broken_package_is_named(name: str, part: str) -> None:
    message = refusal(name)
    assert part in message
    assert "check the package 'echo-backend', which declares it" in message


@pytest.mark.parametrize(
    "package", ["raise ImportError('No module named onnxruntime')", ""], ids=["not installed", "emptied by an uninstall"]
)
def test_without_onnxruntime_both_extras_are_named(tmp_path: Path, package: str) -> None:
    """In a process of its own, whose path has a stand-in for the package that isn't there."""
    (tmp_path / "onnxruntime.py").write_text(package)
    question = "from server.backends.registry import backend_named; backend_named('onnxruntime')"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    answer = subprocess.run([sys.executable, "-c", question], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("server.errors.ModelDefect: backend 'onnxruntime' can't be loaded: ")
    assert "pip install 'tidegate[cpu]'" in last
    assert "pip install 'tidegate[gpu]'" in last
