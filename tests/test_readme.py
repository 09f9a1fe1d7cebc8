"""What README says is so: its commands run as printed, its tree is the tree, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
OWN_MODEL = README.split("## Serve your own model")[1].split("\n## ")[0]
TREE = README.split("## The house")[1].split("\n## ")[0]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", OWN_MODEL, re.DOTALL)


@pytest.mark.timeout(120)
def test_three_commands_serve_a_model_of_ones_own(tmp_path: Path) -> None:
    """In a folder that has a package named server. The first command is tried in test_dist, with the extras that a test can afford."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server/__init__.py").write_text("raise SystemExit('the wrong server')\n")
    nets, prepare = blocks("python")
    (tmp_path / "nets.py").write_text(nets)
    install, export, serve = blocks("bash")[0].strip().splitlines()
    assert_can_be_installed(install)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", prepare], cwd=tmp_path, check=True)
    subprocess.run(shlex.split(export), cwd=tmp_path, env=environment, check=True)
    command = [*shlex.split(serve), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    environment |= {"TIDEGATE_DRAIN_DELAY": "0"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            assert ready["models"] == {"net": "READY"}
            ask_as_printed(blocks("bash")[1], ready["http"])
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


def assert_can_be_installed(command: str) -> None:
    """`pip install -c FILE '.[EXTRA,…]'` names a file and extras that there are."""
    *pip, constraints, requirement = shlex.split(command)
    assert pip == ["pip", "install", "-c"]
    assert (ROOT / constraints).is_file()
    extras = re.fullmatch(r"\.\[([a-z,]+)\]", requirement)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(metadata("tidegate").get_all("Provides-Extra") or ())


def ask_as_printed(curl: str, address: str) -> None:
    url, body = re.findall(r"http://\S+", curl)[0], re.findall(r"-d '(.*)'", curl)[0]
    answer = httpx.post(url.replace("127.0.0.1:8000", address), content=body)
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    assert output["shape"] == [2, 3]
    assert sum(output["data"]) == pytest.approx(2, abs=1e-5)


def test_the_tree_is_the_tree() -> None:
    shown = dict(re.findall(r"^ {4,}(\S+) {2,}(\S.*)$", TREE, re.MULTILINE))
    assert all(len(caption.split()) <= 8 for caption in shown.values())
    inside = {f"{path.name}/" for top in (ROOT, ROOT / "server") for path in top.iterdir() if has_code(path)}
    assert inside | {"docs/", "tidegate.py"} == set(shown)


def has_code(path: Path) -> bool:
    return path.is_dir() and (path / "__init__.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []
