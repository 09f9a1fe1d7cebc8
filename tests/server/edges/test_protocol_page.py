"""What docs/protocol.md says is so: its examples run as printed, its endpoints are those that there are."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import App
from server.edges.grpc.servicer import INFERENCES, METHODS
from tests.server.models import identity_model, place, two_inputs_model
from tests.server.running import in_thread

PAGE_PATH = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
PAGE = PAGE_PATH.read_text()
TRITON_PAGE = PAGE_PATH.with_name("triton.md").read_text()
PRINTED_ADDRESS, PRINTED_GRPC = "127.0.0.1:8000", "127.0.0.1:8001"
CONSOLE = re.findall(r"```console\n\$ (curl .*?)\n([{\[].*?)```", PAGE, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("protocol-page")
    two_inputs_model(root / "sums" / "1" / "model.onnx")
    animals = place(root, "animals", lambda path: identity_model(path, width=3), yaml="outputs: {y: {labels: names.txt}}\n")
    (animals / "names.txt").write_text("cat\ndog\neel\n")
    with in_thread(root, grpc_port=0, model_control="explicit", load_model=["*"], allow=("shared-memory",)) as app:
        yield app


def test_all_examples_are_found() -> None:
    assert (len(CONSOLE), len(PROGRAMS)) == (PAGE.count("```console"), PAGE.count("```python"))


@pytest.mark.parametrize(("command", "answer"), CONSOLE)
def test_commands(served: App, command: str, answer: str) -> None:
    _, silent, url, *rest = shlex.split(command)
    assert (silent, rest[:1]) in (("-s", []), ("-s", ["-d"]))
    url = url.replace(PRINTED_ADDRESS, served.addresses.http)
    got = httpx.post(url, content=rest[1]) if rest else httpx.get(url)
    assert got.json() == json.loads(answer)
    assert got.is_success != ("error" in got.json())


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_programs(served: App, program: str, printed: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(program.replace(PRINTED_ADDRESS, served.addresses.http).replace(PRINTED_GRPC, served.addresses.grpc), {})
    assert said.getvalue() == printed


def test_the_endpoints(served: App) -> None:
    listed = set(re.findall(r"^\| (GET|POST|PUT|DELETE) \| `([^`]+)`", PAGE, re.MULTILINE))
    of_models = [(method, path) for method, path in listed if path.startswith("/v2/models/{model}") and "/trace/" not in path]
    listed |= {(method, path.replace("{model}", "{model}/versions/{version}")) for method, path in of_models}
    paths = httpx.get(f"http://{served.addresses.http}/openapi.json").json()["paths"]
    assert listed == {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_the_grpc_methods() -> None:
    rows = [
        (re.findall(r"`(\w+)`", names), said) for names, said in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    ]
    told = {name: said for names, said in rows for name in names if name in METHODS.keys() | INFERENCES}
    assert told.keys() == METHODS.keys() | INFERENCES
    assert {name for name, said in told.items() if "UNIMPLEMENTED" in said} == {
        name for name, entry in METHODS.items() if entry.run is None
    }


def test_the_extensions(served: App) -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", TRITON_PAGE.partition("## Extensions")[2].partition("## What differs")[0], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert set(httpx.get(f"http://{served.addresses.http}/v2").json()["extensions"]) <= told
