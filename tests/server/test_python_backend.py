"""The user's own Python code behind the real server: it answers, it fails with its own line, and it takes nobody else with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from server.app import App
from server.config import Settings
from server.errors import ModelDefect
from server.lanes.opening import LanePlan, open_lanes
from server.repository.loader import describe
from server.repository.store import Entry
from server.tensors import Tensor
from tests.server.python_models import DOUBLE, NUMBERS, TEXTS, place_python
from tests.server.running import INFER, Answer, http, infer_json, running, wire

EVERY_FAULT = """
import os, sys, time
from server.errors import InvalidRequest

def deep(value):
    return 1 / value

class Model:
    def infer(self, inputs):
        what = inputs["x"][0, 0]
        if what == 10:
            deep(0)
        if what == 11:
            sys.exit(3)
        if what == 12:
            time.sleep(1000)
        if what == 13:
            os._exit(4)
        if what == 14:
            raise InvalidRequest("x must be kind")
        if what == 15:
            return {"y": inputs["x"].astype(int).astype("complex64")}
        if what == 16:
            return {"y": inputs["x"][:, :1]}
        if what == 17:
            return {"z": 1}
        if what == 18:
            return [1]
        if what == 19:
            print("hello from the model")
            print("and", "again")
        if what == 20:
            return ({"y": row} for row in (inputs["x"], inputs["x"]))
        return {"y": (inputs["x"] * 2).tolist()}
"""
SKIP = "warmup: {skip: true}\n"


def row(value: float, rows: int = 1) -> Tensor:
    return np.full((rows, 2), value, np.float32)


async def ask(app: App, model: str, x: Tensor) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(infer_json(model, x))


def reason(app: App, model: str) -> str:
    (entry,) = app.table.versions(model)
    return entry.reason


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    folder = tmp_path_factory.mktemp("faulty")
    place_python(folder, "m", EVERY_FAULT, NUMBERS + SKIP)
    async with running(folder) as app:
        yield app


async def test_it_answers_in_batches_from_a_process_of_its_own(tmp_path: Path) -> None:
    place_python(tmp_path, "double", yaml=NUMBERS + "batching: {max_rows: 8, max_wait: 20ms}\n")
    async with running(tmp_path) as app:
        entry = app.table.default("double")
        assert entry is not None
        assert entry.engine is not None
        assert entry.lanes == "1 x process with 1 threads: backend python runs the user's own code"
        assert (entry.platform, entry.engine.max_rows, entry.engine.lanes[0].kind) == ("python", 8, "process")
        answers = await asyncio.gather(*(ask(app, "double", row(number)) for number in range(24)))
        assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[2 * number] * 2 for number in range(24)]


async def test_the_user_s_module_is_never_imported_by_the_server(tmp_path: Path) -> None:
    mark = tmp_path / "pids"
    code = f"import os\nopen({str(mark)!r}, 'a').write(f'{{os.getpid()}} ')\n{DOUBLE}"
    place_python(tmp_path / "models", "double", code)
    async with running(tmp_path / "models") as app:
        entry = app.table.default("double")
        assert entry is not None
        assert entry.engine is not None
        assert mark.read_text().split() == [str(getattr(lane, "pid", 0)) for lane in entry.engine.lanes]


async def test_it_is_loaded_with_what_model_yaml_says_and_unloaded(tmp_path: Path) -> None:
    mark = tmp_path / "unloaded"
    code = f"""
    import helper
    class Model:
        def load(self, context):
            self.context = context
            assert (context.model, context.version, context.device, context.threads) == ("m", "1", "cpu", 2)
            assert [spec.name for spec in context.inputs] == ["x"]
        def infer(self, inputs):
            return {{"y": inputs["x"] * self.context.options["scale"] + helper.MORE}}
        def unload(self):
            open({str(mark)!r}, "w").write("bye")
            raise ValueError("too late to matter")
    """
    yaml = NUMBERS.replace("model.py:Model", "model.py:Model, options: {scale: 3}") + "lanes: {threads: 2}\n"
    entry = place_python(tmp_path / "models", "m", code, yaml)
    (entry / "1" / "helper.py").write_text("MORE = 1\n")
    async with running(tmp_path / "models") as app:
        assert (await ask(app, "m", row(2))).json()["outputs"][0]["data"] == [7, 7]
    assert mark.read_text() == "bye"


async def test_the_file_may_lie_beside_model_yaml(tmp_path: Path) -> None:
    entry = place_python(tmp_path, "m")
    (entry / "1" / "model.py").rename(entry / "model.py")
    async with running(tmp_path) as app:
        assert (await ask(app, "m", row(1))).status == 200


async def test_unbatched(tmp_path: Path) -> None:
    code = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'].sum(keepdims=True)}\n"
    yaml = NUMBERS.replace("shape: [-1, 2]", "shape: [-1], batch_axis: null", 1).replace("shape: [-1, 2]", "shape: [1], batch_axis: null")
    place_python(tmp_path, "sum", code, yaml)
    async with running(tmp_path) as app:
        assert app.table.default("sum") is not None, reason(app, "sum")
        assert (await ask(app, "sum", np.arange(5, dtype=np.float32))).json()["outputs"][0]["data"] == [10]


async def test_texts_go_in_and_out(tmp_path: Path) -> None:
    code = """
    class Model:
        def infer(self, inputs):
            return {"text": [[text.decode().upper() + "\\0"] for text in inputs["text"][:, 0]]}
    """
    place_python(tmp_path, "upper", code, TEXTS)
    texts = np.array([["grüße"], [""], ["x" * 100_000]], object)
    body = {"inputs": [{"name": "text", "shape": [3, 1], "datatype": "BYTES", "data": list(texts[:, 0])}]}
    async with running(tmp_path) as app, wire(app) as connection:
        answer = await connection.ask(http(INFER.format("upper"), json.dumps(body).encode()))
        assert answer.json()["outputs"][0]["data"] == ["GRÜSSE\0", "\0", "X" * 100_000 + "\0"]


@pytest.mark.parametrize(
    ("value", "status", "text"),
    [
        (10, 500, "model 'm' version 1: infer failed: ZeroDivisionError: division by zero (model.py:6 in deep)"),
        (14, 400, "x must be kind"),
        (15, 500, "output 'y' must be FP32 [1, 2]: got complex64; give it as float32, for example .astype('float32')"),
        (16, 500, "output 'y' must be FP32 [1, 2], got [1, 1]"),
        (17, 500, "infer must return the outputs ['y'], got ['z']"),
        (18, 500, "infer must return a dict of outputs by name, got list"),
        (20, 500, "infer yielded 2 answers; only a decoupled model gives other than 1"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_faults_are_told_by_the_user_s_own_line(faulty: App, value: float, status: int, text: str) -> None:
    answer = await ask(faulty, "m", row(value))
    assert (answer.status, text in answer.json()["error"]) == (status, True), answer.body
    assert (await ask(faulty, "m", row(1))).json()["outputs"][0]["data"] == [2, 2]


@pytest.mark.parametrize(("value", "how"), [(11, "ended with status 3"), (13, "ended with status 4"), (12, "hung and was killed")])
async def test_exits_and_hangs_are_the_lane_s_loss(tmp_path: Path, value: float, how: str) -> None:
    place_python(tmp_path, "m", EVERY_FAULT, NUMBERS + SKIP + "lanes: {run_limit: 300ms}\n")
    async with running(tmp_path) as app:
        answer = await ask(app, "m", row(value))
        assert answer.status == 500
        assert how in answer.json()["error"]
        assert (await ask(app, "m", row(1))).status == 200


async def test_what_it_prints_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place_python(tmp_path, "m", EVERY_FAULT, NUMBERS + SKIP)
    async with running(tmp_path) as app:
        assert (await ask(app, "m", row(19))).status == 200
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "model_printed" in line]
    assert [(line["model"], line["text"]) for line in lines] == [("m", "hello from the model"), ("m", "and again")]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import nosuch\n",
         "can't be imported: ModuleNotFoundError: No module named 'nosuch' (model.py:1 in <module>)"),
        ("class Model:\n    def infer(self, inputs)\n", "can't be imported: SyntaxError"),
        ("import sys\nsys.exit(5)\n", "can't be imported: SystemExit: 5 (model.py:2 in <module>)"),
        ("class Other:\n    pass\n", "python.code names 'Model', which isn't a class of it: None"),
        ("class Model:\n    pass\n", "python.code names 'Model', which has no method `infer`"),
        (DOUBLE + "    def load(self, context):\n        raise OSError('no disk')\n",
         "Model.load failed: OSError: no disk (model.py:5 in load)"),
        ("class Model:\n    def infer(self, inputs):\n        raise KeyError('k')\n",
         "warm-up failed: 'x' float32 [1, 2]: model 'm' version 1: infer failed: KeyError: 'k'"),
    ],
)  # fmt: skip
async def test_what_cannot_be_opened_says_why_and_others_serve(tmp_path: Path, code: str, text: str) -> None:
    place_python(tmp_path, "m", code)
    place_python(tmp_path, "good")
    async with running(tmp_path) as app:
        assert text in reason(app, "m")
        assert (await ask(app, "good", row(1))).status == 200


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (NUMBERS.replace("backend: python\n", ""),
         "`backend: python` and `python: {code: FILE.py:Class}` belong together; backend is missing"),
        (NUMBERS.replace("python: {code: model.py:Model}\n", ""), "belong together; python is missing"),
        (NUMBERS + "lanes: {kind: thread}\n", "model.yaml:5: lanes.kind: a user's own code runs in processes of its own only"),
        (NUMBERS.replace("model.py:Model", "other.py:Model"), "model.yaml:2: python.code: no 'other.py' in"),
        (NUMBERS.replace("model.py:Model", "../model.py:Model"), "model.yaml:2: python.code"),
        (NUMBERS.replace("inputs: {x: {dtype: FP32, shape: [-1, 2]}}\n", ""), "inputs: must be given"),
    ],
)  # fmt: skip
def test_what_model_yaml_may_not_say(tmp_path: Path, yaml: str, text: str) -> None:
    entry = place_python(tmp_path, "m", yaml=yaml)
    with pytest.raises(ModelDefect) as caught:
        describe(Entry("m", entry, ("1",)), "1", Settings(repository=tmp_path))
    assert text in str(caught.value)


def test_code_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    entry = place_python(tmp_path / "models", "m")
    (tmp_path / "evil.py").write_text(DOUBLE)
    (entry / "1" / "model.py").unlink()
    (entry / "1" / "model.py").symlink_to(tmp_path / "evil.py")
    with pytest.raises(ModelDefect, match=r"a link that leads out of the repository"):
        describe(Entry("m", entry, ("1",)), "1", Settings(repository=tmp_path / "models"))


async def test_no_lane_of_another_kind_opens_it(tmp_path: Path) -> None:
    loadable = describe(Entry("m", place_python(tmp_path, "m"), ("1",)), "1", Settings(repository=tmp_path))
    loop = asyncio.get_running_loop()
    with pytest.raises(ModelDefect, match=r"lanes.kind is 'thread', but backend 'python' runs the user's own code"):
        await loop.run_in_executor(None, open_lanes, loadable.spec, LanePlan(kind="thread"), loop)
