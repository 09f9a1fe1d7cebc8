"""Triton's metrics, nv_*: the same figures under the names, labels and units that its dashboards and perf_analyzer ask for.

They need a writer of their own: counters without the suffix _total, numbers as plain decimals (never 1.5e+10), and exactly the labels that
Triton has. The numbers are those of the statistics extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic
from typing import TypeAlias

import psutil

from server.messages import ModelKey
from server.metrics.catalogue import QUANTILES, TRITON, Metric
from server.metrics.figures import Counts, Figures, Watched, merged
from server.metrics.gpu import Gpu
from server.metrics.recorder import Recorder
from server.metrics.statistics import PARTS, Statistics, Sum, nanoseconds, statistics_of

Sample: TypeAlias = tuple[str, Sequence[str], float]
"""A suffix to the metric's name, the labels' values, the value."""

SOURCES: Mapping[str, str] = dict(zip(PARTS, ("duration", "queue", "gather", "compute", "scatter"), strict=True))
"""Triton's part → our histogram of it."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Which of Triton's metrics of latency there are beside the counters: its own default is none."""

    histograms: bool = False
    summaries: bool = False


COUNTERS_ONLY = Latencies()


class TritonText:
    """All nv_* lines. `gpus` says what the GPUs are at. Called by the scraping thread only."""

    def __init__(self, recorder: Recorder, latencies: Latencies, gpus: Callable[[], Sequence[Gpu]]) -> None:
        self._recorder = recorder
        self._latencies = latencies
        self._gpus = gpus
        psutil.cpu_percent()  # the share is that since the last call

    def text(self, openmetrics: bool = False) -> str:
        """The lines. OpenMetrics knows no counter without _total: there those are of unknown type."""
        figures = _by_version(self._recorder.snapshot()[0])
        found: dict[str, list[Sample]] = {}
        for version, several in figures.items():
            for name, sample in self._version(statistics_of(*version, several), several):
                found.setdefault(name, []).append(sample)
        for name, sample in (*_given(self._recorder), *_host(), *_gpu(self._gpus())):
            found.setdefault(name, []).append(sample)
        return "".join(_family(metric, found[name], openmetrics) for name, metric in TRITON.items() if name in found)

    def _version(self, of: Statistics, figures: Sequence[Figures]) -> Iterator[tuple[str, Sample]]:
        labels = (of.model, of.version)
        for name, value in _counters(of):
            yield name, ("", labels, value)
        for reason, count in of.failures.items():
            yield "nv_inference_request_failure", ("", (*labels, reason), count)
        if self._latencies.histograms:
            yield from _histograms(labels, merged(ModelKey(*labels, ""), figures))
        if self._latencies.summaries:
            yield from _summaries(labels, of, [each for each in figures if isinstance(each, Watched)])


def _by_version(figures: Iterable[Figures]) -> dict[tuple[str, str], list[Figures]]:
    found: dict[tuple[str, str], list[Figures]] = {}
    for each in figures:
        found.setdefault((each.key.name, each.key.version), []).append(each)
    return found


def _counters(of: Statistics) -> Iterator[tuple[str, float]]:
    parts = of.parts
    yield "nv_inference_request_success", parts["success"].number
    yield "nv_inference_count", of.rows
    yield "nv_inference_exec_count", of.runs
    for part, source in PARTS.items():
        yield f"nv_inference_{part}_duration_us", _microseconds(parts[source])
    for name, part in (("hit", "cache_hit"), ("miss", "cache_miss")):
        yield f"nv_cache_num_{'hits' if name == 'hit' else 'misses'}_per_model", parts[part].number
        yield f"nv_cache_{name}_duration_per_model", _microseconds(parts[part])


def _microseconds(part: Sum) -> float:
    """Whole ones, as Triton cuts them: of the nanoseconds that the statistics say."""
    return nanoseconds(part.seconds) // 1000


def _histograms(labels: Sequence[str], figures: Figures) -> Iterator[tuple[str, Sample]]:
    for part, source in SOURCES.items():
        name = f"nv_inference_{part}_duration_histogram_us"
        for sample in _histogram(labels, TRITON[name], getattr(figures, source), 1e6):
            yield name, sample
    if any(figures.first):
        name = "nv_inference_first_response_histogram_ms"
        for sample in _histogram(labels, TRITON[name], figures.first, 1e3):
            yield name, sample


def _histogram(labels: Sequence[str], metric: Metric, counts: Counts, unit: float) -> Iterator[Sample]:
    below = list(accumulate(counts[:-1]))
    for bound, count in zip((*map(_number, metric.buckets), "+Inf"), below, strict=True):
        yield "_bucket", (*labels, bound), count
    yield "_count", labels, below[-1]
    yield "_sum", labels, counts[-1] * unit


def _summaries(labels: Sequence[str], of: Statistics, figures: Iterable[Watched]) -> Iterator[tuple[str, Sample]]:
    now = monotonic()
    windows = [each.watched(now) for each in figures]
    for part, source in PARTS.items():
        name, values = f"nv_inference_{part}_summary_us", sorted(value for window in windows for value in window[part])
        for quantile in QUANTILES:
            yield name, ("", (*labels, _number(quantile)), values[int(quantile * len(values))] * 1e6 if values else float("nan"))
        yield name, ("_count", labels, of.parts[source].number)
        yield name, ("_sum", labels, _microseconds(of.parts[source]))


def _given(recorder: Recorder) -> Iterator[tuple[str, Sample]]:
    for name, labels, value in recorder.read(TRITON):
        yield name, ("", labels, value)


def _host() -> Iterator[tuple[str, Sample]]:
    memory = psutil.virtual_memory()
    yield "nv_cpu_utilization", ("", (), psutil.cpu_percent() / 100)
    yield "nv_cpu_memory_total_bytes", ("", (), memory.total)
    yield "nv_cpu_memory_used_bytes", ("", (), memory.used)


def _gpu(gpus: Iterable[Gpu]) -> Iterator[tuple[str, Sample]]:
    for gpu in gpus:
        for name, value in (
            ("nv_gpu_utilization", gpu.utilization),
            ("nv_gpu_memory_total_bytes", gpu.memory_total),
            ("nv_gpu_memory_used_bytes", gpu.memory_used),
            ("nv_gpu_power_usage", gpu.power),
            ("nv_gpu_power_limit", gpu.power_limit),
            ("nv_energy_consumption", gpu.energy),
        ):
            if value is not None:
                yield name, ("", (gpu.uuid,), value)


def _family(metric: Metric, samples: Iterable[Sample], openmetrics: bool) -> str:
    kind = "unknown" if openmetrics and metric.kind == "counter" else metric.kind
    lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {kind}"]
    extra = {"histogram": "le", "summary": "quantile"}.get(metric.kind, "")
    for suffix, values, value in samples:
        names = metric.labels if len(values) == len(metric.labels) else (*metric.labels, extra)
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True))
        lines.append(f"{metric.name}{suffix}{f'{{{labels}}}' if labels else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """A plain decimal: perf_analyzer reads no exponent."""
    if value != value:
        return "NaN"
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0").rstrip(".")
