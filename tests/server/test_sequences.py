"""Stateful models behind the real server: sequences keep their state, in order, together in runs, and are forgotten in time."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from server.app import App
from server.sequences import MAX_WAITING, Sequences
from server.tensors import Tensor
from tests.server.models import place, value, write_model
from tests.server.python_models import place_python
from tests.server.running import Answer, Wire, http, in_thread, infer_json, running, wire

STATE = "sequence: {state: [{input: sum, output: sums, batch_axis: 1}]}\n"
MUST_START = "inference request for sequence 7 to model 'adder' must specify the START flag on the first request of the sequence"


SLOW, BAD = 40.0, 99.0
CODE = """
import time
class Model:
    def infer(self, inputs):
        if (inputs["x"] > 50).any():
            raise ValueError("too much")
        if (inputs["x"] > 30).any():
            time.sleep(1)
        total = inputs["sum"] + inputs["x"]
        return {"y": total, "sums": total}
"""
YAML = """backend: python
python: {code: model.py:Model}
sequence: {state: [{input: sum, output: sums}]}
inputs: {x: {dtype: FP32, shape: [-1, 2]}, sum: {dtype: FP32, shape: [-1, 2]}}
outputs: {y: {dtype: FP32, shape: [-1, 2]}, sums: {dtype: FP32, shape: [-1, 2]}}
"""


def adder_model(path: Path) -> Path:
    """y = what x's rows have come to so far, FP32 [N, 2]; the state lies [2, N], its rows on axis 1."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
        helper.make_node("Add", ["sum", "turned"], ["sums"]),
        helper.make_node("Transpose", ["sums"], ["y"], perm=[1, 0]),
    ]
    return write_model(path, nodes, [value("x", ["N", 2]), value("sum", [2, "N"])], [value("y", ["N", 2]), value("sums", [2, "N"])])


def x(number: float, rows: int = 1) -> Tensor:
    return np.full((rows, 2), number, np.float32)


def body(array: Tensor, sequence: Any, *, start: bool = False, end: bool = False, **more: Any) -> bytes:
    parameters = {"sequence_id": sequence, **({"sequence_start": True} if start else {}), **({"sequence_end": True} if end else {}), **more}
    return infer_json("adder", array, parameters=parameters)


async def told(connection: Wire, array: Tensor, sequence: Any, **flags: Any) -> list[float] | str:
    answer = await connection.ask(body(array, sequence, **flags))
    return result(answer)


def result(answer: Answer) -> list[float] | str:
    if answer.status != 200:
        return f"{answer.status} {answer.json()['error']}"
    (output,) = answer.json()["outputs"]
    assert output["name"] == "y"
    return list(output["data"])


def front(app: App) -> Sequences:
    found = app.router.route("adder", "").engine
    assert isinstance(found, Sequences)
    return found


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("adder")
    place(folder, "adder", adder_model, yaml=STATE)
    with in_thread(folder) as app:
        yield app


async def test_each_sequence_has_its_own_state(tmp_path: Path) -> None:
    place(tmp_path, "adder", adder_model, yaml=STATE)
    async with running(tmp_path) as app, wire(app) as connection:
        metadata = (await connection.ask(http("/v2/models/adder", method="GET"))).json()
        assert [[spec["name"] for spec in metadata[side]] for side in ("inputs", "outputs")] == [["x"], ["y"]]
        assert (await connection.ask(http("/v2/models/adder/config", method="GET"))).json()["sequence_batching"]["direct"] is not None
        assert await told(connection, x(1), 7, start=True) == [1, 1]
        assert await told(connection, x(5), "seven", start=True) == [5, 5]
        assert await told(connection, x(2), 7) == [3, 3]
        assert await told(connection, x(5), "seven", end=True) == [10, 10]
        assert await told(connection, x(3), 7, end=True) == [6, 6]
        assert front(app).active == 0
        assert MUST_START in str(await told(connection, x(1), 7))
        assert await told(connection, x(1), 7, start=True) == [1, 1]
        assert await told(connection, x(9), 7, start=True, end=True) == [9, 9]  # begun again
        assert await told(connection, x(1, 3), 8, start=True) == [1] * 6
        assert await told(connection, x(1, 3), 8) == [2] * 6
        assert "has 2 rows; the sequence has 3" in str(await told(connection, x(1, 2), 8))


@pytest.mark.parametrize("sequence", [41, 2**40, "forty-one"])
def test_stock_clients(tmp_path: Path, sequence: int | str) -> None:
    """Their flags and ids, over both edges and a stream."""
    place(tmp_path, "adder", adder_model, yaml=STATE)
    found: list[float] = []
    streamed = queue.Queue[Any]()
    with in_thread(tmp_path, grpc_port=0) as app:
        for module, address in ((tritonclient.http, app.addresses.http), (tritonclient.grpc, app.addresses.grpc)):
            with module.InferenceServerClient(address) as triton:
                for step in range(3):
                    flags = {"sequence_id": sequence, "sequence_start": step == 0, "sequence_end": step == 2}
                    found.append(float(triton.infer("adder", tensors(module, step + 1), **flags).as_numpy("y")[0, 0]))
        with tritonclient.grpc.InferenceServerClient(app.addresses.grpc) as triton:
            triton.start_stream(lambda result, error: streamed.put(error or float(result.as_numpy("y")[0, 0])))
            for step in range(3):
                flags = {"sequence_id": sequence, "sequence_start": step == 0, "sequence_end": step == 2}
                triton.async_stream_infer("adder", tensors(tritonclient.grpc, step + 1), **flags)
            found += [streamed.get(timeout=20) for _ in range(3)]
        assert front(app).active == 0
    assert found == [1, 3, 6] * 3


def tensors(module: Any, number: float) -> list[Any]:
    tensor = module.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(x(number))
    return [tensor]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "400 inference request to model 'adder' must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 0}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": ""}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": True}, "must be a whole number or a string, got True"),
        ({"sequence_id": "x" * 129}, "string correlation ID cannot be longer than 128 bytes"),
        ({"sequence_id": 7, "sequence_start": 1}, "parameter 'sequence_start' of an inference request to model 'adder' must be true"),
        ({"sequence_id": 7}, MUST_START),
    ],
)  # fmt: skip
def test_parameters_that_are_wrong(adder: App, parameters: dict[str, Any], text: str) -> None:
    async def ask() -> Answer:
        async with wire(adder) as connection:
            return await connection.ask(infer_json("adder", x(1), parameters=parameters))

    assert text in str(result(asyncio.run(ask())))
    assert front(adder).active == 0


async def test_the_state_is_nobody_s_business(tmp_path: Path) -> None:
    place(tmp_path, "adder", adder_model, yaml=STATE)
    async with running(tmp_path) as app, wire(app) as connection:
        begun = {"sequence_id": 7, "sequence_start": True}
        answer = await connection.ask(infer_json("adder", x(1), parameters=begun, outputs=[{"name": "sums"}]))
        assert "unexpected inference output 'sums'" in str(result(answer))
        answer = await connection.ask(infer_json("adder", x(1), parameters=begun, outputs=[{"name": "y"}]))
        assert result(answer) == [1, 1]
        assert await told(connection, x(1), 7) == [2, 2]


async def test_many_sequences_share_runs_and_stay_in_order(tmp_path: Path) -> None:
    """All at once, on as many connections: each sequence's answers are its running sums, and runs hold rows of several."""
    place(tmp_path, "adder", adder_model, yaml=STATE + "batching: {max_wait: 5ms}\nlanes: {kind: thread, count: 1}\n")
    steps, sequences = 8, 20
    async with running(tmp_path) as app:

        async def one(number: int) -> list[Any]:
            async with wire(app) as connection:
                for step in range(steps):
                    connection.send(body(x(number), number, start=step == 0, end=step == steps - 1))
                return [result(await connection.answer()) for _ in range(steps)]

        found = await asyncio.gather(*(one(number) for number in range(1, sequences + 1)))
        assert found == [[[number * step] * 2 for step in range(1, steps + 1)] for number in range(1, sequences + 1)]
        figures = app.router.figures("adder", "")
        assert figures is not None
        assert sum(figures.batches.values()) < steps * sequences
        assert front(app).active == 0


async def test_what_fails_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    place_python(tmp_path, "adder", CODE, YAML)
    async with running(tmp_path) as app, wire(app) as connection:
        assert "too much" in str(await told(connection, x(BAD), 7, start=True))
        assert MUST_START in str(await told(connection, x(1), 7))
        assert await told(connection, x(1), 7, start=True) == [1, 1]
        assert "too much" in str(await told(connection, x(BAD), 7))
        assert await told(connection, x(2), 7) == [3, 3]
        for number in (BAD, 4):  # one fails while the next waits
            connection.send(body(x(number), 7))
        assert "too much" in str(result(await connection.answer()))
        assert result(await connection.answer()) == [7, 7]


async def test_who_goes_away_leaves_the_sequence_to_the_next(tmp_path: Path) -> None:
    place(tmp_path, "adder", adder_model, yaml=STATE + "batching: {max_wait: 50ms}\nlanes: {kind: thread, count: 1}\n")
    async with running(tmp_path) as app, wire(app) as connection:
        assert await told(connection, x(1), 7, start=True) == [1, 1]
        async with wire(app) as leaver:
            leaver.send(body(x(100), 7) + body(x(100), 7))
            while not next(iter(front(app)._kept.values())).waiting:
                await asyncio.sleep(0)
        found = await told(connection, x(2), 7)
        assert found in ([3, 3], [103, 103], [203, 203])  # as far as it had come when its client went
        assert isinstance(found, list)
        assert await told(connection, x(2), 7) == [found[0] + 2] * 2


async def test_the_unused_are_forgotten(tmp_path: Path) -> None:
    place(tmp_path, "adder", adder_model, yaml=STATE.replace("]}\n", "], idle_timeout: 100ms, max_sequences: 2}\n"))
    async with running(tmp_path) as app, wire(app) as connection:
        for number in (7, 8):
            assert await told(connection, x(1), number, start=True) == [1, 1]
        found = str(await told(connection, x(1), 9, start=True))
        assert found.startswith("503 model 'adder': exceeds maximum number of 2 sequences (limit: sequence.max_sequences)")
        while front(app).active:
            await asyncio.sleep(0.01)
        assert MUST_START in str(await told(connection, x(1), 7))
        assert await told(connection, x(1), 9, start=True) == [1, 1]


async def test_a_sequence_holds_so_many_requests_and_no_more(tmp_path: Path) -> None:
    place_python(tmp_path, "adder", CODE, YAML)
    async with running(tmp_path) as app:

        async def many() -> list[Any]:
            async with wire(app) as connection:
                for _ in range(60):
                    connection.send(body(x(1), 7))
                return [result(await connection.answer()) for _ in range(60)]

        async with wire(app) as connection:
            assert await told(connection, x(0), 7, start=True) == [0, 0]
            connection.send(body(x(SLOW), 7))
            while (kept := next(iter(front(app)._kept.values()))).turn is None:
                await asyncio.sleep(0)
            found = [answer for each in await asyncio.gather(*(many() for _ in range(5))) for answer in each]
            assert kept.state["sum"][0, 0] == SLOW + MAX_WAITING
        refused = [answer for answer in found if isinstance(answer, str)]
        assert len(refused) == 300 - MAX_WAITING
        assert all(f"has {MAX_WAITING} requests that wait (limit: sequence.waiting)" in answer for answer in refused)


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("sequence: {state: [{input: summ, output: sums}]}", "inputs.summ: the model has none of this name; did you mean 'sum'?"),
        ("sequence: {state: [{input: sum, output: z}]}", "outputs.z: the model has none of this name"),
        ("sequence: {state: [{input: sum, output: sums}]}", "only the axis that counts rows may vary"),
        ("sequence: {state: [{input: sum, output: sums, batch_axis: 2}]}", "so no axis 2"),
        ("sequence: {state: []}", "sequence.state"),
        (STATE + "decoupled: true", "neither a decoupled model nor an ensemble keeps a state"),
    ],
)  # fmt: skip
async def test_what_cannot_be_a_state(tmp_path: Path, yaml: str, text: str) -> None:
    place(tmp_path, "adder", adder_model, yaml=yaml)
    async with running(tmp_path) as app:
        (entry,) = app.table.versions("adder")
        assert text in entry.reason


_STEPS = st.lists(st.tuples(st.integers(1, 3), st.integers(-5, 5), st.booleans(), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None)
@given(steps=_STEPS)
def test_any_interleaving_is_what_a_dict_would_say(adder: App, steps: list[tuple[int, int, bool, bool]]) -> None:
    """However starts, ends and sequences mix, sent at once: the answers are those of a plain dict of sums."""
    sums: dict[int, int] = {}
    expected: list[Any] = []
    for sequence, number, start, end in steps:
        if sequence not in sums and not start:
            expected.append("400")
            continue
        sums[sequence] = number + (0 if start else sums[sequence])
        expected.append([float(sums[sequence])] * 2)
        if end:
            del sums[sequence]

    async def ask() -> list[list[float] | str]:
        async with wire(adder) as connection:
            for number in (1, 2, 3):
                await told(connection, x(0), number, start=True, end=True)
            for sequence, number, start, end in steps:
                connection.send(body(x(number), sequence, start=start, end=end))
            return [result(await connection.answer()) for _ in steps]

    assert [answer[:3] if isinstance(answer, str) else answer for answer in asyncio.run(ask())] == expected
