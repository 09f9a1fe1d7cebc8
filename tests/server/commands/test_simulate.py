import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.commands.simulate import FEW_RUNS, fitted
from server.commands.simulation.choices import Choices, choices_from
from server.commands.simulation.replay import Setting, replay
from server.commands.simulation.trace import read_trace
from server.engine.batcher import BatchPolicy
from server.errors import ConfigError
from tests.server.commands.traces import HEAD, arrival, batch, write
from tests.server.repository.test_emulation import place_emulated
from tests.server.running import infer_json, running, wire

T4 = ("--table", "t4", "--model", "resnet50", "--precision", "fp16")
STEADY = [arrival(number / 500) for number in range(500)]


def simulate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidegate", "simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"COLUMNS": "160", "PATH": ""})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "t.jsonl", [HEAD, *STEADY])


def test_settings_stand_side_by_side(trace: Path) -> None:
    ran = simulate(trace, "--objective", "50ms", *T4, "--compare", "max_rows=1", "--compare", "lanes=2,precision=int8")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, heading, *rows = ran.stdout.splitlines()
    assert first == "500 arrivals of m in 1.0 s (501.0/s)"
    assert heading.split()[:3] == ["setting", "in", "time"]
    assert [row.split()[:2] for row in rows] == [["as", "given"], ["max_rows=1", rows[1].split()[1]], ["lanes=2,precision=int8", "100.0%"]]
    assert rows[0].split()[2] == "100.0%"
    assert float(rows[1].split()[1].rstrip("%")) < 80  # a T4 does 319 a second of these one by one


def test_the_same_as_json(trace: Path) -> None:
    ran = simulate(trace, "--objective", "50ms", *T4, "--json")
    found = json.loads(ran.stdout)
    assert found["trace"] == {"model": "m", "arrivals": 500, "seconds": 0.998}
    (only,) = found["settings"]
    assert (only["name"], only["requests"], only["answered"], only["late"]) == ("as given", 500, 500, 0)
    assert only["capacity_rows_per_s"] == pytest.approx(1133, rel=0.1)
    assert only["p50_ms"] < only["p99_ms"] < 50


def test_run_times_of_an_incident(tmp_path: Path) -> None:
    runs = [batch(number / 10, rows, 0.001 + 0.001 * rows) for number in range(5) for rows in (1, 4, 16)]
    ran = simulate(write(tmp_path / "t.jsonl", [*runs, arrival(0.0), arrival(1.0)]), "--json")
    assert json.loads(ran.stdout)["settings"][0]["p50_ms"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    "cost",
    [
        {"points": {}, "fit": {"a": 0.002, "c1": 0.001, "c2": 0}},
        {"points": {"1": 0.003, "8": 0.010}, "fit": None, "length": 1},
    ],
)
def test_run_times_of_a_server(trace: Path, tmp_path: Path, cost: object) -> None:
    costs = tmp_path / "batcher.json"
    costs.write_text(json.dumps({"model": "m", "cost": cost}))
    ran = simulate(trace, "--costs", costs, "--json", "--speed", "0.1")
    assert json.loads(ran.stdout)["settings"][0]["p50_ms"] == pytest.approx(3.0, rel=0.1)


def test_a_line_that_was_cut_short_is_said(trace: Path) -> None:
    trace.write_text(trace.read_text()[:-5])
    ran = simulate(trace, *T4, "--json")
    assert ran.stderr == f"note: {trace}:501: the last line is cut short and left out\n"
    assert json.loads(ran.stdout)["trace"]["arrivals"] == 499


async def test_what_a_server_recorded_is_replayed(tmp_path: Path) -> None:
    place_emulated(tmp_path / "models")
    rows = np.ones((2, 16), np.float32)
    async with running(tmp_path / "models", recording={"dir": tmp_path / "recording"}) as app, wire(app) as client:
        for _ in range(FEW_RUNS):
            assert (await client.ask(infer_json("net", rows))).status == 200
        (tmp_path / "incident.jsonl").write_bytes(b"".join(app.recorder.ring.lines("1.0")))
    recorded, incident = read_trace(tmp_path / "recording"), read_trace(tmp_path / "incident.jsonl")
    assert [one.rows for one in recorded.arrivals] == [one.rows for one in incident.arrivals] == [2] * FEW_RUNS
    device = fitted(incident.batches)
    found = replay(recorded.arrivals, Setting("s", BatchPolicy(), lambda: device))
    assert (found.answered, found.rows) == (FEW_RUNS, 2 * FEW_RUNS)
    assert found.latencies[0] >= 0.9 * min(run.seconds for run in incident.batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing says how long a run takes (a recording has arrivals only"),
        (("--table", "t4"), "--table t4: needs --model NAME"),
        (("--model", "resnet5"), "t4_latency.yaml:7: models: no model 'resnet5'; did you mean 'resnet50'?"),
        (("--objective", "50 parsecs"), "--objective: expected a duration with one of"),
        (("--max-rows", "0"), "--max-rows: "),
        ((*T4, "--compare", "lane=2"), "--compare 'lane=2': lane: unknown key 'lane'; did you mean 'lanes'?"),
        ((*T4, "--compare", "lanes"), "--compare 'lanes': expected name=value"),
        (("--costs", "none.json"), "--costs: none.json: can't be read"),
        (("--costs", "{}"), "its fit says that a run takes no time"),
        (("--costs", "/dev/null"), "--costs: /dev/null: expected the JSON of GET /v2/models/NAME/batcher"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(trace: Path, arguments: tuple[str, ...], message: str) -> None:
    unmeasured = trace.with_name("unmeasured.json")
    unmeasured.write_text('{"fit": {"a": 0, "c1": 0, "c2": 0}}')
    ran = simulate(trace, *(argument.format(unmeasured) if argument == "{}" else argument for argument in arguments))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_choices_are_changed_by_their_flags_words() -> None:
    base = choices_from({"objective": "50ms", "max_rows": "8"}, "--{}")
    changed = base.changed("max-rows=16, on_late=serve")
    assert (changed.objective, changed.max_rows, changed.on_late, changed.lanes) == (0.05, 16, "serve", 1)
    with pytest.raises(ConfigError, match="did you mean 'serve'"):
        Choices().changed("on_late=sreve")
