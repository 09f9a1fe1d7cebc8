from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.config import LaneDefaults, Settings
from server.errors import ModelDefect
from server.repository.declare.said import Loadable
from server.repository.loader import describe
from server.repository.store import Entry, Store
from server.tensors import TensorSpec
from tests.server.running import infer_json, running, wire

T4 = """backend: emulated
emulate: {table: t4, model: resnet50, precision: int8}
inputs: {x: {dtype: FP32, shape: [-1, 16]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""
TABLE = "device: {name: Pocket 9}\nmodels: {net: {fp32: {fit: {alpha: 0.01, beta: 0.01}}}}\n"


def place_emulated(repository: Path, yaml: str = T4, name: str = "net", version: str = "1") -> Path:
    """An entry without a model: NAME/1/ is empty."""
    (repository / name / version).mkdir(parents=True)
    (repository / name / "model.yaml").write_text(yaml)
    return repository / name


def described(path: Path, **lanes: Any) -> Loadable:
    return describe(Entry(path.name, path, ("1",)), "1", Settings(repository=path.parent, lanes=LaneDefaults(**lanes)))


def defect(path: Path) -> str:
    with pytest.raises(ModelDefect) as caught:
        described(path)
    return str(caught.value)


def test_an_empty_version_is_enough(tmp_path: Path) -> None:
    loadable = described(place_emulated(tmp_path), threads=2, count=3)
    assert Store(tmp_path).scan().problems == ()
    assert loadable.spec.inputs == (TensorSpec("x", "FP32", (-1, 16), 0),)
    assert loadable.spec.outputs == (TensorSpec("y", "FP32", (-1, 4), 0),)
    assert (loadable.spec.backend, loadable.spec.precision) == ("emulated", "int8")
    assert loadable.trust_batch_axis
    assert (loadable.config.lanes.kind, loadable.config.lanes.count) == ("thread", 1)
    assert loadable.note.startswith("emulated NVIDIA T4: the times of resnet50 int8 are a published table's; nothing was measured")


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    entry = place_emulated(tmp_path, T4.replace("table: t4, model: resnet50, precision: int8", "table: mine.yaml, model: net"))
    (entry / "mine.yaml").write_text(TABLE)
    loadable = described(entry)
    assert loadable.spec.precision == "fp32"
    assert "emulated Pocket 9" in loadable.note
    assert loadable.spec.options["table"] == str(entry / "mine.yaml")


def test_tensors_that_are_not_per_row(tmp_path: Path) -> None:
    entry = place_emulated(tmp_path, T4.replace("shape: [-1, 4]", "shape: [1, 4]") + "lanes: {count: 2}\n")
    loadable = described(entry)
    assert loadable.spec.outputs[0].batch_axis is None
    assert loadable.config.lanes.count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: resnet50", "model: resnet5"), "model.yaml:2: emulate: "),
        (("model: resnet50", "model: resnet5"), "no model 'resnet5'; did you mean 'resnet50'?"),
        (("precision: int8", "precision: int4"), "models.resnet50: no precision 'int4'; did you mean 'int8'?"),
        (("table: t4", "table: ../t4.yaml"), "model.yaml:2: emulate.table: expected t4 or the name of a .yaml file beside model.yaml"),
        (("table: t4", "table: gone.yaml"), "gone.yaml: no such file"),
        (("model: resnet50, ", ""), "model.yaml:2: emulate.model: must be given"),
        (("precision: int8", "precission: int8"), "emulate.precission: unknown key 'precission'; did you mean 'precision'?"),
        (
            ("backend: emulated", "backend: onnxruntime"),
            "model.yaml:1: backend: `backend: emulated` and `emulate: {model: …}` belong together",
        ),
        (("emulate: {table", "#"), "belong together; emulate is missing"),
        (("dtype: FP32, shape: [-1, 16]", "shape: [-1, 16]"), "inputs.x: the file doesn't say its dtype, so it must be given here"),
        (("outputs:", "lanes: {kind: inline}\noutputs:"), "model.yaml:4: lanes.kind: an emulated device sleeps in a thread"),
        (
            ("outputs:", "precision: {active: fp16}\noutputs:"),
            "model.yaml:4: precision.active: 'fp16' isn't among those of emulate.precisions: int8",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in T4
    assert message in defect(place_emulated(tmp_path, T4.replace(*change)))


def test_a_table_over_a_link_that_leads_out(tmp_path: Path) -> None:
    entry = place_emulated(tmp_path / "models", T4.replace("table: t4", "table: mine.yaml"))
    (tmp_path / "outside.yaml").write_text(TABLE)
    (entry / "mine.yaml").symlink_to(tmp_path / "outside.yaml")
    assert "a link that leads out of the repository" in defect(entry)


async def test_it_is_served_and_says_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place_emulated(tmp_path)
    rows = np.arange(32, dtype=np.float32).reshape(2, 16)
    async with running(tmp_path) as app, wire(app) as client, httpx.AsyncClient() as plain:
        answer = await client.ask(infer_json("net", rows))
        assert answer.json()["outputs"][0]["data"] == [120, 121, 122, 123, 376, 377, 378, 379]
        url = f"http://{app.addresses.http}/v2"
        assert (await plain.get(f"{url}/models/net")).json()["platform"] == "emulated"
        (row,) = (await plain.post(f"{url}/repository/index")).json()
        assert row["state"] == "READY"
        assert row["reason"].startswith("emulated NVIDIA T4")
        metrics = (await plain.get(f"http://{app.addresses.metrics}/metrics")).text
        assert 'tidegate_emulated{model="net",version="1"} 1.0' in metrics
        assert 'tidegate_rows_total{model="net",precision="int8",version="1"} 2.0' in metrics
    log = capfd.readouterr().err
    assert "emulated NVIDIA T4" in log
    assert '"platform":"emulated"' in log


LADDER = """backend: emulated
emulate: {table: t4, model: resnet50, precisions: [fp32, fp16, int8]}
batching: {latency_objective: 50ms}
precision: {policy: ladder, ladder: [fp32, int8]}
inputs: {x: {dtype: FP32, shape: [-1, 16]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        (("", ""), "fp32"),
        (("policy: ladder", "active: int8, policy: ladder"), "int8"),
        (("ladder: [fp32, int8]", "ladder: [fp16, int8]"), "fp16"),
        (("precision: {policy: ladder, ladder: [fp32, int8]}", "precision: {active: fp16}"), "fp16"),
        (("precisions: [fp32", "precision: int8, precisions: [fp32"), "fp32"),
    ],
)
def test_a_version_of_several_precisions(tmp_path: Path, change: tuple[str, str], precision: str) -> None:
    loadable = described(place_emulated(tmp_path, LADDER.replace(*change)))
    assert (loadable.spec.precision, loadable.spec.options["precision"]) == (precision, precision)
    assert set(loadable.expected) == {"fp32", "fp16", "int8"}
    assert loadable.expected["int8"][8] < loadable.expected["fp16"][8] < loadable.expected["fp32"][8]
    assert f"the times of resnet50 {precision} are" in loadable.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("[fp32, int8]", "[fp32, fp8]"),
            "model.yaml:4: precision.ladder.1: 'fp8' isn't among those of emulate.precisions: fp32, fp16, int8",
        ),
        (("batching: {latency_objective: 50ms}", ""), "model.yaml:4: precision.policy: ladder steps by batching.latency_objective, which"),
        (
            ("policy: ladder, ladder", 'policy: schedule, schedule: ["08:00 bf16"], ladder'),
            "precision.schedule.0: 'bf16' isn't among those",
        ),
        (
            ("precisions: [fp32, fp16, int8]", "precisions: [int8]"),
            "precision.ladder.0: 'fp32' isn't among those of emulate.precisions: int8",
        ),
        (("precisions: [fp32, fp16, int8]", "precisions: [fp32, int8, int4]"), "no precision 'int4'"),
    ],
)
def test_precisions_that_are_not_there_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert message in defect(place_emulated(tmp_path, LADDER.replace(*change)))


def test_a_guard_needs_its_reference(tmp_path: Path) -> None:
    yaml = T4.replace("inputs:", "precision: {guard: {sample: 1%}}\ninputs:")
    assert "precision.guard: needs the reference, which isn't among those of emulate.precisions: int8" in defect(
        place_emulated(tmp_path, yaml)
    )
