"""docs/deploy.md and docs/scaling.md: what can run without a cluster runs, each value named is one, the figures are the benchmark's."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
import yaml

from benchmarks.autoscale import DEFAULTS, SIGNALS, row
from tests.deploy.chart import CHART
from tests.deploy.pages import comments
from tests.server.models import place
from tests.server.running import in_thread
from tests.tools import run

ROOT = CHART.parents[1]
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
SCALING = (ROOT / "docs" / "scaling.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", DEPLOY, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
HELM = [command for command in COMMANDS if command.startswith("helm ") and not command.startswith("helm rollback")]


def test_the_page_has_commands() -> None:
    assert len(HELM) >= 4
    assert {shlex.split(command)[0] for command in COMMANDS} == {"make", "docker", "kubectl", "helm", "tidegate"}


@pytest.mark.parametrize("command", HELM)
def test_helm_takes_the_command(command: str) -> None:
    """What would install is rendered instead."""
    words = shlex.split(command)
    assert words[1] in ("install", "upgrade", "template")
    assert "kind: Deployment" in run("helm", "template", *words[2:], cwd=ROOT)


def test_the_canary_of_the_walk_runs(tmp_path: Path) -> None:
    """The page's own commands, in their order, against a server with an admin port and a token; version 2 comes while it serves."""
    walk = DEPLOY.partition("### From nothing to a canary")[2].partition("\n###")[0]
    commands = re.findall(r"^(tidegate .*?) +#", walk, re.MULTILINE)
    assert [shlex.split(command)[1:3] for command in commands] == [
        *(["weights", "set"], ["canary", "start"], ["canary", "status"], ["canary", "abort"], ["weights", "clear"]),
    ]
    (tmp_path / "tokens").write_text(f"ops:{hashlib.sha256(b'secret').hexdigest()}:infer,read,control,debug\n")
    (tmp_path / "tokens").chmod(0o600)
    place(tmp_path / "models", "ranker")
    admin = {"port": 0, "token_file": tmp_path / "tokens"}
    with in_thread(tmp_path / "models", admin=admin, state=tmp_path / "state.db") as app:
        place(tmp_path / "models", "ranker", version="2")
        said = [told(command.replace("127.0.0.1:8003", app.addresses.admin)) for command in commands]
    _, started, status, aborted, cleared = said
    assert "of ranker: version 2 against version 1\nrunning: 1 % of the requests, step 1 of 5" in started
    assert "hold: few samples" in status
    assert "\naborted after" in aborted
    assert "by the version policy" in cleared


def told(command: str) -> str:
    """What a command printed; of a canary's status, once the server has looked at it for the first time."""
    end = monotonic() + 20
    while "canary status" in command and "hold:" not in ran(command):
        assert monotonic() < end
        sleep(0.05)
    return ran(command)


def ran(command: str) -> str:
    """What a command printed, with the token; it must have ended well."""
    environment = {**os.environ, "TIDEGATE_TOKEN": "secret", "NO_COLOR": "1", "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_has_the_target(command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "docker build" in command])
def test_the_dockerfile_has_the_target(command: str) -> None:
    target = re.findall(r"--target (\w+)", command)[0]
    assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_values_that_the_pages_name_are_values() -> None:
    paths = {path for path, _ in comments()}
    tops = {path for path in paths if "." not in path}
    named = set(re.findall(rf"`((?:{'|'.join(sorted(tops))})\.[\w.]+)", DEPLOY + SCALING))
    free = ("server.config", "monitor.config", "server.strategy")
    assert named
    assert {name for name in named if name not in paths and not name.startswith(free)} == set()


def test_the_rollback_is_of_a_release() -> None:
    assert "helm rollback tidegate -n ml" in COMMANDS


def test_the_scripts_parse() -> None:
    for name in ("tools", "image", "cluster-check"):
        assert subprocess.run(["bash", "-n", ROOT / ".ci" / name], check=False).returncode == 0


def test_the_table_is_what_the_simulation_gives() -> None:
    """One line of docs/scaling.md made anew: the others come of the same code."""
    made = row("flash crowd", "capacity", DEFAULTS, ladder=False)
    line = next(line for line in SCALING.splitlines() if line.startswith("| flash crowd | capacity utilization | 0.7"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3].replace(" ", "") == made[4]
    assert cells[4] == made[6]
    assert float(cells[5]) == float(made[7])
    assert SIGNALS["capacity"].name in line


def test_the_shipped_rules_say_what_the_chart_ships() -> None:
    assert yaml.safe_load((CHART / "files" / "monitor.yaml").read_text()) == {"metrics": [], "interval": "15s"}


def test_links_to_values_files_lead_somewhere() -> None:
    named = re.findall(r"helm/tidegate/ci/([\w-]+)\.yaml", DEPLOY + (CHART / "README.md").read_text())
    assert named
    assert [name for name in named if not Path(CHART / "ci" / f"{name}.yaml").exists()] == []
