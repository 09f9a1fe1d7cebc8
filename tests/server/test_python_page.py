"""docs/python_backend.md shows what happens: its example is served and asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.architecture.house import ROOT
from tests.server.python_models import place_python
from tests.server.running import INFER, http, running, wire

PAGE = (ROOT / "docs" / "python_backend.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


async def test_the_example(tmp_path: Path) -> None:
    place_python(tmp_path, "shout", block("python"), block("yaml"))
    asked = re.search(r"-d '(.*)'", block("sh"))
    assert asked is not None
    async with running(tmp_path) as app, wire(app) as connection:
        answer = await connection.ask(http(INFER.format("shout"), asked[1].encode()))
        assert answer.json() == json.loads(block("json"))
