"""Every metric: its name, kind, help, labels and buckets. Exposition, monitor, dashboards and docs read them here and nowhere else.

Imports nothing but the standard library, because the monitor reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MODEL_LABELS = ("model", "version", "precision")

REQUEST_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASE_SECONDS = (0.00005, 0.00025, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
LENGTHS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2048.0)
PADDING = (0.05, 0.1, 0.2, 0.4)

PHASES = ("decode", "queue", "gather", "compute", "scatter", "encode")
"""What a request goes through, in order."""

OUTCOMES: Mapping[str, str] = {
    **dict.fromkeys(("invalid", "too_large", "body_timeout", "not_found", "unsupported", "unauthenticated", "denied"), "refused"),
    **dict.fromkeys(("unavailable", "overloaded", "deadline", "model_unavailable", "draining"), "rejected"),
    **dict.fromkeys(("backend", "model_defect", "config", "internal"), "failed"),
    "cancelled": "cancelled",
}
"""Reason of a request that wasn't answered → its outcome: refused (the client's doing), rejected (not now), failed (ours), cancelled."""

SUCCESS = "success"
USUAL_REASONS = ("invalid", "overloaded", "deadline", "backend", "cancelled")
"""Reasons whose series exist from the start, so that the first failure is seen as an increase."""

DROPS = ("expired", "hopeless", "given_up")
"""Why a request with a deadline gets no run: it's past, it can't be kept any more, or others are answered in its place."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `buckets` are a histogram's upper bounds, without +Inf."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUEST_DURATION = Metric(
    "tidegate_request_duration_seconds",
    "histogram",
    "Seconds from a request's last byte to its answer, of successful requests.",
    MODEL_LABELS,
    REQUEST_SECONDS,
)
PHASE_DURATION = Metric(
    "tidegate_phase_duration_seconds",
    "histogram",
    "Seconds that requests spent in each phase; a batch's gather, compute and scatter count once for each of its requests.",
    (*MODEL_LABELS, "phase"),
    PHASE_SECONDS,
)
REQUESTS = Metric(
    "tidegate_requests_total",
    "counter",
    "Requests by outcome (success, refused, rejected, failed, cancelled) and a failure's reason; model is empty where none was found.",
    (*MODEL_LABELS, "outcome", "reason"),
)
BATCHES = Metric("tidegate_batches_total", "counter", "Batches run, by the reason for which they were cut.", (*MODEL_LABELS, "reason"))
BATCH_ROWS = Metric("tidegate_batch_rows", "histogram", "Rows of each batch.", MODEL_LABELS, ROWS)
BATCH_LENGTH = Metric(
    "tidegate_batch_length",
    "histogram",
    "Length that a batch was padded to (cells a row along the padded axes), of models that are padded.",
    MODEL_LABELS,
    LENGTHS,
)
PADDING_RATIO = Metric(
    "tidegate_padding_ratio", "histogram", "Share of a batch's cells that was padding, of models that are padded.", MODEL_LABELS, PADDING
)
ROWS_TOTAL = Metric("tidegate_rows_total", "counter", "Rows run.", MODEL_LABELS)
LANE_BUSY = Metric("tidegate_lane_busy_seconds_total", "counter", "Seconds that a lane spent running batches.", (*MODEL_LABELS, "lane"))
LANE_RESTARTS = Metric(
    "tidegate_lane_restarts_total",
    "counter",
    "Process lanes that were lost and opened again; reason is died or hung.",
    (*MODEL_LABELS, "reason"),
)
QUEUE_ROWS = Metric("tidegate_queue_rows", "gauge", "Rows that wait for a batch.", ("model", "version"))
QUEUE_BYTES = Metric("tidegate_queue_bytes", "gauge", "Bytes of tensors that wait for a batch.", ("model", "version"))
OFFERED_ROWS = Metric(
    "tidegate_offered_rows_total", "counter", "Rows that a model was asked for, those refused for want of room or time too.", MODEL_LABELS
)
CAPACITY_UTILIZATION = Metric(
    "tidegate_capacity_utilization",
    "gauge",
    "Rows offered a second, refused ones too, over what all lanes can serve within the objective; above 1 the model is overloaded.",
    MODEL_LABELS,
)
CAPACITY_ROWS = Metric(
    "tidegate_capacity_rows_per_second", "gauge", "Rows a second that all lanes together can serve within the objective.", MODEL_LABELS
)
RUN_SECONDS = Metric(
    "tidegate_run_seconds", "gauge", "Seconds that a run of the size that capacity is reckoned with is expected to take.", MODEL_LABELS
)
DROPPED = Metric(
    "tidegate_dropped_total",
    "counter",
    "Requests that were refused because of their deadline: it was past (expired), couldn't be kept (hopeless), or others could (given_up).",
    (*MODEL_LABELS, "reason"),
)
TENANT_REQUESTS = Metric(
    "tidegate_tenant_requests_total",
    "counter",
    "Requests by the tenant that they were for and their outcome; tenants that no model.yaml names count as other.",
    ("tenant", "outcome"),
)
MODEL_READY = Metric("tidegate_model_ready", "gauge", "1 where the model serves, else 0.", MODEL_LABELS)
EMULATED = Metric("tidegate_emulated", "gauge", "1 where times are a published table's: nothing was measured.", ("model", "version"))
SEQUENCES = Metric("tidegate_sequences", "gauge", "Sequences whose state is kept, at most sequence.max_sequences.", ("model", "version"))
CACHE_LOOKUPS = Metric(
    "tidegate_cache_lookups_total", "counter", "Lookups of the response cache, by result (hit, miss).", ("model", "version", "result")
)
CACHE_BYTES = Metric("tidegate_cache_bytes", "gauge", "Bytes that the response cache holds.", ("model", "version"))
INFLIGHT_BYTES = Metric("tidegate_inflight_bytes", "gauge", "Bytes of requests held in memory; limits.inflight_bytes bounds them.")
CONNECTIONS = Metric("tidegate_connections", "gauge", "Open HTTP connections.")
LOOP_BUSY = Metric(
    "tidegate_loop_busy_ratio", "gauge", "Share of the last second that the event loop's thread was computing; 1 also where it's stuck."
)
LOG_LINES_DROPPED = Metric("tidegate_log_lines_dropped_total", "counter", "Log lines lost because stderr took no more.")
RECORDING_DROPPED = Metric("tidegate_recording_dropped_total", "counter", "Records of requests that were not written.")
RECORDING_BYTES = Metric("tidegate_recording_bytes", "gauge", "Bytes in recording.dir; recording.max_bytes bounds them.")
BUILD_INFO = Metric("tidegate_build_info", "gauge", "1; the labels say which server this is.", ("version", "python"))

PROCESS = (
    Metric("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    Metric("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    Metric("process_open_fds", "gauge", "Number of open file descriptors."),
    Metric("process_max_fds", "gauge", "Maximum number of open file descriptors."),
)
"""What prometheus_client's own collector says about the process."""

_ALL = (
    *(REQUEST_DURATION, PHASE_DURATION, REQUESTS, DROPPED, TENANT_REQUESTS, BATCHES, BATCH_ROWS, BATCH_LENGTH, PADDING_RATIO, ROWS_TOTAL),
    *(OFFERED_ROWS, CAPACITY_UTILIZATION, CAPACITY_ROWS, RUN_SECONDS, LANE_BUSY, LANE_RESTARTS, QUEUE_ROWS, QUEUE_BYTES, MODEL_READY),
    *(
        SEQUENCES,
        CACHE_LOOKUPS,
        CACHE_BYTES,
        EMULATED,
        INFLIGHT_BYTES,
        CONNECTIONS,
        LOOP_BUSY,
        LOG_LINES_DROPPED,
        RECORDING_DROPPED,
        RECORDING_BYTES,
        BUILD_INFO,
        *PROCESS,
    ),
)
CATALOGUE: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
