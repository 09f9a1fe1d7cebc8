"""Statistics by Triton's rules, as stock clients ask for them, of a real server that did what the numbers say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http
from hypothesis import given
from hypothesis import strategies as st

from server.app import App
from server.messages import BatchFacts, ModelKey
from server.metrics.figures import MAX_RESPONSES, RESPONSE_PARTS, Figures, merged
from server.metrics.recorder import MAX_KEYS, Recorder
from server.metrics.statistics import Memory, statistics_of
from tests.server.models import identity_model, two_inputs_model
from tests.server.running import in_thread

KEY = ModelKey("m", "1", "fp32")
PARTS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[App]:
    identity_model(tmp_path / "echo" / "1" / "model.onnx")
    two_inputs_model(tmp_path / "pair" / "1" / "model.onnx")
    identity_model(tmp_path / "pair" / "2" / "model.onnx")
    (tmp_path / "pair" / "model.yaml").write_text("versions: {policy: all}\n")
    (tmp_path / "corrupt" / "1").mkdir(parents=True)
    (tmp_path / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    with in_thread(tmp_path, grpc_port=0, ready_when="any") as app:
        yield app


def stats(app: App, path: str = "/echo") -> list[dict[str, Any]]:
    answer = httpx.get(f"http://{app.addresses.http}/v2/models{path}/stats")
    assert answer.status_code == 200, answer.text
    return answer.json()["model_stats"]  # type: ignore[no-any-return]


def infer(app: App, rows: int, width: int = 16, model: str = "echo") -> int:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, width], "data": [0.5] * rows * width}]}
    return httpx.post(f"http://{app.addresses.http}/v2/models/{model}/infer", json=body).status_code


def run(rows: int, requests: int, compute: float = 0.5, finished: float = 2.0) -> BatchFacts:
    return BatchFacts(rows, requests, "full", "fp32", "lane", cut=1.0, started=finished - compute, finished=finished)


def test_what_was_asked_is_what_is_counted(served: App) -> None:
    before = time.time()
    assert stats(served)[0]["last_inference"] == 0
    assert [infer(served, rows) for rows in (1, 8, 8, 3)] == [200] * 4
    assert infer(served, 1, width=3) == 400
    (found,) = stats(served)
    parts = found["inference_stats"]
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("echo", "1", 20, 4)
    assert parts.keys() == PARTS
    assert {name: part["count"] for name, part in parts.items()} == {
        **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 4),
        **{"fail": 1, "cache_hit": 0, "cache_miss": 0},
    }
    assert all(type(part["ns"]) is int and part["ns"] >= 0 for part in parts.values())
    assert parts["success"]["ns"] >= sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")) > 0
    assert parts["fail"]["ns"] > 0
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in found["batch_stats"]] == [(1, 1), (3, 1), (8, 2)]
    assert found["response_stats"] == {}
    assert before * 1e3 - 1000 <= found["last_inference"] <= time.time() * 1e3 + 1000
    ((kind, device, size),) = [tuple(each.values()) for each in found["memory_usage"]]
    assert (kind, device) == ("CPU", 0)
    assert size > 0


def test_which_versions_are_listed(served: App) -> None:
    def names(path: str) -> list[tuple[str, str]]:
        return [(found["name"], found["version"]) for found in stats(served, path)]

    assert names("") == [("echo", "1"), ("pair", "1"), ("pair", "2")]
    assert names("/pair") == [("pair", "1"), ("pair", "2")]
    assert names("/pair/versions/1") == [("pair", "1")]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nobody", 404, "'nobody' is not found"),
        ("/echo/versions/9", 404, "version 9 is not found"),
        ("/corrupt", 503, "not at ready state"),
    ],
)
def test_what_has_no_statistics(served: App, path: str, status: int, text: str) -> None:
    answer = httpx.get(f"http://{served.addresses.http}/v2/models{path}/stats")
    assert answer.status_code == status
    assert text in answer.json()["error"]


def test_both_stock_clients_see_the_same(served: App) -> None:
    infer(served, 2)
    (grpc_port,) = {served.addresses.grpc}
    with stock_http.InferenceServerClient(served.addresses.http) as over_http, stock_grpc.InferenceServerClient(grpc_port) as over_grpc:
        for names in (("echo", "1"), ("pair", ""), ("", "")):
            by_http = over_http.get_inference_statistics(*names)
            by_grpc = over_grpc.get_inference_statistics(*names, as_json=True)
            assert as_numbers(by_grpc) == as_numbers(by_http)
        with pytest.raises(Exception, match="NOT_FOUND"):
            over_grpc.get_inference_statistics("nobody")


def as_numbers(found: Any) -> Any:
    """Without what protobuf's JSON leaves out (zeros, what is empty), and its integers as numbers."""
    if isinstance(found, dict):
        kept = {name: as_numbers(value) for name, value in found.items() if name not in ("version", "last_inference")}
        return {name: value for name, value in kept.items() if value not in (0, {}, [])}
    if isinstance(found, list):
        return [as_numbers(value) for value in found]
    return int(found) if isinstance(found, str) and found.isdecimal() else found


def test_a_model_named_stats_is_hidden_by_the_route(served: App) -> None:
    answer = httpx.get(f"http://{served.addresses.http}/v2/models/stats")
    assert set(answer.json()) == {"model_stats"}


runs = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 8), st.floats(0, 10), st.booleans()), max_size=30)


@given(runs)
def test_each_request_of_a_run_counts_with_the_whole_run(given_runs: list[tuple[int, int, float, bool]]) -> None:
    figures = Figures(KEY)
    for rows, requests, seconds, failed in given_runs:
        figures.batch(run(rows, requests, seconds, finished=20.0), 0.25, 0.125, failed)
        for _ in range(requests):
            figures.failed("backend", 1.0) if failed else figures.answered(2.0, 0.5, 0.0, 0.0)
    found = statistics_of("m", "1", [figures])
    good = [(rows, requests, seconds) for rows, requests, seconds, failed in given_runs if not failed]
    requests = sum(each[1] for each in good)
    assert (found.rows, found.runs) == (sum(each[0] for each in good), len(good))
    assert found.parts["success"] == (requests, 2.0 * requests)
    assert found.parts["queue"] == (requests, 0.5 * requests)
    assert found.parts["compute_input"] == (requests, 0.25 * requests)
    assert found.parts["compute_infer"].number == requests
    assert found.parts["compute_infer"].seconds == pytest.approx(sum(each[1] * each[2] for each in good))
    assert found.failures["BACKEND"] == found.parts["fail"].number == sum(each[1] for each in given_runs if each[3])
    sizes = found.fields()["batch_stats"]
    assert [each["batch_size"] for each in sizes] == sorted({each[0] for each in good})
    assert sum(each["batch_size"] * each["compute_output"]["count"] for each in sizes) == found.rows


@pytest.mark.parametrize(
    ("reason", "triton"),
    [
        *(("overloaded", "REJECTED"), ("deadline", "REJECTED"), ("draining", "REJECTED"), ("cancelled", "CANCELED")),
        *(("backend", "BACKEND"), ("internal", "OTHER"), ("invalid", "OTHER"), ("made up by a plug-in", "OTHER")),
    ],
)
def test_failures_by_tritons_reasons(reason: str, triton: str) -> None:
    figures = Figures(KEY)
    figures.failed(reason, 0.5)
    found = statistics_of("m", "1", [figures])
    assert {name: count for name, count in found.failures.items() if count} == {triton: 1}
    assert found.fields()["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}


def test_a_cache_is_told_apart(tmp_path: Path) -> None:
    identity_model(tmp_path / "echo" / "1" / "model.onnx")
    (tmp_path / "echo" / "model.yaml").write_text("cache: {max_bytes: 1MiB}\n")
    with in_thread(tmp_path) as app:
        assert [infer(app, 2) for _ in range(3)] == [200] * 3
        (found,) = stats(app)
    counts = {name: part["count"] for name, part in found["inference_stats"].items()}
    assert (counts["success"], counts["queue"], counts["cache_hit"], counts["cache_miss"], counts["compute_infer"]) == (3, 3, 2, 1, 1)
    assert (found["inference_count"], found["execution_count"]) == (2, 1)


def test_what_the_cache_answers_did_not_run() -> None:
    figures = Figures(KEY)
    figures.missed(0.25)
    figures.answered(1.0, 0.0, 0.0, 0.0)
    figures.batch(run(2, 1), 0.0, 0.0)
    figures.answered(0.5, 0.0, 0.0, 0.0)
    figures.hit(0.125)
    fields = statistics_of("m", "1", [figures]).fields([Memory("CPU", 0, 7)])
    parts = fields["inference_stats"]
    assert (fields["inference_count"], fields["execution_count"], fields["memory_usage"]) == (
        2,
        1,
        [{"type": "CPU", "id": 0, "byte_size": 7}],
    )
    assert parts["success"]["count"] == parts["queue"]["count"] == 2
    assert parts["compute_infer"]["count"] == 1
    assert parts["cache_hit"] == {"count": 1, "ns": 125_000_000}
    assert parts["cache_miss"] == {"count": 1, "ns": 250_000_000}


def test_responses_of_decoupled_models() -> None:
    figures = Figures(KEY)
    figures.responded(0, "success", 0.25, 0.5)
    figures.responded(1, "empty_response", 0.25, 0.0)
    figures.responded(1_000, "fail", 0.25, 0.0)
    found = statistics_of("m", "1", [figures, figures]).fields()["response_stats"]
    assert found.keys() == {"0", "1", str(MAX_RESPONSES - 1)}
    assert all(parts.keys() == set(RESPONSE_PARTS) for parts in found.values())
    assert found["0"]["success"] == {"count": 2, "ns": 1_500_000_000}
    assert found["1"]["compute_output"] == {"count": 0, "ns": 0}
    assert found["1"]["empty_response"] == {"count": 2, "ns": 500_000_000}


def test_precisions_of_a_version_are_added_and_a_reload_keeps_the_counts() -> None:
    recorder = Recorder()
    for precision in ("fp32", "int8"):
        recorder.figures(ModelKey("m", "1", precision)).answered(1.0, 0.0, 0.0, 0.0)
    recorder.figures(ModelKey("m", "2", "fp32")).answered(1.0, 0.0, 0.0, 0.0)
    assert statistics_of("m", "1", recorder.of("m", "1")).parts["success"] == (2, 2.0)
    assert recorder.figures(KEY).duration[-1] == 1.0


def test_models_beyond_the_bound_on_series_have_statistics_of_their_own() -> None:
    recorder = Recorder()
    keys = [ModelKey(f"m{index}", "1", "fp32") for index in range(MAX_KEYS + 3)]
    for number, key in enumerate(keys):
        figures = recorder.figures(key)
        for _ in range(number):
            figures.answered(1.0, 0.0, 0.0, 0.0)
    assert statistics_of("last", "1", recorder.of(keys[-1].name, "1")).parts["success"].number == MAX_KEYS + 2
    others = recorder.snapshot()[0][-1]
    assert others.key.name == "other"
    before = sum(others.duration[:-1])
    recorder.close(keys[-1])
    assert sum(recorder.snapshot()[0][-1].duration[:-1]) == before == sum(range(MAX_KEYS, MAX_KEYS + 3))


def test_merging_keeps_every_sum() -> None:
    figures = Figures(KEY)
    figures.batch(run(4, 2), 0.1, 0.2)
    figures.answered(1.0, 0.5, 0.1, 0.1)
    figures.failed("overloaded", 0.5)
    figures.began(0.2)
    twice = merged(KEY, [figures, figures])
    for name in ("duration", "queue", "decode", "encode", "gather", "compute", "scatter", "rows", "first"):
        assert getattr(twice, name) == [2 * each for each in getattr(figures, name)], name
    assert (twice.failures["overloaded"], twice.fail_seconds, twice.batches, twice.lanes) == (2, 1.0, {"full": 2}, {"lane": 1.0})
    assert (twice.runs, twice.last) == ({4: [2.0, 0.2, 1.0, 0.4]}, 2.0)
    assert np.isclose(twice.compute[-1], 2 * figures.compute[-1])
