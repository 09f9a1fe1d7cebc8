"""Ensembles: what is refused when they're planned, and what they do behind the real server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from server.app import App
from server.engine.admission import Terms
from server.ensemble import Ensemble, Plan, plan
from server.errors import ModelDefect
from server.messages import CancelHandle, InferRequest, ModelKey, OnResponse
from server.metrics.figures import Figures
from server.repository.declare.sections import Step
from server.tensors import Tensor, TensorSpec
from tests.server.models import linear_model, linear_weights, place, two_inputs_model
from tests.server.python_models import NUMBERS, place_python
from tests.server.running import INFER, Answer, http, infer_json, running, wire

KEY = ModelKey("part", "1", "fp32")


@dataclass
class Part:
    """A part that is only looked at."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int = 8
    key: ModelKey = KEY
    terms: Terms = field(default_factory=Terms)
    figures: Figures = field(default_factory=lambda: Figures(KEY))

    def submit(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        raise AssertionError


def spec(name: str, datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


SQUARE = Part((spec("x"),), (spec("y"),))
JOIN = Part((spec("a"), spec("b")), (spec("c"),), max_rows=4)


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Step:
    return Step(model=model, inputs=inputs, outputs=outputs)


DIAMOND = (
    step("join", {"a": "left", "b": "right"}, {"c": "OUT"}),
    step("square", {"x": "IN"}, {"y": "left"}),
    step("square", {"x": "left"}, {"y": "right"}),
)


def made(
    *steps: Step, parts: dict[str, Part] | None = None, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()
) -> Plan:
    known = {"square": SQUARE, "join": JOIN} | (parts or {})
    return plan(steps, [known[one.model] for one in steps], inputs, outputs)


def test_what_is_not_declared_is_read_from_the_parts() -> None:
    found = made(*DIAMOND)
    assert (found.inputs, found.outputs, found.max_rows) == ((spec("IN"),), (spec("OUT"),), 4)
    assert made(*DIAMOND, outputs=(spec("left"),)).outputs == (spec("left"),)
    assert made(*DIAMOND, parts={"join": Part(JOIN.inputs, JOIN.outputs, max_rows=0)}).max_rows == 0


ONE = [step("square", {"x": "IN"}, {"y": "OUT"})]
TWICE = [*ONE, *ONE]
CYCLE = [step("square", {"x": "a"}, {"y": "b"}), step("square", {"x": "b"}, {"y": "a"})]
MISSPELT = [step("square", {"x": "INN"}, {"y": "OUT"})]
FIRST = "step 1 (model 'square')"


@pytest.mark.parametrize(
    ("steps", "inputs", "outputs", "text"),
    [
        (CYCLE, (), (), "the steps of 'square', 'square' wait for each other's tensors"),
        (TWICE, (), (), f"step 2 (model 'square'): tensor 'OUT' is made by {FIRST} already"),
        (MISSPELT, (spec("IN"),), (), "tensor 'INN' is no input of the ensemble and made by no step; did you mean 'IN'?"),
        ([step("square", {"z": "IN", "x": "IN"}, {"y": "OUT"})], (), (), f"{FIRST}: it has no input 'z'; expected one of x"),
        ([step("square", {"x": "IN"}, {"z": "OUT"})], (), (), f"{FIRST}: it has no output 'z'; expected one of y"),
        ([step("join", {"a": "IN"}, {"c": "OUT"})], (), (), "step 1 (model 'join'): its input 'b' is given by no tensor"),
        (ONE, (spec("IN", "INT64"),), (), "tensor 'IN' must be FP32, but what is given is INT64"),
        (ONE, (spec("IN", shape=(-1, 5)),), (), "tensor 'IN' must have the shape [-1, 4], but what is given has [-1, 5]"),
        (ONE, (), (spec("OUTT"),), "output 'OUTT' of the ensemble is made by no step; did you mean 'OUT'?"),
        (ONE, (), (spec("OUT", "FP64"),), "output 'OUT' of the ensemble must be FP64, but what is given is FP32"),
        (ONE, (spec("IN"), spec("OUT")), (), f"input 'OUT' of the ensemble is also made by {FIRST}"),
    ],
)
def test_what_does_not_fit_is_refused_by_place(
    steps: list[Step], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], text: str
) -> None:
    with pytest.raises(ModelDefect) as caught:
        made(*steps, inputs=inputs, outputs=outputs)
    assert text in str(caught.value)


# Behind the server

CHAIN = """
ensemble:
  steps:
    - {model: add, inputs: {a: h, b: x}, outputs: {total: sum, product: product}}
    - {model: double, inputs: {x: x}, outputs: {y: h}}
"""
FAILS = """
class Model:
    def infer(self, inputs):
        if (inputs["x"] < -50).any():
            raise ValueError("too cold")
        return {"y": inputs["x"] * 2}
"""


def place_chain(repository: Path, yaml: str = CHAIN, code: str = FAILS) -> None:
    place(repository, "add", lambda path: two_inputs_model(path, width=2))
    place_python(repository, "double", code)
    place_ensemble(repository, "chain", yaml)


def place_ensemble(repository: Path, name: str, yaml: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "model.yaml").write_text(dedent(yaml))


def one(model: str, inputs: str = "{x: x}") -> str:
    return f"ensemble: {{steps: [{{model: {model}, inputs: {inputs}, outputs: {{y: y}}}}]}}"


async def ask(app: App, data: bytes) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(data)


def x(*values: float) -> Tensor:
    return np.array([[value, value] for value in values], np.float32)


async def test_steps_hand_their_tensors_on(tmp_path: Path) -> None:
    place_chain(tmp_path)
    async with running(tmp_path) as app:
        answers = await asyncio.gather(*(ask(app, infer_json("chain", x(number, number + 1))) for number in range(16)))
        for number, answer in enumerate(answers):
            outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
            values = x(number, number + 1).ravel()
            assert outputs == {"sum": (values * 3).tolist(), "product": (values * values * 2).tolist()}
        metadata = (await ask(app, http("/v2/models/chain", method="GET"))).json()
        assert metadata["platform"] == "ensemble"
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        for name in ("chain", "add", "double"):
            figures = app.router.figures(name, "")
            assert figures is not None
            assert sum(figures.duration[:-1]) == 16
        batcher = await ask(app, http("/v2/models/chain/batcher", method="GET"))
        assert (batcher.status, "has no batcher" in batcher.json()["error"]) == (404, True)


async def test_only_what_is_asked_for_is_run(tmp_path: Path) -> None:
    yaml = CHAIN + "outputs: {h: {dtype: FP32, shape: [-1, 2]}, sum: {dtype: FP32, shape: [-1, 2]}}\n"
    place_chain(tmp_path, yaml)
    async with running(tmp_path) as app:
        answer = await ask(app, infer_json("chain", x(3), outputs=[{"name": "h"}]))
        assert [(output["name"], output["data"]) for output in answer.json()["outputs"]] == [("h", [6, 6])]
        figures = app.router.figures("add", "")
        assert figures is not None
        assert sum(figures.duration[:-1]) == 0
        answer = await ask(app, infer_json("chain", x(3), outputs=[{"name": "hh"}]))
        assert (answer.status, "unexpected inference output 'hh'" in answer.json()["error"]) == (400, True)


async def test_a_step_that_fails_names_itself(tmp_path: Path) -> None:
    place_chain(tmp_path)
    async with running(tmp_path) as app:
        answer = await ask(app, infer_json("chain", x(-99)))
        assert answer.status == 500
        assert answer.json()["error"].startswith(
            "ensemble 'chain', step 2 (model 'double'): model 'double' version 1: infer failed: ValueError: too cold"
        )
        assert (
            (await ask(app, infer_json("chain", np.zeros((1, 3), np.float32))))
            .json()["error"]
            .startswith("unexpected shape for input 'x' for model 'chain'")
        )


async def test_a_deadline_holds_for_the_whole(tmp_path: Path) -> None:
    slow = FAILS.replace("        return", "        __import__('time').sleep(0.4 if inputs['x'].max() > 5 else 0)\n        return")
    place_chain(tmp_path, code=slow)
    async with running(tmp_path) as app:
        late = asyncio.ensure_future(ask(app, infer_json("chain", x(9))))
        answer = await ask(app, infer_json("chain", x(9), parameters={"timeout": 100_000}))
        assert answer.status == 503
        assert "step" in answer.json()["error"]
        assert "Request timeout expired" in answer.json()["error"]
        assert answer.headers["retry-after"]
        assert (await late).status == 200


async def test_who_goes_away_cancels_the_steps(tmp_path: Path) -> None:
    slow = FAILS.replace("        return", "        __import__('time').sleep(0.3 if inputs['x'].max() > 5 else 0)\n        return")
    place_chain(tmp_path, code=slow)
    async with running(tmp_path) as app:
        async with wire(app) as connection:
            connection.send(infer_json("chain", x(9)))
            front = app.router.route("chain", "").engine
            assert isinstance(front, Ensemble)
            while not front.running:
                await asyncio.sleep(0.001)
        while front.running:
            await asyncio.sleep(0.001)
        assert (await ask(app, infer_json("chain", x(1)))).status == 200
        add = app.router.figures("add", "")
        assert add is not None
        assert sum(add.duration[:-1]) == 1  # the second request's alone


async def test_ensembles_of_ensembles(tmp_path: Path) -> None:
    place(tmp_path, "linear", lambda path: linear_model(path, 8, 8))
    place_ensemble(tmp_path, "a", "ensemble: {steps: [{model: b, inputs: {h: x}, outputs: {y: y}}]}")
    place_ensemble(tmp_path, "b", "ensemble: {steps: [{model: linear, version: 1, inputs: {x: h}, outputs: {y: y}}]}")
    weight, bias = linear_weights(8, 8)
    data = np.ones((2, 8), np.float32)
    async with running(tmp_path) as app:
        answer = await ask(app, infer_json("a", data))
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], (data @ weight + bias).ravel(), rtol=1e-5)


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (one("nobody"), "waits for its part, model 'nobody': there is none"),
        (one("double, version: 7"), "waits for its part, model 'double' version 7: there is none"),
        (one("chain"), "that is the ensemble itself"),
        (one("bad"), "waits for its part, model 'bad': UNAVAILABLE ("),
        (one("double", "{z: x}"), "step 1 (model 'double'): its input 'x' is given by no tensor"),
        (f"backend: onnxruntime\n{one('double')}", "an ensemble is run by its parts: leave it out"),
        ("ensemble: {steps: []}", "ensemble.steps"),
        (one("double, input: {x: x}"), "unknown key 'input'; did you mean 'inputs'?"),
    ],
)
async def test_what_cannot_serve_says_why(tmp_path: Path, yaml: str, text: str) -> None:
    place_chain(tmp_path, yaml)
    place_python(tmp_path, "bad", "import nosuch\n", NUMBERS)
    async with running(tmp_path) as app:
        (entry,) = app.table.versions("chain")
        assert entry.state == "UNAVAILABLE"
        assert text in entry.reason
        answer = await ask(app, http(INFER.format("chain"), json.dumps({"inputs": []}).encode()))
        assert answer.status == 503


async def test_it_follows_its_parts(tmp_path: Path) -> None:
    place_chain(tmp_path)
    async with running(tmp_path) as app:
        assert app.table.default("chain") is not None
        part = app.table.default("add")
        assert part is not None
        app.table.remove("add", "1")
        (entry,) = app.table.versions("chain")
        assert entry.reason == "waits for its part, model 'add': there is none"
        assert app.table.default("chain") is None
        app.table.put(part)
        assert app.table.default("chain") is entry
        assert (await ask(app, infer_json("chain", x(1)))).status == 200
