"""The `tidegate` command as a person runs it: a process, its output and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

TIDEGATE = str(Path(sys.executable).with_name("tidegate"))
COMMANDS = sorted(entry_points(group="tidegate.commands").names)
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def run(*command: str, plugins: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(plugins), cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def environment(plugins: Path | None) -> dict[str, str]:
    return {**ENVIRONMENT, "PYTHONPATH": str(plugins)} if plugins else ENVIRONMENT


def install_plugin(folder: Path, body: str) -> Path:
    """A third party's package as pip would leave it: a module with a Typer app, a subcommand `plug` and an extra `more`."""
    metadata = folder / "plug-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\nProvides-Extra: more\n"
        "Requires-Dist: numpy\nRequires-Dist: tidegate-absent-package>=1.0; extra == 'more'\n"
    )
    (metadata / "entry_points.txt").write_text("[tidegate.commands]\nplug = plug:app [more]\n")
    (folder / "plug.py").write_text(
        "import typer\n\napp = typer.Typer(add_completion=False)\n\n\n@app.command()\ndef plug(word: str = '') -> None:\n"
        f'    """Do what the plug-in\n    does. And more."""\n{body}'
    )
    return folder


def test_help_lists_every_subcommand_with_what_it_does() -> None:
    shown = run(TIDEGATE, "--help")
    assert shown.returncode == 0
    lines = [line.strip("│ ").split(maxsplit=1) for line in shown.stdout.splitlines() if line.startswith("│")]
    listed = {words[0]: words[1] for words in lines if len(words) == 2}
    assert set(COMMANDS) <= set(listed)


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "fastapi", "transformers", "numpy", "uvicorn"}
    shown = run(
        sys.executable,
        "-c",
        "import atexit, sys, tidegate\n"
        f"atexit.register(lambda: print('imported', *sorted({heavy} & set(sys.modules))))\n"
        "tidegate.main(['--help'])",
    )
    assert shown.stdout.splitlines()[-1] == "imported"


def test_version() -> None:
    assert run(TIDEGATE, "--version").stdout == f"tidegate {version('tidegate')}\n"


def test_unknown_subcommand_suggests_the_nearest() -> None:
    shown = run(TIDEGATE, "serv")
    assert shown.returncode == 2
    assert "No such command 'serv'. Did you mean 'serve'?" in shown.stderr


def test_no_subcommand_shows_help() -> None:
    shown = run(TIDEGATE)
    assert shown.returncode == 2
    assert "serve" in shown.stdout + shown.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help_under_its_own_name(name: str) -> None:
    shown = run(TIDEGATE, name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"Usage: tidegate {name}" in shown.stdout
    assert "--install-completion" not in shown.stdout


def test_tidegate_export_is_the_same_command() -> None:
    shown = run(f"{TIDEGATE}-export", "--help")
    assert "Usage: tidegate export" in shown.stdout
    assert shown.stdout == run(TIDEGATE, "export", "--help").stdout


def test_a_folder_with_a_package_named_server_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/__init__.py").write_text("raise SystemExit('the wrong server')")
    for command in ([TIDEGATE], [sys.executable, "-m", "tidegate"]):
        shown = run(*command, "loadtest", "scenarios", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "steady" in shown.stdout


def test_a_third_partys_subcommand_is_found_and_described(tmp_path: Path) -> None:
    plugins = install_plugin(tmp_path, "    print('ran', word)\n")
    assert "Do what the plug-in does." in run(TIDEGATE, "--help", plugins=plugins).stdout
    assert run(TIDEGATE, "plug", "--word", "--", plugins=plugins).stdout == "ran --\n"


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    shown = run(TIDEGATE, "plug", plugins=install_plugin(tmp_path, "    import tidegate_absent_package\n"))
    assert shown.returncode == 1
    assert shown.stderr == (
        "error: `tidegate plug` needs packages that aren't installed (tidegate-absent-package): pip install 'plug[more]'\n"
    )


def test_another_import_error_is_shown_as_the_bug_it_is(tmp_path: Path) -> None:
    shown = run(TIDEGATE, "plug", plugins=install_plugin(tmp_path, "    from typer import not_in_typer\n"))
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "not_in_typer" in shown.stderr


def test_an_error_of_the_domain_is_one_line(tmp_path: Path) -> None:
    body = "    from server.errors import ConfigError\n    raise ConfigError('server.yaml:3: unknown key')\n"
    shown = run(TIDEGATE, "plug", plugins=install_plugin(tmp_path, body))
    assert (shown.returncode, shown.stderr) == (1, "error: server.yaml:3: unknown key\n")


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    plugins = install_plugin(tmp_path, "    import time\n    print('started', flush=True)\n    while True:\n        time.sleep(0.01)\n")
    process = subprocess.Popen([TIDEGATE, "plug"], env=environment(plugins), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
