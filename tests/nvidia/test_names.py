"""Every name and signature of TensorRT and CUDA that our code uses is in the real bindings, of 10.16 and of 11.4.

The stubs are written from the bindings themselves (stubs.py, `make gpu-stubs`), so that a type checker resolves each use. The fake that the
other tests run on is held to the same stubs.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.nvidia.stubs import CUDA_TARGET, RELEASES, ROOT, Release

USERS = tuple(
    path
    for folder in ("server", "exporters", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "import tensorrt" in (text := path.read_text()) or "from cuda.bindings" in text
)
"""The modules that name something of TensorRT or CUDA."""

SETTINGS = """
[mypy]
[mypy-numpy.*,pydantic.*,onnx.*,ml_dtypes.*]
follow_imports = skip
[mypy-server.*,exporters.*]
warn_return_any = False
disallow_subclassing_any = False
"""
"""What has no part in it isn't read: that halves the time."""


def checked(release: Release, files: tuple[Path, ...], cache: Path) -> str:
    """What a strict type checker says of the files, with the stubs of this release."""
    folder = release.target.parents[1]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(map(str, dict.fromkeys((folder, ROOT / "typings", ROOT))))}
    settings = cache.with_suffix(".ini")
    settings.write_text(SETTINGS)
    options = [f"--config-file={settings}", "--strict", "--follow-imports=silent", "--ignore-missing-imports", "--explicit-package-bases"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={cache}", *map(str, files)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout


def test_there_is_something_to_check() -> None:
    assert {"library.py", "engine.py", "backend.py", "cuda.py"} <= {path.name for path in USERS}


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_what_our_code_uses_is_there(release: Release, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import tensorrt as trt\nflag = trt.BuilderFlag.NO_SUCH_FLAG\ntrt.Dims([1], 2)\n")
    said = checked(release, (*USERS, wrong), tmp_path / "cache")
    lines = [line for line in said.splitlines() if "error" in line and "wrong.py" not in line and not line.startswith("Found")]
    assert lines == []
    assert 'has no attribute "NO_SUCH_FLAG"' in said  # the stubs are what's asked
    assert 'No overload variant of "Dims" matches' in said


def members(stub: Path) -> Mapping[str, frozenset[str]]:
    """The members of each class of a stub."""
    tree = ast.parse(stub.read_text())
    return {node.name: frozenset(_names(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _names(node: ast.ClassDef) -> list[str]:
    targets = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    plain = [target.id for part in node.body if isinstance(part, ast.Assign) for target in part.targets if isinstance(target, ast.Name)]
    return [*targets, *plain, *(part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.ClassDef))]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_the_fake_has_nothing_that_tensorrt_lacks(release: Release) -> None:
    real = members(release.target)
    fake = members(Path(__file__).with_name("fake_tensorrt.py"))
    assert set(fake) <= set(real)
    for name, names in fake.items():
        public = {member for member in names if not member.startswith("_") and member != "gpu"}
        assert public <= real[name], name


def test_the_stubs_say_where_they_are_from() -> None:
    for release in RELEASES:
        assert f"TensorRT {release.version}" in release.target.read_text()
    assert "cudaErrorMemoryAllocation = 2" in CUDA_TARGET.read_text()


def test_what_11_dropped_is_not_in_its_stub() -> None:
    ten, eleven = (members(release.target) for release in RELEASES)
    assert {"FP16", "INT8"} <= ten["BuilderFlag"]
    assert not {"FP16", "INT8", "BF16"} & eleven["BuilderFlag"]
