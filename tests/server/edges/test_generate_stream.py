"""generate_stream and generate with a model that gives any number of answers: in order, stopped, broken and given up."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import App
from server.edges.extensions.generate import MOST_WAITING, ONE_ONLY
from tests.server.python_models import place_python
from tests.server.running import in_thread
from tests.server.test_decoupled import CODE, YAML


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mark") / "said"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, mark: Path) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("models")
    place_python(folder, "count", CODE, YAML.replace("MARK", str(mark)))
    with in_thread(folder) as app:
        yield app


def ask(app: App, wanted: int, path: str = "generate_stream") -> httpx.Response:
    return httpx.post(f"http://{app.addresses.http}/v2/models/count/{path}", json={"x": wanted, "id": "7"}, timeout=30)


def events(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-1]]


def test_an_event_for_each_answer(served: App) -> None:
    for wanted in (0, 1, 5):
        said = {"id": "7", "model_name": "count", "model_version": "1", "text": "x"}
        assert events(ask(served, wanted)) == [{**said, "y": number} for number in range(wanted)]


def test_generate_is_for_one_answer(served: App) -> None:
    assert ask(served, 1, "generate").json()["y"] == 0
    for wanted in (0, 2, 50):
        answer = ask(served, wanted, "generate")
        assert (answer.status_code, answer.json()["error"]) == (400, ONE_ONLY)


def test_an_error_in_mid_stream_is_the_last_event(served: App) -> None:
    *before, last = events(ask(served, 777))
    assert [event["y"] for event in before] == [0, 1]
    assert "enough" in last["error"]
    assert len(events(ask(served, 2))) == 2


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_model_waits_for_a_client_that_does_not_read_and_ends_with_it(served: App, mark: Path) -> None:
    mark.write_text("")
    connection = http.client.HTTPConnection(served.addresses.http)
    connection.connect()
    connection.request("POST", "/v2/models/count/generate_stream", json.dumps({"x": -5000}))  # 500 MB of answers
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: {")
    said = [0]

    def still() -> bool:
        said.append(len(mark.read_text().split()))
        time.sleep(0.2)
        return said[-1] == said[-2] > 1

    until(still)
    assert said[-1] < 500  # what the sockets and the few answers ahead hold
    assert MOST_WAITING < 500
    answer.close()
    connection.close()
    until(lambda: mark.read_text().endswith("end\n"))
    until(lambda: not served.http.connections)
    assert len(events(ask(served, 3))) == 3
