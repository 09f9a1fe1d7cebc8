"""The Makefile and its set-up: what a person sees, and that a set-up which failed is never taken for a finished one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the project as the set-up reads, so that the real .venv isn't touched."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "EXTRAS", "PYTHON")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False, timeout=110
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    shown = make(ROOT).stdout
    assert [line.split()[1] for line in shown.splitlines()] == phony


def test_no_suitable_interpreter_is_said_plainly(checkout: Path) -> None:
    shown = make(checkout, "setup", PYTHON="/nonexistent/python3")
    assert shown.returncode != 0
    assert "no Python 3.11 or newer with venv and pip found (tried: /nonexistent/python3)" in shown.stderr
    assert "python3-venv" in shown.stderr
    assert not (checkout / ".venv").exists()


def test_a_failed_setup_leaves_no_stamp(checkout: Path) -> None:
    shown = make(checkout, "setup", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert shown.returncode != 0
    assert "ERROR" in shown.stderr
    assert not (checkout / ".venv/setup.key").exists()


def test_a_finished_setup_is_reused_until_a_pin_changes(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*" >>"$(dirname "$0")/calls"\n')
    python.chmod(0o755)

    def installs() -> int:
        assert make(checkout, "setup", EXTRAS="cpu", PYTHON=sys.executable).returncode == 0
        return (python.parent / "calls").read_text().count("pip install")

    (checkout / ".venv/setup.choice").write_text(f"cpu Python {platform.python_version()}\n")
    assert installs() == 1
    assert installs() == 1
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("# moved\n")
    assert installs() == 2
