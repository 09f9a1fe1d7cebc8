"""Decoupled models behind the real server, by the stock client: any number of answers, stopped, held and lost in mid-stream."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

from server.app import App
from tests.server.python_models import place_python
from tests.server.running import in_thread, json_body
from tests.server.test_ensemble import one

YAML = """backend: python
python: {code: model.py:Count, options: {mark: MARK}}
decoupled: true
inputs: {x: {dtype: INT32, shape: [1]}}
outputs: {y: {dtype: INT32, shape: [1]}, text: {dtype: BYTES, shape: [-1]}}
lanes: {run_limit: 1s}
"""
CODE = """
import os, time

class Count:
    def load(self, context):
        self.mark = context.options["mark"]
    def infer(self, inputs):
        wanted = int(inputs["x"][0])
        self.say(f"begin {wanted}")
        try:
            for number in range(abs(wanted)):
                if wanted == 666 and number == 2:
                    os._exit(3)
                if wanted == 777 and number == 2:
                    raise ValueError("enough")
                if wanted == 888 and number == 2:
                    time.sleep(1000)
                self.say(f"{number}")
                yield {"y": [number], "text": [b"x" * (100_000 if wanted < 0 else 1)]}
        finally:
            self.say("end")
    def say(self, text):
        with open(self.mark, "a") as file:
            file.write(text + "\\n")
"""


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mark") / "said"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, mark: Path) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("models")
    place_python(folder, "count", CODE, YAML.replace("MARK", str(mark)))
    (folder / "over" / "1").mkdir(parents=True)
    (folder / "over" / "model.yaml").write_text(one("count"))
    with in_thread(folder, grpc_port=0, limits={"pipeline_bytes": 300_000}) as app:
        yield app


class Answers:
    """What came on a stream, in order: answers or errors."""

    def __init__(self) -> None:
        self.all: queue.Queue[Any] = queue.Queue()

    def put(self, result: Any, error: Any) -> None:
        self.all.put(error if error is not None else result)

    def next(self) -> Any:
        return self.all.get(timeout=20)

    def until_final(self) -> list[Any]:
        """All answers up to the one that says that it's the last, that one included."""
        found = [self.next()]
        while not final(found[-1]):
            found.append(self.next())
        return found


def final(answer: Any) -> bool:
    return isinstance(answer, InferenceServerException) or bool(answer.get_response().parameters["triton_final_response"].bool_param)


@contextmanager
def streaming(app: App) -> Iterator[tuple[client.InferenceServerClient, Answers]]:
    answers = Answers()
    with client.InferenceServerClient(app.addresses.grpc) as triton:
        triton.start_stream(answers.put)
        yield triton, answers


def ask(triton: client.InferenceServerClient, x: int, outputs: Sequence[str] = (), **more: Any) -> None:
    tensor = client.InferInput("x", [1], "INT32")
    tensor.set_data_from_numpy(np.array([x], np.int32))
    asked = [client.InferRequestedOutput(name) for name in outputs] or None
    triton.async_stream_infer("count", [tensor], outputs=asked, **more)


def numbers(answers: Sequence[Any]) -> list[int]:
    return [int(answer.as_numpy("y")[0]) for answer in answers if answer.get_response().outputs]


def said(mark: Path, text: str) -> bool:
    return text in mark.read_text().splitlines()


def until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_any_number_of_answers(served: App, count: int) -> None:
    with streaming(served) as (triton, answers):
        ask(triton, count, enable_empty_final_response=True, request_id="a")
        found = answers.until_final()
        assert numbers(found) == list(range(count))
        assert [answer.get_response().id for answer in found] == ["a"] * (count + 1)


def test_the_empty_last_answer_comes_only_to_those_who_ask(served: App) -> None:
    with streaming(served) as (triton, answers):
        ask(triton, 2)
        ask(triton, 1, enable_empty_final_response=True)
        assert numbers(answers.until_final()) == [0, 1, 0]


def test_only_the_outputs_that_are_asked_for(served: App) -> None:
    with streaming(served) as (triton, answers):
        ask(triton, 2, ["y"], enable_empty_final_response=True)
        found = answers.until_final()
        assert [[output.name for output in answer.get_response().outputs] for answer in found] == [["y"], ["y"], []]


def test_it_counts_as_one_request(served: App) -> None:
    figures = served.router.figures("count", "")
    assert figures is not None
    before = sum(figures.duration[:-1])
    with streaming(served) as (triton, answers):
        ask(triton, 5, enable_empty_final_response=True)
        answers.until_final()
    assert sum(figures.duration[:-1]) == before + 1


def counts(app: App) -> dict[tuple[str, str], int]:
    """How many of the requests' n-th responses were each outcome, as a stock client is told."""
    with client.InferenceServerClient(app.addresses.grpc) as triton:
        (found,) = triton.get_inference_statistics("count").model_stats
    parts = ("success", "fail", "empty_response", "cancel", "compute_infer", "compute_output")
    durations = {(n, part): getattr(each, part) for n, each in found.response_stats.items() for part in parts}
    assert all(one.ns > 0 for key, one in durations.items() if one.count and key[1] == "success")
    return {key: one.count for key, one in durations.items()}


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0, {("0", "empty_response"): 1}),
        (2, {("0", "success"): 1, ("1", "success"): 1, ("2", "empty_response"): 1}),
        (777, {("0", "success"): 1, ("1", "success"): 1, ("2", "fail"): 1}),
        (666, {("0", "success"): 1, ("1", "success"): 1, ("2", "fail"): 1}),
    ],
)
def test_each_response_counts_in_the_statistics(served: App, x: int, expected: dict[tuple[str, str], int]) -> None:
    """An answer as a success that was computed and handed on, the end as what it was."""
    before, firsts = counts(served), first_responses(served)
    with streaming(served) as (triton, answers):
        ask(triton, x, enable_empty_final_response=True)
        answers.until_final()
    until(lambda: sum(counts(served).values()) > sum(before.values()))
    more = {key: count - before.get(key, 0) for key, count in counts(served).items()}
    for (n, outcome), count in list(expected.items()):
        expected[n, "compute_infer"] = count
        if outcome != "empty_response":
            expected[n, "compute_output"] = count
    assert {key: count for key, count in more.items() if count} == expected
    assert first_responses(served) - firsts == (("0", "success") in expected)


def first_responses(app: App) -> int:
    """Requests whose first response was timed."""
    return int(sum(sum(figures.first[:-1]) for figures in app.recorder.of("count", "1")))


def test_who_can_take_one_answer_only_is_refused_in_triton_s_words(served: App) -> None:
    connection = HTTPConnection(served.addresses.http)
    connection.request("POST", "/v2/models/count/infer", json_body(np.array([1], np.int32)))
    answer = connection.getresponse()
    assert answer.status == 501
    assert b"HTTP end point doesn't support models with decoupled transaction policy" in answer.read()
    connection.close()
    tensor = client.InferInput("x", [1], "INT32")
    tensor.set_data_from_numpy(np.array([1], np.int32))
    with client.InferenceServerClient(served.addresses.grpc) as triton, pytest.raises(InferenceServerException) as caught:
        triton.infer("count", [tensor])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "ModelInfer RPC doesn't support models with decoupled transaction policy" in caught.value.message()


def test_clients_can_read_that_it_is_decoupled(served: App) -> None:
    with client.InferenceServerClient(served.addresses.grpc) as triton:
        assert triton.get_model_config("count").config.model_transaction_policy.decoupled


def test_it_is_no_part_of_an_ensemble(served: App) -> None:
    (entry,) = served.table.versions("over")
    assert "model 'count' is decoupled" in entry.reason


@pytest.mark.parametrize(
    ("x", "text"),
    [(666, "its process ended with status 3 after 2 answers"), (777, "ValueError: enough"), (888, "hung and was killed after 2 answers")],
)
def test_what_goes_wrong_in_mid_stream_ends_it(served: App, x: int, text: str) -> None:
    with streaming(served) as (triton, answers):
        ask(triton, x)
        *found, error = answers.until_final()
        assert numbers(found) == [0, 1]
        assert text in error.message()
        ask(triton, 1, enable_empty_final_response=True)  # the next is served
        assert numbers(answers.until_final()) == [0]


def test_who_goes_away_stops_the_generator(served: App, mark: Path) -> None:
    def cancelled() -> int:
        return sum(count for (_, outcome), count in counts(served).items() if outcome == "cancel")

    mark.write_text("")
    before = cancelled()
    with streaming(served) as (triton, answers):
        ask(triton, 1_000_000)
        answers.next()
        triton.stop_stream(cancel_requests=True)
    until(lambda: said(mark, "end"))
    assert not said(mark, "999999")
    until(lambda: cancelled() == before + 1)
    with streaming(served) as (triton, answers):
        ask(triton, 1, enable_empty_final_response=True)
        assert numbers(answers.until_final()) == [0]


def test_a_client_that_does_not_read_holds_the_generator(served: App, mark: Path) -> None:
    """Answers of 100 kB each: what a client leaves unread isn't made, but for what buffers hold."""
    mark.write_text("")
    gate = queue.Queue[None]()
    answers = Answers()

    def slow(result: Any, error: Any) -> None:
        gate.get(timeout=60)
        answers.put(result, error)

    with client.InferenceServerClient(served.addresses.grpc) as triton:
        triton.start_stream(slow)
        ask(triton, -2000, enable_empty_final_response=True)
        until(lambda: said(mark, "3"))
        before = ""
        while (now := mark.read_text()) != before:
            before = now
            time.sleep(0.3)
        made = len(now.splitlines())
        for _ in range(2001):
            gate.put(None)
        if made < 2001:
            assert numbers(answers.until_final()) == list(range(2000))
    assert made < 2001
