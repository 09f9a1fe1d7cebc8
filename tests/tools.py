"""The real tools that tests ask. `.ci/tools` (make tools) unpacks them under .tools/; the first test that needs one calls it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"
PYTHON_TOOLS = TOOLS / "python"
NODE_MODULES = TOOLS / "node_modules"


def tool(name: str) -> str:
    """The path of promtool, helm, … An error says what kept it from being fetched: such a test fails, it isn't skipped."""
    fetch()
    return str(TOOLS / "bin" / name)


@cache
def fetch() -> None:
    """Everything of .ci/tools; at once where it's there. Processes that ask at the same time wait for each other."""
    done = subprocess.run([ROOT / ".ci" / "tools"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(name: str, *arguments: str | Path, cwd: Path | None = None, status: int = 0) -> str:
    """What a tool printed; it must have ended with `status`."""
    command = [tool(name), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == status, f"{' '.join(command)}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr
