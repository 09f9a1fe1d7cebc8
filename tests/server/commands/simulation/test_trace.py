import json
from pathlib import Path
from typing import Any

import pytest

from server.commands.simulation.trace import Batch, read_trace
from server.errors import ConfigError
from tests.server.commands.traces import HEAD, START, arrival, batch, write


def refusal(path: Path, only: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read_trace(path, only)
    return str(caught.value)


def test_arrivals_come_in_order_of_time(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl", [HEAD, arrival(2.0), arrival(1.0, rows=3), {"event": "lane", "t": 3}]))
    assert [(one.t - START, one.rows) for one in trace.arrivals] == [(1.0, 3), (2.0, 1)]
    assert (trace.model, trace.seconds, trace.cut_short) == ("m", 1.0, "")


def test_a_folder_of_recordings_is_one_trace(tmp_path: Path) -> None:
    for number, t in ((1, 1.0), (2, 2.0)):
        write(tmp_path / f"arrivals-{number:08d}.jsonl", [HEAD, arrival(t)])
    (tmp_path / "tensors-00000003.npz").touch()
    assert len(read_trace(tmp_path).arrivals) == 2
    assert "no arrivals-*.jsonl in this folder" in refusal(tmp_path.parent / tmp_path.name / "..")


def test_runs_that_an_incident_tells_of(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl", [{**HEAD, "event": "incident"}, arrival(1.0), batch(1.0, 8, 0.01), batch(2.0, 0, 0.01)]))
    assert trace.batches == [Batch(8, 1, 0.01)]


def test_one_model_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [arrival(1.0), arrival(2.0, model="other"), arrival(3.0, version="2")])
    assert refusal(path) == f"{path}: has m, other; choose one: --only NAME"
    assert [len(read_trace(path, only).arrivals) for only in ("m", "m/2", "other")] == [2, 1, 1]
    assert refusal(path, "n") == f"{path}: no arrivals of 'n'; it has m, other"


def test_a_file_that_was_cut_short_loses_its_last_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [HEAD, arrival(1.0)])
    path.write_text(path.read_text() + json.dumps(arrival(2.0))[:30])
    trace = read_trace(path)
    assert len(trace.arrivals) == 1
    assert trace.cut_short == f"{path}:3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON: "),
        ("[1]", "2: expected an object with `event`, such as arrival; got '[1]'"),
        ('{"t": 1}', "2: expected an object with `event`"),
        ('{"event": "recording", "schema": 9}', "2: schema 9; this release reads 1"),
        (arrival(1.0, rows=0), "2: rows: "),
        (arrival(1.0, deadline=-1), "2: deadline: "),
        ({**arrival(1.0), "t": "soon"}, "2: t: "),
        ({"event": "arrival", "t": 1, "model": "m"}, "2: rows: must be given"),
        ({**batch(1.0, 1, 1.0), "rows": "many"}, "2: not a batch of an incident: "),
        ({"event": "batch", "model": "m"}, "2: not a batch of an incident: KeyError('rows')"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "t.jsonl", [HEAD])
    path.write_text(path.read_text() + (line if isinstance(line, str) else json.dumps(line)) + "\n" + json.dumps(arrival(2.0)) + "\n")
    assert refusal(path).startswith(f"{path}:{message}")


def test_nothing_to_replay(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "t.jsonl", [HEAD])).endswith("t.jsonl: no arrivals")
    assert "can't be read" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "long.jsonl").write_bytes(b"x" * (1 << 20) + b"\n")
    assert "long.jsonl:1: a line of more than 1048576 bytes" in refusal(tmp_path / "long.jsonl")
