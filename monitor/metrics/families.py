"""The metric families that rules may name: the server's catalogue, the machine's, and what others export.

A rule on a family that nobody exports is no error: it has no data, `tidegate monitor check` says so, and it works once there is some.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.metrics import catalogue
from server.metrics.catalogue import CATALOGUE, Metric

_HOST = (
    Metric("tidegate_host_cpu_utilization_ratio", "gauge", "Share of the machine's CPU time in use."),
    Metric("tidegate_host_memory_utilization_ratio", "gauge", "Share of the machine's memory in use."),
)
_SCRAPE = (
    Metric("up", "gauge", "1 where a target answered its last scrape.", ("instance",)),
    Metric("tidegate_monitor_config_reload_failed", "gauge", "1 while the rules file on disk can't be used."),
)
_DCGM_LABELS = ("gpu", "UUID", "Hostname", "modelName")
_DCGM = (
    Metric("DCGM_FI_DEV_GPU_UTIL", "gauge", "Utilization in percent.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_FB_USED", "gauge", "Memory in use, in MiB.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_FB_FREE", "gauge", "Free memory, in MiB.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_GPU_TEMP", "gauge", "Temperature in °C.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power in W.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_THERMAL_VIOLATION", "counter", "Microseconds for which heat held the clock down.", _DCGM_LABELS),
    Metric("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", "Double-bit memory errors.", _DCGM_LABELS),
)

FAMILIES: Mapping[str, Metric] = {metric.name: metric for metric in (*_HOST, *_SCRAPE, *_DCGM)} | dict(CATALOGUE)
"""Every family that a named metric uses; where the server's catalogue has it too, that is what counts."""

EXPORTED: frozenset[str] = frozenset({*CATALOGUE, *(metric.name for metric in (*_HOST, *_SCRAPE))})
"""Those that this version of the server or of the monitor exports."""

LATENCY_BOUNDS = catalogue.REQUEST_DURATION.buckets
"""Where latencies are counted exactly, in seconds: a latency objective must lie on one."""
