"""`tidegate monitor render`, `test` and `top` as a person runs them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import yaml

from tests.monitor.files import EXAMPLE
from tests.monitor.pages_served import reply, serving
from tests.monitor.test_rule_test import TESTS, written

PAGE = """\
tidegate_model_ready{model="bert",version="1",precision="fp32"} 1
tidegate_queue_rows{model="bert",version="1"} 7
tidegate_gpu_utilization_ratio{gpu="0"} 0.5
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tidegate", "monitor", *arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=_environment())


def _environment() -> dict[str, str]:
    return {"COLUMNS": "160", "NO_COLOR": "1", "PATH": ""}


def test_render(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(EXAMPLE)
    shown = run("render", "rules.yaml", folder=tmp_path)
    assert yaml.safe_load(shown.stdout)["groups"][0]["rules"][0]["alert"] == "InferenceLatency"
    assert run("render", "rules.yaml", "--to", "helm", "-o", "files", folder=tmp_path).returncode == 0
    assert (tmp_path / "files/rules.yaml").read_text() == shown.stdout
    assert (tmp_path / "files/dashboards/tidegate-gpu.json").exists()
    unnamed = run("render", "rules.yaml", "--to", "grafana", folder=tmp_path)
    assert unnamed.returncode == 2
    assert "name their folder with --output" in unnamed.stderr


def test_rule_tests(tmp_path: Path) -> None:
    written(tmp_path, TESTS)
    right = run("test", "tests.yaml", folder=tmp_path)
    assert (right.returncode, right.stdout) == (0, "ok   a queue that grows\n1 passed, 0 failed\n")
    written(tmp_path, TESTS.replace("at: 75s", "at: 2m"))
    wrong = run("test", "tests.yaml", folder=tmp_path)
    assert wrong.returncode == 1
    assert "     at 2m: QueueRows: expected none firing" in wrong.stdout


async def test_top(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("metrics:\n  - {name: queue_rows, threshold: 5}\n")
    async with serving(reply(PAGE)) as served:
        with (tmp_path / "rules.yaml").open("a") as file:
            file.write(f'sources: {{targets: ["127.0.0.1:{served.port}"]}}\n')
        shown = await asyncio.to_thread(run, "top", "rules.yaml", "--times", "1", folder=tmp_path)
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["bert", "yes", "–", "–", "–", "7", "–", "–", "–"] in lines, shown.stdout + shown.stderr
    assert any(line[-4:] == ["50%", "–", "–", "–"] for line in lines)
    assert "WARNING model bert queue_rows over 1m is 7, above 5" in shown.stdout
