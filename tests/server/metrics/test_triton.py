"""nv_* lines: as perf_analyzer's expressions read them, and equal to the statistics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import FAILURE_REASONS, QUANTILES, TRITON
from server.metrics.figures import Figures
from server.metrics.gpu import Gpu
from server.metrics.recorder import Recorder
from server.metrics.statistics import statistics_of
from server.metrics.triton import COUNTERS_ONLY, Latencies, TritonText
from tests.server.models import identity_model
from tests.server.running import infer_json, running, wire

KEY = ModelKey("m", "1", "fp32")
T4 = Gpu("0", "GPU-7d", 0.4, 15843721216, 3 << 30, 61, 45.5, 70, 123456.789, 1.0, 2)


def lines(recorder: Recorder, latencies: Latencies = COUNTERS_ONLY, gpus: Sequence[Gpu] = (), openmetrics: bool = False) -> dict[str, str]:
    """Name with labels → value, as text."""
    text = TritonText(recorder, latencies, lambda: gpus).text(openmetrics)
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def worked(recorder: Recorder) -> Figures:
    """Figures of a run of three rows in two requests, one of which failed later."""
    figures = recorder.figures(KEY)
    figures.batch(BatchFacts(3, 2, "full", "fp32", "lane", cut=1.0, started=1.5, finished=2.0), 0.001, 0.002)
    figures.answered(0.75, 0.25, 0.01, 0.01)
    figures.failed("cancelled", 0.5)
    return figures


def test_names_and_numbers() -> None:
    recorder = Recorder()
    worked(recorder)
    recorder.figures(KEY._replace(precision="int8")).failed("overloaded")
    recorder.gauge("nv_inference_pending_request_count", {"model": "m", "version": "1"}, lambda: 7)
    recorder.gauge("nv_model_load_duration_secs", {"model": "m", "version": "1"}, lambda: 1.25)
    found = lines(recorder)
    one = '{model="m",version="1"}'
    failed = {reason: found[f'nv_inference_request_failure{{model="m",version="1",reason="{reason}"}}'] for reason in FAILURE_REASONS}
    assert failed == {"REJECTED": "1", "CANCELED": "1", "BACKEND": "0", "OTHER": "0"}
    assert {name.removeprefix("nv_inference_").removesuffix(one): value for name, value in found.items() if "inference_" in name} | {} == {
        **{f'request_failure{{model="m",version="1",reason="{reason}"}}': value for reason, value in failed.items()},
        "request_success": "1",
        "count": "3",
        "exec_count": "1",
        "request_duration_us": "750000",
        "queue_duration_us": "250000",
        "compute_input_duration_us": "2000",
        "compute_infer_duration_us": "1000000",
        "compute_output_duration_us": "4000",
        "pending_request_count": "7",
    }
    assert found["nv_model_load_duration_secs" + one] == "1.25"
    assert 0 <= float(found["nv_cpu_utilization"]) <= 1
    assert int(found["nv_cpu_memory_used_bytes"]) < int(found["nv_cpu_memory_total_bytes"])
    assert not [name for name in found if "gpu" in name or "energy" in name]


def test_gpu_lines_are_what_perf_analyzer_reads() -> None:
    text = TritonText(Recorder(), COUNTERS_ONLY, lambda: [T4, Gpu("1", "GPU-8e", lost="it is lost")]).text()
    for name, value in (
        ("nv_gpu_utilization", "0.4"),
        ("nv_gpu_memory_total_bytes", "15843721216"),
        ("nv_gpu_memory_used_bytes", str(3 << 30)),
        ("nv_gpu_power_usage", "45.5"),
        ("nv_gpu_power_limit", "70"),
        ("nv_energy_consumption", "123456.789"),
    ):
        assert re.findall(rf'^{name}{{gpu_uuid="([^"]*)"}} (\d+\.?\d*)$', text, re.MULTILINE) == [("GPU-7d", value)]
    assert "GPU-8e" not in text


def test_histograms_and_summaries_are_there_when_asked_for() -> None:
    recorder = Recorder(watched=True)
    worked(recorder).began(0.3)
    text = TritonText(recorder, Latencies(histograms=True, summaries=True), list).text()
    families = {family.name: family for family in parse_text(text)}
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        histogram, summary = families[f"nv_inference_{part}_duration_histogram_us"], families[f"nv_inference_{part}_summary_us"]
        assert (histogram.type, summary.type) == ("histogram", "summary")
        assert {float(each.labels["quantile"]) for each in summary.samples if "quantile" in each.labels} == set(QUANTILES)
    (median,) = [each.value for each in families["nv_inference_request_summary_us"].samples if each.labels.get("quantile") == "0.5"]
    assert median == 750_000
    buckets = {each.labels.get("le"): each.value for each in families["nv_inference_request_duration_histogram_us"].samples}
    assert (buckets["500000"], buckets["1000000"], buckets["+Inf"]) == (0, 1, 1)
    first = {each.labels.get("le"): each.value for each in families["nv_inference_first_response_histogram_ms"].samples}
    assert [first[bound] for bound in ("100", "500", "2000", "5000", "+Inf")] == [0, 1, 1, 1, 1]
    assert {name for name in families if "histogram" in name or "summary" in name} == {
        metric.name for metric in TRITON.values() if metric.kind in ("histogram", "summary")
    }
    assert not any("histogram" in name or "summary" in name for name in lines(recorder))


def test_quantiles_are_of_each_request_of_a_run() -> None:
    recorder = Recorder(watched=True)
    figures = recorder.figures(KEY)
    assert 'quantile="0.5"} NaN' in TritonText(recorder, Latencies(summaries=True), list).text()
    for requests, seconds in ((9, 0.001), (1, 1.0)):
        figures.batch(BatchFacts(1, requests, "full", "fp32", "lane", 1.0, started=1e12 - seconds, finished=1e12), 0.0, 0.0)
        for _ in range(requests):
            figures.answered(seconds, 0.0, 0.0, 0.0)
    found = lines(recorder, Latencies(summaries=True))
    request = [float(found[f'nv_inference_request_summary_us{{model="m",version="1",quantile="{quantile}"}}']) for quantile in QUANTILES]
    assert request == [1_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000]
    compute = float(found['nv_inference_compute_infer_summary_us{model="m",version="1",quantile="0.5"}'])
    assert compute == pytest.approx(1_000, rel=0.2)


def test_label_values_are_escaped() -> None:
    recorder = Recorder()
    recorder.figures(ModelKey('a"b\\c\nd', "1", "fp32"))
    (family,) = [each for each in parse_text(TritonText(recorder, COUNTERS_ONLY, list).text()) if each.name == "nv_inference_count"]
    assert family.samples[0].labels["model"] == 'a"b\\c\nd'


async def test_a_server_shows_them_in_both_formats_and_equal_to_its_statistics(tmp_path: Path) -> None:
    identity_model(tmp_path / "echo" / "1" / "model.onnx")
    async with running(tmp_path) as app, wire(app) as one, httpx.AsyncClient() as client:
        for rows in (1, 4, 2):
            await one.ask(infer_json("echo", np.ones((rows, 16), np.float32)))
        await one.ask(infer_json("echo", np.ones((1, 3), np.float32)))
        url = f"http://{app.addresses.metrics}/metrics"
        text = (await client.get(url)).text
        strict = (await client.get(url, headers={"accept": "application/openmetrics-text"})).text
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("nv_"))
        stats = statistics_of("echo", "1", app.recorder.of("echo", "1")).fields()
    labels = '{model="echo",version="1"}'
    assert int(found[f"nv_inference_count{labels}"]) == stats["inference_count"] == 7
    assert int(found[f"nv_inference_exec_count{labels}"]) == stats["execution_count"] == 3
    assert int(found[f"nv_inference_request_success{labels}"]) == stats["inference_stats"]["success"]["count"] == 3
    assert found['nv_inference_request_failure{model="echo",version="1",reason="OTHER"}'] == "1"
    for name, part in (("request", "success"), ("queue", "queue"), ("compute_infer", "compute_infer")):
        assert int(found[f"nv_inference_{name}_duration_us{labels}"]) == stats["inference_stats"][part]["ns"] // 1000
    assert float(found[f"nv_model_load_duration_secs{labels}"]) > 0
    assert found[f"nv_inference_pending_request_count{labels}"] == "0"
    families = {family.name: family.type for family in parse_openmetrics(strict)}  # type: ignore[no-untyped-call]
    assert (families["nv_inference_count"], families["nv_inference_pending_request_count"]) == ("unknown", "gauge")
    assert {each.name for each in parse_text(text) if each.name.startswith("nv_")} <= TRITON.keys()
