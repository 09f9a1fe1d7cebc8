"""Figures → prometheus_client's families, at scrape time."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from server.config import VERSION
from server.metrics import catalogue
from server.metrics.catalogue import CATALOGUE, OUTCOMES, SUCCESS, Metric
from server.metrics.figures import Counts, Figures
from server.metrics.gpu import Gpu
from server.metrics.recorder import UNROUTED, Recorder

GPU_FIGURES: Mapping[Metric, str] = {
    catalogue.GPU_UTILIZATION: "utilization",
    catalogue.GPU_MEMORY_USED: "memory_used",
    catalogue.GPU_MEMORY_TOTAL: "memory_total",
    catalogue.GPU_TEMPERATURE: "temperature",
    catalogue.GPU_POWER: "power",
    catalogue.GPU_THROTTLED: "throttled",
    catalogue.GPU_ECC_ERRORS: "ecc_errors",
}


Bucket: TypeAlias = tuple[str, float] | tuple[str, float, Exemplar]
ReadGpus: TypeAlias = Callable[[], Sequence[Gpu]]


def registry_of(recorder: Recorder, gpus: ReadGpus) -> CollectorRegistry:
    """A registry with the server's families and the process's."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RecorderCollector(recorder, gpus))
    ProcessCollector(registry=registry)
    return registry


class RecorderCollector(Collector):
    """Reads a Recorder and the GPUs' last sample, in the thread that scrapes."""

    def __init__(self, recorder: Recorder, gpus: ReadGpus) -> None:
        self._recorder = recorder
        self._gpus = gpus

    def collect(self) -> Iterable[Family]:
        figures, unrouted = self._recorder.snapshot()
        yield _durations(figures)
        yield _histograms(
            catalogue.PHASE_DURATION, [((*each.key, phase), getattr(each, phase)) for each in figures for phase in catalogue.PHASES]
        )
        yield _histograms(catalogue.BATCH_ROWS, [(each.key, each.rows) for each in figures])
        padded = [each for each in figures if any(each.length)]
        yield _histograms(catalogue.BATCH_LENGTH, [(each.key, each.length) for each in padded])
        yield _histograms(catalogue.PADDING_RATIO, [(each.key, each.padding) for each in padded])
        yield _numbers(catalogue.REQUESTS, _requests(figures, unrouted))
        yield _numbers(catalogue.DROPPED, (((*each.key, why), count) for each in figures for why, count in each.drops.items()))
        tenants = self._recorder.tenants()
        yield _numbers(
            catalogue.TENANT_REQUESTS, (((name, outcome), count) for name, by in tenants.items() for outcome, count in by.items())
        )
        yield _numbers(
            catalogue.BATCHES, (((*each.key, reason), count) for each in figures for reason, count in each.batches.copy().items())
        )
        yield _numbers(catalogue.ROWS_TOTAL, ((each.key, each.rows[-1]) for each in figures))
        yield _numbers(catalogue.LANE_BUSY, (((*each.key, lane), busy) for each in figures for lane, busy in each.lanes.copy().items()))
        yield _numbers(catalogue.BUILD_INFO, [((VERSION, platform.python_version()), 1.0)])
        values: dict[str, list[tuple[Sequence[str], float]]] = {}
        for name, labels, value in self._recorder.read(CATALOGUE):
            values.setdefault(name, []).append((labels, value))
        for name, samples in values.items():
            yield _numbers(CATALOGUE[name], samples)
        yield from _gpus(self._gpus())


def _requests(figures: Sequence[Figures], unrouted: dict[str, int]) -> Iterator[tuple[Sequence[str], float]]:
    for each in figures:
        yield (*each.key, SUCCESS, ""), sum(each.duration[:-1])
        for reason, count in each.failures.copy().items():
            yield (*each.key, OUTCOMES[reason], reason), count
    for reason, count in unrouted.items():
        yield (*UNROUTED, OUTCOMES[reason], reason), count


def _gpus(gpus: Sequence[Gpu]) -> Iterator[Family]:
    for metric, name in GPU_FIGURES.items():
        values = [((gpu.index,), value) for gpu in gpus if (value := getattr(gpu, name)) is not None]
        if values:
            yield _numbers(metric, values)
    if gpus:
        yield _numbers(catalogue.GPU_AVAILABLE, (((gpu.index,), 0.0 if gpu.lost else 1.0) for gpu in gpus))


def _numbers(metric: Metric, samples: Iterable[tuple[Sequence[str], float]]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _durations(figures: Iterable[Figures]) -> Family:
    """The requests' durations, with a traced request as the exemplar of each bucket that has one, which OpenMetrics shows."""
    metric = catalogue.REQUEST_DURATION
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for each in figures:
        counts, examples = each.duration.copy(), each.examples.copy()
        family.add_metric(
            each.key, [_with(examples.get(place), le, count) for place, (le, count) in enumerate(_cumulated(metric, counts))], counts[-1]
        )
    return family


def _with(example: tuple[str, float, float] | None, le: str, count: float) -> Bucket:
    return (le, count) if example is None else (le, count, Exemplar({"trace_id": example[0]}, *example[1:]))


def _cumulated(metric: Metric, counts: Counts) -> Iterator[tuple[str, float]]:
    return zip([*map(floatToGoString, metric.buckets), "+Inf"], accumulate(counts[:-1]), strict=True)


def _histograms(metric: Metric, samples: Iterable[tuple[Sequence[str], Counts]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, live in samples:
        counts = live.copy()
        family.add_metric(labels, list(_cumulated(metric, counts)), counts[-1])
    return family
