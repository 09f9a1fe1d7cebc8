"""`tidegate precision plan`: figures from the manifest or from a published table, and what a ladder would make of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.backends.latency_table import BUILT_IN, read_table
from server.commands.plan.reckoning import Published, Question, ladder_of, plan
from server.precision.ladder import Cost
from tests.server.models import place
from tests.server.precision.test_ladder import Affine
from tests.server.test_ladder_serving import place_emulated, place_net

BERT = {name: Published(read_table(BUILT_IN["t4"]).curve("bert_base_128", name)) for name in ("fp32", "fp16", "int8")}
YAML = """backend: emulated
emulate: {table: t4, model: bert_base_128, precisions: [fp32, fp16, int8]}
batching: {latency_objective: 50ms}
inputs: {x: {dtype: FP32, shape: [-1, 8]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tidegate", "precision", "plan", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "160"})


def test_the_figures_are_those_of_the_device() -> None:
    lines = plan(dict(BERT), None, Question(0.05, 64))
    assert [(line.precision, line.rows) for line in lines] == [("fp32", 4), ("fp16", 25), ("int8", 48)]
    for line in lines:
        assert line.rows is not None
        seconds = BERT[line.precision].mean(line.rows)
        assert seconds * (2 - 1 / line.rows) <= 0.05 < BERT[line.precision].mean(line.rows + 1) * (2 - 1 / (line.rows + 1))
        assert (line.run_s, line.rows_per_s) == (seconds, line.rows / seconds)
    assert ladder_of(lines) == ["fp32", "fp16", "int8"]


def test_what_is_not_faster_or_not_measured_is_left_out() -> None:
    costs: dict[str, Cost | None] = {"fp32": Affine(0.002, 0.004), "fp16": Affine(0.002, 0.004), "bf16": None, "int8": Affine(0.002, 0.001)}
    lines = plan(costs, None, Question(0.05, 64))
    assert [line.left_out for line in lines] == [None, "not_faster", "unmeasured", None]
    assert ladder_of(lines) == ["fp32", "int8"]
    assert (lines[2].rows, lines[2].rows_per_s) == (None, None)


def test_an_objective_that_cannot_be_met() -> None:
    (line,) = plan({"fp32": Affine(0.1, 0.1)}, None, Question(0.05, 64))
    assert (line.rows, line.rows_per_s, line.run_s) == (0, 0.0, None)


def test_without_an_objective_the_largest_run_counts() -> None:
    (line,) = plan({"fp32": Affine(0.002, 0.001)}, None, Question(None, 32))
    assert line.rows == 32


def test_an_emulated_device(tmp_path: Path) -> None:
    (tmp_path / "bert" / "1").mkdir(parents=True)
    (tmp_path / "bert" / "model.yaml").write_text(YAML)
    done = run("bert", "--repository", str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["objective"], said["max_rows"], said["ladder"]) == (0.05, 64, ["fp32", "fp16", "int8"])
    assert said["device"] == "NVIDIA T4, bert_base_128 as published; nothing was measured"
    assert [round(line["rows_per_s"]) for line in said["precisions"]] == [163, 995, 1905]
    table = run("bert", "--repository", str(tmp_path), "--objective", "100ms").stdout
    assert "rows/s within 100 ms" in " ".join(table.split())
    assert "precision: {policy: ladder, ladder: [fp32, fp16, int8]}" in table


def test_a_manifest_of_this_processor(tmp_path: Path) -> None:
    place_net(tmp_path, parity=True)
    said = json.loads(run("net", "--repository", str(tmp_path), "--json").stdout)
    fp32, int8 = said["precisions"]
    assert int8["rows_per_s"] == pytest.approx(4 * fp32["rows_per_s"], rel=0.3)
    assert fp32["memory"] > 0
    assert said["ladder"] == ["fp32", "int8"]


def test_a_manifest_of_another_processor_says_nothing_of_this(tmp_path: Path) -> None:
    place_net(tmp_path, parity=False)
    said = json.loads(run("net", "--repository", str(tmp_path), "--json").stdout)
    assert [line["left_out"] for line in said["precisions"]] == ["unmeasured", "unmeasured"]
    assert said["ladder"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nett",), "no model 'nett'; did you mean 'net'?"),
        (("net", "--objective", "soon"), "--objective: expected a duration"),
        (("net", "--device", "t5"), "--device: no published device 't5'; expected one of here, t4"),
        (("net", "--device", "t4"), "no model 'net'"),
        (("bare",), "no manifest, so nobody measured this model; --device t4 --as MODEL"),
        (("bare", "--device", "t4", "--as", "resnet50"), "nobody says which precisions it has"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_said(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    place_net(tmp_path, parity=True)
    place(tmp_path, "bare")
    done = run(*arguments, "--repository", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr


def test_another_models_times_may_stand_for_it(tmp_path: Path) -> None:
    place_net(tmp_path, parity=True)
    said = json.loads(run("net", "--repository", str(tmp_path), "--device", "t4", "--as", "resnet50", "--json").stdout)
    assert [line["precision"] for line in said["precisions"]] == ["fp32", "int8"]
    place_emulated(tmp_path / "other")  # one with a table of its own, which is no published device's
    assert "no model 'net'" in run("net", "--repository", str(tmp_path / "other")).stderr
