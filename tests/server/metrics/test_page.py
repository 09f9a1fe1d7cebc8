"""The programs of docs/metrics.md print what stands below them."""

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

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("metrics-page")
    two_inputs_model(root / "sums" / "1" / "model.onnx")
    with in_thread(root) as app:
        row = {"datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        body = {"inputs": [{"name": "a", **row}, {"name": "b", **row}]}
        assert httpx.post(f"http://{app.addresses.http}/v2/models/sums/infer", json=body).status_code == 200
        yield app


def test_all_programs_are_found() -> None:
    assert len(PROGRAMS) == PAGE.count("```python") > 0


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_programs(served: App, program: str, printed: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(program.replace("127.0.0.1:8000", served.addresses.http).replace("127.0.0.1:8002", served.addresses.metrics), {})
    assert said.getvalue() == printed
