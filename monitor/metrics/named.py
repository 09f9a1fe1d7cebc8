"""The metrics that a rules file calls by name: what each asks of the series, in which unit, and what is right where the file says nothing.

A new named metric is one line of this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitor.metrics.quantities import Unit
from monitor.metrics.query import Arithmetic, Matcher, Query
from monitor.metrics.shapes import GPU, INSTANCE, MODEL, Ask, Build, Named, counted, first_of, gauge, histogram, newest, share
from server.metrics import catalogue
from server.metrics.catalogue import MODEL_LABELS

_REQUESTS = catalogue.REQUESTS.name
_JUDGED = counted("rate", _REQUESTS, Matcher("outcome", "=~", "success|failed|rejected"))
_PHASES = catalogue.PHASE_DURATION.name
_GPU_NAME = "tidegate_gpu_"


def _outcome(outcome: str) -> Build:
    return share(counted("rate", _REQUESTS, Matcher("outcome", "=", outcome)), _JUDGED)


def _gpu_memory(ask: Ask) -> Query:
    own = share(gauge(f"{_GPU_NAME}memory_used_bytes"), gauge(f"{_GPU_NAME}memory_total_bytes"))
    used, free = gauge("DCGM_FI_DEV_FB_USED"), gauge("DCGM_FI_DEV_FB_FREE")
    return first_of(own, lambda asked: Arithmetic("/", used(asked), Arithmetic("+", used(asked), free(asked))))(ask)


def _gpu(own: str, other: str, scale: float = 1.0) -> Build:
    return first_of(gauge(f"{_GPU_NAME}{own}"), gauge(f"DCGM_FI_DEV_{other}"), scale)


def _families(own: str, *others: str) -> tuple[str, ...]:
    return (f"{_GPU_NAME}{own}", *(f"DCGM_FI_DEV_{other}" for other in others))


_LATENCY = (
    Named(
        "inference_latency",
        Unit.SECONDS,
        "from a request's last byte to its answer, of successful requests",
        histogram(catalogue.REQUEST_DURATION.name),
        (catalogue.REQUEST_DURATION.name,),
        q=0.99,
        histogram=True,
    ),
    Named(
        "queue_latency",
        Unit.SECONDS,
        "how long requests wait for a batch",
        histogram(_PHASES, Matcher("phase", "=", "queue")),
        (_PHASES,),
        q=0.99,
        histogram=True,
    ),
    Named(
        "time_in_phase",
        Unit.SECONDS,
        "how long requests are in each phase; fix one with `phase`",
        histogram(_PHASES),
        (_PHASES,),
        (*MODEL_LABELS, "phase"),
        ("model", "phase"),
        q=0.99,
        histogram=True,
    ),
)

_TRAFFIC = (
    Named(
        "throughput",
        Unit.RATE,
        "rows run a second",
        counted("rate", catalogue.ROWS_TOTAL.name),
        (catalogue.ROWS_TOTAL.name,),
        comparison="<",
    ),
    Named("error_rate", Unit.RATIO, "requests that failed by our doing, of those judged", _outcome("failed"), (_REQUESTS,)),
    Named("rejection_rate", Unit.RATIO, "requests turned away for want of room or time", _outcome("rejected"), (_REQUESTS,)),
    Named(
        "drop_rate",
        Unit.RATIO,
        "requests refused because of their deadline",
        share(counted("rate", "tidegate_dropped_total"), _JUDGED),
        ("tidegate_dropped_total", _REQUESTS),
    ),
    Named(
        "cache_hits",
        Unit.RATIO,
        "lookups that the response cache answered",
        share(
            counted("rate", "tidegate_cache_lookups_total", Matcher("result", "=", "hit")), counted("rate", "tidegate_cache_lookups_total")
        ),
        ("tidegate_cache_lookups_total",),
        MODEL,
        comparison="<",
    ),
    Named(
        "batch_rows",
        Unit.COUNT,
        "rows of a batch",
        histogram(catalogue.BATCH_ROWS.name),
        (catalogue.BATCH_ROWS.name,),
        comparison="<",
        histogram=True,
    ),
    Named(
        "padding_waste",
        Unit.RATIO,
        "share of a batch's cells that is padding",
        histogram("tidegate_padding_ratio"),
        ("tidegate_padding_ratio",),
        histogram=True,
    ),
    Named(
        "queue_rows",
        Unit.COUNT,
        "rows that wait for a batch",
        gauge(catalogue.QUEUE_ROWS.name, "sum"),
        (catalogue.QUEUE_ROWS.name,),
        ("model", "version"),
        gauge=True,
    ),
    Named(
        "capacity_utilization",
        Unit.RATIO,
        "rows offered over what the lanes can serve; above 100% the model is overloaded",
        gauge("tidegate_capacity_utilization"),
        ("tidegate_capacity_utilization",),
        gauge=True,
    ),
)

_GPUS = tuple(
    Named(name, unit, what, build, families, ("instance", "gpu"), GPU, gauge=True)
    for name, unit, what, build, families in (
        (
            "gpu_utilization",
            Unit.RATIO,
            "share of the time in which the GPU computes",
            _gpu("utilization_ratio", "GPU_UTIL", 0.01),
            _families("utilization_ratio", "GPU_UTIL"),
        ),
        (
            "gpu_memory",
            Unit.RATIO,
            "share of the GPU's memory in use",
            _gpu_memory,
            (f"{_GPU_NAME}memory_total_bytes", *_families("memory_used_bytes", "FB_USED", "FB_FREE")),
        ),
        (
            "gpu_memory_used",
            Unit.BYTES,
            "GPU memory in use",
            _gpu("memory_used_bytes", "FB_USED", 2.0**20),
            _families("memory_used_bytes", "FB_USED"),
        ),
        (
            "gpu_temperature",
            Unit.CELSIUS,
            "the GPU's temperature",
            _gpu("temperature_celsius", "GPU_TEMP"),
            _families("temperature_celsius", "GPU_TEMP"),
        ),
        ("gpu_power", Unit.WATTS, "the power the GPU draws", _gpu("power_watts", "POWER_USAGE"), _families("power_watts", "POWER_USAGE")),
    )
)

_GPU_EVENTS = (
    Named(
        "gpu_throttled",
        Unit.RATIO,
        "share of the time in which heat or power holds the GPU's clock down",
        # DCGM counts microseconds.
        first_of(gauge(f"{_GPU_NAME}throttled"), lambda ask: counted("rate", "DCGM_FI_DEV_THERMAL_VIOLATION")(ask), 1e-6),
        _families("throttled", "THERMAL_VIOLATION"),
        ("instance", "gpu"),
        GPU,
        threshold=0.0,
    ),
    Named(
        "gpu_ecc_errors",
        Unit.COUNT,
        "memory errors that the GPU couldn't correct, in the window",
        first_of(counted("increase", f"{_GPU_NAME}ecc_errors_total"), counted("increase", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL")),
        _families("ecc_errors_total", "ECC_DBE_VOL_TOTAL"),
        ("instance", "gpu"),
        GPU,
        3600.0,
        threshold=0.0,
    ),
)

_MACHINE = (
    Named(
        "cpu_utilization",
        Unit.RATIO,
        "share of the machine's CPU time in use",
        gauge("tidegate_host_cpu_utilization_ratio"),
        ("tidegate_host_cpu_utilization_ratio",),
        INSTANCE,
        INSTANCE,
        gauge=True,
    ),
    Named(
        "host_memory",
        Unit.RATIO,
        "share of the machine's memory in use",
        gauge("tidegate_host_memory_utilization_ratio"),
        ("tidegate_host_memory_utilization_ratio",),
        INSTANCE,
        INSTANCE,
        gauge=True,
    ),
    Named(
        "memory",
        Unit.BYTES,
        "the server's resident memory",
        gauge("process_resident_memory_bytes"),
        ("process_resident_memory_bytes",),
        INSTANCE,
        INSTANCE,
        gauge=True,
    ),
    Named(
        "loop_busy",
        Unit.RATIO,
        "share of the time in which the server's event loop computes",
        gauge(catalogue.LOOP_BUSY.name),
        (catalogue.LOOP_BUSY.name,),
        INSTANCE,
        INSTANCE,
        gauge=True,
    ),
    Named(
        "target_up",
        Unit.COUNT,
        "1 where a target answers its scrapes",
        newest("up", "min"),
        ("up",),
        ("instance", "job"),
        ("job", "instance"),
        comparison="<",
        threshold=1.0,
    ),
    Named(
        "config_reload_failed",
        Unit.COUNT,
        "1 while the rules file on disk can't be used",
        newest("tidegate_monitor_config_reload_failed"),
        ("tidegate_monitor_config_reload_failed",),
        INSTANCE,
        INSTANCE,
        threshold=0.0,
    ),
)

_MODELS = (
    Named(
        "model_ready",
        Unit.COUNT,
        "1 where the model serves",
        newest(catalogue.MODEL_READY.name, "min"),
        (catalogue.MODEL_READY.name,),
        comparison="<",
        threshold=1.0,
    ),
    Named(
        "precision",
        Unit.COUNT,
        "1 for the precision that answers: `precision: int8` watches for it",
        newest(catalogue.ACTIVE_PRECISION.name),
        (catalogue.ACTIVE_PRECISION.name,),
        by=("model", "precision"),
        threshold=0.0,
    ),
    Named(
        "drift",
        Unit.COUNT,
        "the drift guard's statistic",
        newest("tidegate_drift_statistic"),
        ("tidegate_drift_statistic",),
        threshold=13.0,
    ),
    Named(
        "canary_state",
        Unit.RATIO,
        "share of the traffic that the canary has",
        newest(catalogue.CANARY_SHARE.name),
        (catalogue.CANARY_SHARE.name,),
        MODEL,
        threshold=0.0,
    ),
    Named(
        "lane_restarts",
        Unit.COUNT,
        "lanes that died and were started again, in the window",
        counted("increase", "tidegate_lane_restarts_total"),
        ("tidegate_lane_restarts_total",),
        ("model", "lane", "reason"),
        window=600.0,
        threshold=0.0,
    ),
)

NAMED: Mapping[str, Named] = {metric.name: metric for metric in (*_LATENCY, *_TRAFFIC, *_GPUS, *_GPU_EVENTS, *_MACHINE, *_MODELS)}
"""Every metric that has a name of its own."""

RUNBOOKS: Mapping[str, str] = {
    "queue_latency": "QueueGrowing",
    "queue_rows": "QueueGrowing",
    "drop_rate": "RequestsDropped",
    "rejection_rate": "RequestsRejected",
    "gpu_memory_used": "GpuMemory",
    "host_memory": "Memory",
    "loop_busy": "EventLoopBusy",
    "target_up": "TargetDown",
    "config_reload_failed": "MonitorConfigBroken",
    "model_ready": "ModelNotReady",
    "drift": "PrecisionDrift",
}
"""Metrics whose page in docs/runbooks/ isn't called as they are."""
