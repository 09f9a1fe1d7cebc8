"""The peers' harness: bodies that mean what they should, settings that reach the servers, answers that are checked."""

from __future__ import annotations

import ast
import base64
from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks.harness import Measured, Report
from benchmarks.peers_judged import judge
from benchmarks.peers_measured import CONNECTIONS, OURS, SHARES, Cells
from loadtests.peers.adapters import PEERS, SERVERS, Peer, Place
from loadtests.peers.bodies import FORMATS, output
from loadtests.peers.workloads import WORKLOADS, Setting


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_each_time_and_one_row_a_request(name: str) -> None:
    first, second = WORKLOADS[name].requests(), WORKLOADS[name].requests()
    assert len(first) == WORKLOADS[name].count
    for one, other in zip(first, second, strict=True):
        assert {key: array.tobytes() for key, array in one.items()} == {key: array.tobytes() for key, array in other.items()}
        assert all(len(array) == 1 for array in one.values())


def test_texts_are_of_unlike_length() -> None:
    lengths = [each["input_ids"].shape[1] for each in WORKLOADS["minilm"].requests()]
    assert (min(lengths), max(lengths)) == (8, 128)
    assert float(np.median(lengths)) == pytest.approx(28, abs=2)


def test_every_format_holds_the_values() -> None:
    arrays = {"X": np.arange(4, dtype=np.float32).reshape(1, 4) / 8}
    bodies = {form: make(arrays)[0] for form, make in FORMATS.items()}
    assert np.frombuffer(bodies["raw"], np.float32).tolist() == arrays["X"].ravel().tolist()
    assert orjson.loads(bodies["json"]) == {"inputs": {"X": arrays["X"].tolist()}}
    assert orjson.loads(bodies["bento-json"]) == {"x": [{"X": arrays["X"].tolist()}]}
    assert base64.b64decode(orjson.loads(bodies["b64"])["b64"]) == bodies["raw"]
    assert bodies["v2-binary"].endswith(bodies["raw"])
    assert orjson.loads(bodies["v2-json"])["inputs"] == [
        {"name": "X", "shape": [1, 4], "datatype": "FP32", "data": arrays["X"].ravel().tolist()}
    ]


@pytest.mark.parametrize(
    ("form", "headers", "body"),
    [
        ("raw", {}, np.array([1, 2], np.float32).tobytes()),
        ("json", {}, b'{"output": [[1, 2]]}'),
        ("bento-json", {}, b"[[1, 2]]"),
        ("v2-json", {}, b'{"outputs": [{"data": [1, 2]}]}'),
        ("v2-binary", {"inference-header-content-length": "2"}, b"{}" + np.array([1, 2], np.float32).tobytes()),
    ],
)
def test_every_answer_is_read_back(form: str, headers: dict[str, str], body: bytes) -> None:
    assert output(form, headers, body).tolist() == [1, 2]


def test_what_is_no_answer_is_said() -> None:
    with pytest.raises(ValueError, match="not an answer of the form v2-json"):
        output("v2-json", {}, b'{"error": "no"}')


@pytest.mark.parametrize("peer", [peer for name, peer in PEERS.items() if not name.startswith("triton")], ids=lambda peer: peer.name)
def test_a_peer_is_started_with_its_settings_and_its_pinned_packages(peer: Peer, tmp_path: Path) -> None:
    place = Place(tmp_path / "venv", tmp_path, tmp_path / "m.onnx", 21000)
    workload = WORKLOADS["identity"]
    setting = Setting(32, 1.0, 2, 3)
    command = peer.command(workload, setting, place)
    environment = peer.environment(workload, setting, place)
    assert command[0].startswith(str(place.venv))
    assert (environment["MAX_ROWS"], environment["DELAY_MS"], environment["THREADS"], environment["INSTANCES"]) == ("32", "1", "2", "3")
    assert environment["PYTHONPATH"] == str(SERVERS)  # and not whatever this process runs with
    assert any("==" in package for package in peer.packages)
    assert set(peer.formats(workload)) <= FORMATS.keys()


@pytest.mark.parametrize("file", sorted(SERVERS.glob("*.py")), ids=lambda file: file.stem)
def test_a_peers_server_is_python_and_imports_nothing_of_ours(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name and name.split(".")[0] in ("server", "loadtests", "benchmarks")}


def measured(rate: float, p50: float = 1.0) -> Measured:
    return Measured(100, 0, 100, 0, 1.0, rate, p50, p50, p50 * 2, p50 * 2, p50 * 3, 0.1)


def test_targets_are_ratios_and_what_is_missing_is_not_met() -> None:
    cells = Cells()
    for peer, form, rate in ((OURS, "v2-binary", 6000.0), (PEERS["triton"], "v2-binary", 2000.0)):
        cell = cells.cell(peer, WORKLOADS["identity"], form, Setting(32))
        for count in CONNECTIONS:
            cell.closed[count].append(measured(rate * count, p50=6000 / rate))
        for share in SHARES:
            cell.opened[share].append(measured(rate * share))
    report = Report("peers")
    judge(report, cells)
    found = {target.name: target for target in report.targets}
    ratio = found["identity: V2 binary at 32 connections / Triton's"]
    assert (ratio.value, ratio.met) == (3.0, True)
    latency = found["identity: p50 at one connection / Triton's"]
    assert latency.value == pytest.approx(1 / 3)
    assert latency.met
    assert not found["identity: V2 binary at 32 connections / Mosec's raw bytes"].met
    assert len(found) == 9
