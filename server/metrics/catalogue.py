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

FIRST_RESPONSE_SECONDS = (0.1, 0.5, 2.0, 5.0)

PHASES = ("decode", "queue", "gather", "compute", "scatter", "encode")
"""What a request goes through, in order."""

OUTCOMES: Mapping[str, str] = {
    **dict.fromkeys(("invalid", "too_large", "body_timeout", "not_found", "unsupported"), "refused"),
    **dict.fromkeys(("superseded", "conflict", "unauthenticated", "denied"), "refused"),
    **dict.fromkeys(("unavailable", "overloaded", "deadline", "model_unavailable", "draining"), "rejected"),
    **dict.fromkeys(("backend", "device_memory", "device_lost", "model_defect", "config", "internal"), "failed"),
    "cancelled": "cancelled",
}
"""Reason of a request that wasn't answered → its outcome: refused (the client's doing), rejected (not now), failed (ours), cancelled."""

SUCCESS = "success"
USUAL_REASONS = ("invalid", "overloaded", "deadline", "backend", "cancelled")
"""Reasons whose series exist from the start, so that the first failure is seen as an increase."""

FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's reasons of failed requests: REJECTED is our rejected, CANCELED our cancelled, BACKEND the reason backend, OTHER the rest."""

DROPS = ("expired", "hopeless", "given_up")
"""Why a request with a deadline gets no run: it's past, it can't be kept any more, or others are answered in its place."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `buckets` are a histogram's upper bounds, without +Inf."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
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
ACTIVE_PRECISION = Metric("tidegate_active_precision", "gauge", "1 for the precision that answers, else 0.", MODEL_LABELS)
LADDER_STEPS = Metric(
    "tidegate_ladder_steps_total",
    "counter",
    "Changes of precision that the server made by itself, by the precision and why; reason failed: what couldn't be stepped to.",
    ("model", "precision", "reason"),
)
LADDER_UTILIZATION = Metric(
    "tidegate_ladder_utilization",
    "gauge",
    "Rows asked for a second, or foreseen, over what a precision could serve within the objective; the ladder steps by it.",
    ("model", "precision"),
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
_VERSIONS = ("model", "version")
DRIFT_STATISTIC = Metric("tidegate_drift_statistic", "gauge", "The drift guard's statistic of a variant.", MODEL_LABELS)
DRIFT_THRESHOLD = Metric("tidegate_drift_threshold", "gauge", "Where the drift statistic is an alarm.", MODEL_LABELS)
DRIFT_SAMPLES = Metric("tidegate_drift_samples_total", "counter", "Rows of answers that were compared with FP32's.", MODEL_LABELS)
DRIFT_ALARMS = Metric(
    "tidegate_drift_alarms_total", "counter", "Alarms of the drift guard; cause is drift or not_finite.", (*MODEL_LABELS, "cause")
)
DISAGREEMENT = Metric("tidegate_disagreement_ratio", "gauge", "Share of the compared rows that differ from FP32's.", MODEL_LABELS)
DISAGREEMENT_LOW = Metric("tidegate_disagreement_low_ratio", "gauge", "Lower end of that share's 95 % interval.", MODEL_LABELS)
DISAGREEMENT_HIGH = Metric("tidegate_disagreement_high_ratio", "gauge", "Upper end of that share's 95 % interval.", MODEL_LABELS)
NOT_FINITE = Metric(
    "tidegate_nonfinite_answers_total",
    "counter",
    "Answers with NaN or Inf, by whose doing it was: variant, input, neighbour (in the same run), or unknown.",
    (*MODEL_LABELS, "blame"),
)
ADMISSION = Metric("tidegate_admission_statistic", "gauge", "The statistic of a variant's test on a device without proof.", MODEL_LABELS)
GUARD_SHARE = Metric("tidegate_guard_device_ratio", "gauge", "Share of the last minute that the guard's replays took.", _VERSIONS)
GUARD_SECONDS = Metric("tidegate_guard_seconds_total", "counter", "Seconds that the guard's replays took.", _VERSIONS)
GUARD_PAUSED = Metric("tidegate_guard_paused", "gauge", "1 while the guard can't ask its reference, else 0.", _VERSIONS)
INPUT_SHIFT = Metric(
    "tidegate_input_drift",
    "gauge",
    "How far an input's mean is from the calibration set's, in that one's standard deviations.",
    (*_VERSIONS, "input"),
)
INPUT_STRANGE = Metric(
    "tidegate_input_strange_ratio",
    "gauge",
    "Share of an input's values outside of the calibration set's range, NaN and Inf among them.",
    (*_VERSIONS, "input"),
)
EMULATED = Metric("tidegate_emulated", "gauge", "1 where times are a published table's: nothing was measured.", ("model", "version"))
SEQUENCES = Metric("tidegate_sequences", "gauge", "Sequences whose state is kept, at most sequence.max_sequences.", ("model", "version"))
CACHE_LOOKUPS = Metric(
    "tidegate_cache_lookups_total", "counter", "Lookups of the response cache, by result (hit, miss).", ("model", "version", "result")
)
CACHE_BYTES = Metric("tidegate_cache_bytes", "gauge", "Bytes that the response cache holds.", ("model", "version"))
EXPERIMENT_REQUESTS = Metric(
    "tidegate_experiment_requests_total",
    "counter",
    "Requests that chance gave to a version for an experiment and that ended, by arm (baseline, canary); from 0 with each experiment.",
    ("model", "version", "arm"),
)
CANARY_STEP = Metric("tidegate_canary_step", "gauge", "Step of a model's canary, from 1; 0 where none goes on.", ("model",))
CANARY_SHARE = Metric("tidegate_canary_share_ratio", "gauge", "Share of a model's requests that its canary gets.", ("model",))
_GUARD = ("model", "guard")
GUARD_WORSE = Metric(
    "tidegate_guard_worse", "gauge", "By how much an experiment's second arm is worse in a metric: a share, or seconds of latency.", _GUARD
)
GUARD_LOW = Metric("tidegate_guard_low", "gauge", "What that is above at all times, with the experiment's confidence.", _GUARD)
GUARD_HIGH = Metric("tidegate_guard_high", "gauge", "What that is below at all times, with the experiment's confidence.", _GUARD)
CANARY_VERDICTS = Metric(
    "tidegate_canary_verdicts_total",
    "counter",
    "Looks at a model's canary by what followed (promote, hold, roll_back) and why.",
    ("model", "action", "reason"),
)
EXPERIMENT_CUT_OFF = Metric(
    "tidegate_experiment_cut_off", "gauge", "1 while the state can't be reached and so the baseline answers everything.", ("model",)
)
_SHADOW = ("model", "version")
SHADOW_REQUESTS = Metric(
    "tidegate_shadow_requests_total",
    "counter",
    "Requests that another version answered and that were offered to this one for comparison: same, differs, dropped (no copy), failed.",
    (*_SHADOW, "result"),
)
SHADOW_MAX_ABS = Metric("tidegate_shadow_max_abs", "gauge", "Largest difference of a number in answers that were compared.", _SHADOW)
SHADOW_COSINE = Metric("tidegate_shadow_cosine", "gauge", "Mean cosine between rows of answers that were compared.", _SHADOW)
SHADOW_TOP1 = Metric(
    "tidegate_shadow_disagreement_ratio", "gauge", "Share of compared rows of class scores whose best class differs.", _SHADOW
)
_GPU = ("gpu",)
GPU_UTILIZATION = Metric("tidegate_gpu_utilization_ratio", "gauge", "Share of the time in which the GPU was computing.", _GPU)
GPU_MEMORY_USED = Metric("tidegate_gpu_memory_used_bytes", "gauge", "GPU memory in use.", _GPU)
GPU_MEMORY_TOTAL = Metric("tidegate_gpu_memory_total_bytes", "gauge", "GPU memory there is.", _GPU)
GPU_TEMPERATURE = Metric("tidegate_gpu_temperature_celsius", "gauge", "The GPU's temperature.", _GPU)
GPU_POWER = Metric("tidegate_gpu_power_watts", "gauge", "The power the GPU draws.", _GPU)
GPU_THROTTLED = Metric("tidegate_gpu_throttled", "gauge", "1 while heat or power holds the GPU's clock down.", _GPU)
GPU_ECC_ERRORS = Metric("tidegate_gpu_ecc_errors_total", "counter", "Memory errors that the GPU couldn't correct.", _GPU)
GPU_AVAILABLE = Metric("tidegate_gpu_available", "gauge", "1 while the driver has figures of the GPU, 0 where it's lost.", _GPU)
INFLIGHT_BYTES = Metric("tidegate_inflight_bytes", "gauge", "Bytes of requests held in memory; limits.inflight_bytes bounds them.")
CONNECTIONS = Metric("tidegate_connections", "gauge", "Open HTTP connections.")
STATE_REACHABLE = Metric("tidegate_state_reachable", "gauge", "1 while the Redis that a fleet shares answers; else baselines answer.")
FLEET_LEADER = Metric("tidegate_fleet_leader", "gauge", "1 on the one server of a fleet that judges and steps its canaries.")
LOOP_BUSY = Metric(
    "tidegate_loop_busy_ratio", "gauge", "Share of the last second that the event loop's thread was computing; 1 also where it's stuck."
)
LOG_LINES_DROPPED = Metric("tidegate_log_lines_dropped_total", "counter", "Log lines lost because stderr took no more.")
RECORDING_DROPPED = Metric("tidegate_recording_dropped_total", "counter", "Records of requests that were not written.")
RECORDING_BYTES = Metric("tidegate_recording_bytes", "gauge", "Bytes in recording.dir; recording.max_bytes bounds them.")
TRACES_DROPPED = Metric("tidegate_traces_dropped_total", "counter", "Traces lost because the collector took no more.")
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
    *(DRIFT_STATISTIC, DRIFT_THRESHOLD, DRIFT_SAMPLES, DRIFT_ALARMS, DISAGREEMENT, DISAGREEMENT_LOW, DISAGREEMENT_HIGH, NOT_FINITE),
    *(ADMISSION, GUARD_SHARE, GUARD_SECONDS, GUARD_PAUSED, INPUT_SHIFT, INPUT_STRANGE),
    *(ACTIVE_PRECISION, LADDER_STEPS, LADDER_UTILIZATION),
    *(GPU_UTILIZATION, GPU_MEMORY_USED, GPU_MEMORY_TOTAL, GPU_TEMPERATURE, GPU_POWER, GPU_THROTTLED, GPU_ECC_ERRORS, GPU_AVAILABLE),
    *(
        EXPERIMENT_REQUESTS,
        CANARY_STEP,
        CANARY_SHARE,
        CANARY_VERDICTS,
        GUARD_WORSE,
        GUARD_LOW,
        GUARD_HIGH,
        EXPERIMENT_CUT_OFF,
        SHADOW_REQUESTS,
        SHADOW_MAX_ABS,
        SHADOW_COSINE,
        SHADOW_TOP1,
        SEQUENCES,
        CACHE_LOOKUPS,
        CACHE_BYTES,
        EMULATED,
        INFLIGHT_BYTES,
        CONNECTIONS,
        STATE_REACHABLE,
        FLEET_LEADER,
        LOOP_BUSY,
        LOG_LINES_DROPPED,
        RECORDING_DROPPED,
        RECORDING_BYTES,
        TRACES_DROPPED,
        BUILD_INFO,
        *PROCESS,
    ),
)
CATALOGUE: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}

_VERSION = ("model", "version")
_US = tuple(bound * 1e6 for bound in REQUEST_SECONDS)
_PHASE_US = tuple(bound * 1e6 for bound in PHASE_SECONDS)
_GPU_UUID = ("gpu_uuid",)
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def _triton(kind: Literal["counter", "gauge"], name: str, help_: str, labels: tuple[str, ...] = _VERSION) -> Metric:
    return Metric(f"nv_{name}", kind, help_, labels)


_PARTS = {
    "request": "from receipt to answer",
    "queue": "waiting",
    "compute_input": "gathering inputs",
    "compute_infer": "in the model",
    "compute_output": "splitting outputs",
}
_TRITON = (
    _triton("counter", "inference_request_success", "Requests that were answered."),
    _triton("counter", "inference_request_failure", "Requests that weren't, by Triton's reasons.", (*_VERSION, "reason")),
    _triton("counter", "inference_count", "Rows that were run; those of failed runs aren't in it."),
    _triton("counter", "inference_exec_count", "Runs; failed ones aren't in it."),
    *(
        _triton("counter", f"inference_{part}_duration_us", f"Microseconds that answered requests spent {what}, summed.")
        for part, what in _PARTS.items()
    ),
    _triton("gauge", "inference_pending_request_count", "Requests that wait for a run."),
    _triton("gauge", "model_load_duration_secs", "Seconds that it took to load the version, warm-up included."),
    _triton("counter", "cache_num_hits_per_model", "Requests that the response cache answered."),
    _triton("counter", "cache_num_misses_per_model", "Requests that the response cache was asked for in vain."),
    _triton("counter", "cache_hit_duration_per_model", "Microseconds of look-ups that found an answer."),
    _triton("counter", "cache_miss_duration_per_model", "Microseconds of look-ups in vain and of keeping the answers."),
    _triton("gauge", "cpu_utilization", "Share of the machine's CPU time in use, from 0 to 1.", ()),
    _triton("gauge", "cpu_memory_total_bytes", "Memory of the machine.", ()),
    _triton("gauge", "cpu_memory_used_bytes", "Memory in use.", ()),
    _triton("gauge", "gpu_utilization", "Share of the time in which the GPU was computing, from 0 to 1.", _GPU_UUID),
    _triton("gauge", "gpu_memory_total_bytes", "GPU memory there is.", _GPU_UUID),
    _triton("gauge", "gpu_memory_used_bytes", "GPU memory in use.", _GPU_UUID),
    _triton("gauge", "gpu_power_usage", "Watts that the GPU draws.", _GPU_UUID),
    _triton("gauge", "gpu_power_limit", "Watts that the GPU may draw.", _GPU_UUID),
    _triton("counter", "energy_consumption", "Joules that the GPU used since the driver was loaded.", _GPU_UUID),
    *(
        Metric(
            f"nv_inference_{part}_duration_histogram_us",
            "histogram",
            f"Microseconds that an answered request spent {what}.",
            _VERSION,
            _US if part == "request" else _PHASE_US,
        )
        for part, what in _PARTS.items()
    ),
    Metric(
        "nv_inference_first_response_histogram_ms",
        "histogram",
        "Milliseconds to a request's first response, of decoupled models.",
        _VERSION,
        tuple(bound * 1e3 for bound in FIRST_RESPONSE_SECONDS),
    ),
    *(
        Metric(f"nv_inference_{part}_summary_us", "summary", f"Microseconds of the last minute's answered requests {what}.", _VERSION)
        for part, what in _PARTS.items()
    ),
)
TRITON: Mapping[str, Metric] = {metric.name: metric for metric in _TRITON}
"""What Triton calls its metrics, beside ours: no suffix _total, whatever the kind. The histograms by default off, as the summaries."""
