"""GPUs, as the server itself reads them by NVML, and beside that as DCGM's exporter does where there's one."""

from __future__ import annotations

from monitor.render.grafana.panels import DCGM, GPU, MODEL, Board, Kind, Limits, Panel, rate, worse_above
from server.metrics import catalogue as c

_OWN = "{{instance}} GPU {{gpu}}"
_OTHER = "{{Hostname}} GPU {{gpu}} (DCGM)"


def _both(own: str, other: str, scale: str = "") -> list[tuple[str, str]]:
    """A figure of the server's and the same of DCGM's, which has units of its own."""
    return [(f"max by (instance, gpu) ({own}{{{GPU}}})", _OWN), (f"max by (Hostname, gpu) ({other}{{{DCGM}}}){scale}", _OTHER)]


_MEMORY = (
    f"max by (instance, gpu) ({c.GPU_MEMORY_USED.name}{{{GPU}}}) / max by (instance, gpu) ({c.GPU_MEMORY_TOTAL.name}{{{GPU}}})",
    f"max by (Hostname, gpu) (DCGM_FI_DEV_FB_USED{{{DCGM}}}) "
    f"/ (max by (Hostname, gpu) (DCGM_FI_DEV_FB_USED{{{DCGM}}}) + max by (Hostname, gpu) (DCGM_FI_DEV_FB_FREE{{{DCGM}}}))",
)

_WORK = (
    Panel(
        "Utilization",
        "Share of the time in which a GPU computes. High is healthy here: batching keeps it busy. High with a growing queue is a full GPU; "
        "low with one is something else (front, CPU, lanes).",
        _both(c.GPU_UTILIZATION.name, "DCGM_FI_DEV_GPU_UTIL", " / 100"),
        "percentunit",
    ),
    Panel(
        "Memory, share",
        "Near 1 the next model or a bigger batch doesn't fit: loading fails, serving goes on.",
        [(_MEMORY[0], _OWN), (_MEMORY[1], _OTHER)],
        "percentunit",
        limits=worse_above(0.85, 0.95),
    ),
    Panel(
        "Memory",
        "What variants and lanes hold. It falls when a model is unloaded: process lanes give it back.",
        _both(c.GPU_MEMORY_USED.name, "DCGM_FI_DEV_FB_USED", " * 1048576"),
        "bytes",
    ),
    Panel(
        "Lanes busy",
        "Share of the time in which models' lanes run batches: which model it is that uses the GPU.",
        [rate(c.LANE_BUSY.name, "model, precision", MODEL)],
        "percentunit",
        Kind.STACK,
    ),
)

_HEALTH = (
    Panel(
        "Available",
        "1 while the driver has figures of a GPU. 0: it fell off the bus, and its models fail until the node is mended.",
        [(f"min by (instance, gpu) ({c.GPU_AVAILABLE.name}{{{GPU}}})", _OWN)],
        kind=Kind.STATES,
        limits=Limits(((1, "green"),), "red"),
    ),
    Panel(
        "Temperature",
        "A T4 slows down at 85 °C or so.",
        _both(c.GPU_TEMPERATURE.name, "DCGM_FI_DEV_GPU_TEMP"),
        "celsius",
        limits=worse_above(80.0, 85.0),
    ),
    Panel(
        "Power",
        "A T4 may draw 70 W; at its limit the clock is held down.",
        _both(c.GPU_POWER.name, "DCGM_FI_DEV_POWER_USAGE"),
        "watt",
    ),
    Panel(
        "Throttled",
        "Share of the time in which heat or power holds the clock down: runs take longer, and the batcher learns it.",
        [
            (f"max by (instance, gpu) (avg_over_time({c.GPU_THROTTLED.name}{{{GPU}}}[$__rate_interval]))", _OWN),
            (f"max by (Hostname, gpu) (rate(DCGM_FI_DEV_THERMAL_VIOLATION{{{DCGM}}}[$__rate_interval])) / 1000000", _OTHER),
        ],
        "percentunit",
        limits=worse_above(0.05, 0.5),
    ),
    Panel(
        "Memory errors",
        "Errors that a GPU couldn't correct, in the last hour. Any of them: drain the node.",
        [
            (f"max by (instance, gpu) (increase({c.GPU_ECC_ERRORS.name}{{{GPU}}}[1h]))", _OWN),
            (f"max by (Hostname, gpu) (increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{DCGM}}}[1h]))", _OTHER),
        ],
        limits=Limits(((1, "red"),)),
    ),
    Panel(
        "Slower than its best",
        "A run's expected time over the least of the last hour. Above 1 for long, under the same load: heat, power, or a neighbour on the "
        "GPU.",
        [
            (
                f"max by (model, precision) ({c.RUN_SECONDS.name}{{{MODEL}}}) "
                f"/ max by (model, precision) (min_over_time({c.RUN_SECONDS.name}{{{MODEL}}}[1h]))",
                "{{model}} {{precision}}",
            )
        ],
        limits=worse_above(1.2, 1.5),
    ),
)

GPUS = Board(
    "gpu",
    "tidegate: GPU",
    "What the GPUs do and how they are, by the server's own figures and DCGM's beside them.",
    ("instance", "model", "version", "precision", "gpu"),
    (("Work", _WORK), ("Health", _HEALTH)),
)
