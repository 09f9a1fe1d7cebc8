"""What docs/configuration.md and security.md have people type does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx

from tests.server.models import place
from tests.server.running import in_thread

DOCS = Path(__file__).resolve().parents[2] / "docs"
TOKENS = (DOCS / "security.md").read_text().partition("## Tokens")[2]


def test_a_wrong_key_is_told_as_the_page_says(tmp_path: Path) -> None:
    page = (DOCS / "configuration.md").read_text()
    ((command, told),) = re.findall(r"```console\n\$ tidegate (serve .*)\n(error: .*)\n```", page)
    (tmp_path / "server.yaml").write_text("repository: models\n\n\n\nlimits:\n  max_bdy: 1MiB\n")
    said = subprocess.run(
        [sys.executable, "-m", "tidegate", *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr.strip()) == (1, told)


def test_a_token_is_made_as_the_page_says(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"\$ python (-c .*)\n", TOKENS)
    made = subprocess.run([sys.executable, *shlex.split(recipe)], capture_output=True, text=True, check=True)
    token, line = made.stdout.splitlines()
    file = tmp_path / "tokens"
    file.write_text(f"# name:sha256 of the token:classes\n{line}\n")
    os.chmod(file, 0o600)
    place(tmp_path / "models", "bare")
    with in_thread(tmp_path / "models", admin_token_file=file) as served:
        url = f"http://{served.addresses.http}/v2"
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}x"}).status_code == 401
    by_hand = subprocess.run(["sha256sum"], input=token, capture_output=True, text=True, check=True).stdout.split()[0]
    assert line == f"alice:{by_hand}:infer,read,control"
