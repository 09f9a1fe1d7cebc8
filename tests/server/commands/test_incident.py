import asyncio
import hashlib
import json
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.app import App
from tests.server.models import identity_model, place
from tests.server.running import running


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    place(tmp_path / "models", "echo", identity_model)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'right').hexdigest()}:debug\n")
    tokens.chmod(0o600)
    async with running(tmp_path / "models", admin={"token_file": tokens}) as started:
        yield started


async def capture(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tidegate", "incident", "capture", *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out.decode(), err.decode())


def files(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir() if found.is_file())


async def test_it_writes_a_file_of_its_own(app: App, tmp_path: Path) -> None:
    ran = await capture(tmp_path, "--url", f"http://{app.addresses.http}")
    assert (ran.returncode, ran.stderr) == (0, "")
    path = tmp_path / ran.stdout.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head, *events = (json.loads(line) for line in path.read_text().splitlines())
    assert (head["event"], head["events"]) == ("incident", len(events))
    assert [event["what"] for event in events] == ["ready"]
    assert files(tmp_path) == [path.name, "tokens"]


async def test_it_writes_to_stdout(app: App, tmp_path: Path) -> None:
    ran = await capture(tmp_path, "--url", f"http://{app.addresses.http}", "--output", "-")
    assert ran.returncode == 0
    assert json.loads(ran.stdout.splitlines()[0])["event"] == "incident"


async def test_what_the_server_says_is_passed_on(app: App, tmp_path: Path) -> None:
    ran = await capture(tmp_path, "--url", f"http://{app.addresses.http}", "--output", "x.jsonl", "--token-file", str(tmp_path / "none"))
    assert "--token-file" in ran.stderr
    (tmp_path / "token").write_text("wrong\n")
    ran = await capture(tmp_path, "--url", f"http://{app.addresses.http}", "--output", "x.jsonl", "--token-file", str(tmp_path / "token"))
    assert ran.returncode == 1
    assert "status 401: this bearer token isn't one of admin.token_file" in ran.stderr
    assert files(tmp_path) == ["token", "tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "127.0.0.1:8000"), "--url: expected http://HOST:PORT"),
        (("--url", "http://127.0.0.1:99999"), "--url: "),
        (("--url", "http://127.0.0.1:1"), "can't be reached: "),
        (("--output", "nowhere/x.jsonl"), "nowhere/x.jsonl: can't be written"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = await capture(tmp_path, *arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
