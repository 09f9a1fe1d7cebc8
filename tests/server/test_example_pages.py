"""The programs of docs/metrics.md, tracing.md and logs.md print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import App
from tests.server.models import two_inputs_model
from tests.server.running import in_thread

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("metrics", "tracing", "logs")}
PROGRAMS = [
    (name, *found) for name, page in PAGES.items() for found in re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("pages")
    two_inputs_model(root / "models" / "sums" / "1" / "model.onnx")
    (root / "files").mkdir()
    with in_thread(root / "models", allow="files", files_dir=root / "files") as app:
        row = {"datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        body = {"inputs": [{"name": "a", **row}, {"name": "b", **row}]}
        assert httpx.post(f"http://{app.addresses.http}/v2/models/sums/infer", json=body).status_code == 200
        yield app


def test_all_programs_are_found() -> None:
    assert len(PROGRAMS) == sum(page.count("```python") for page in PAGES.values()) == 3


@pytest.mark.parametrize(("page", "program", "printed"), PROGRAMS)
def test_programs(served: App, page: str, program: str, printed: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(program.replace("127.0.0.1:8000", served.addresses.http).replace("127.0.0.1:8002", served.addresses.metrics), {})
    assert said.getvalue() == printed
