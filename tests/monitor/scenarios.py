"""Recorded series and the rules that watch them: each is judged by our evaluator and by Prometheus, and they must agree at every step.

A scenario is (rules, series, steps); a step is STEP seconds. Values are in promtool's notation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STEP = 15.0

LATENCY = "tidegate_request_duration_seconds"
REQUESTS = "tidegate_requests_total"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What goes in."""

    rules: str
    series: Mapping[str, str]
    steps: int = 60


def entry(text: str) -> str:
    """A file with one entry."""
    return f"metrics:\n  - {{{text}}}\n"


def buckets(slow: str, fast: str, name: str = LATENCY, labels: str = 'model="a"') -> dict[str, str]:
    """A histogram of two kinds of requests: `fast` ones under 50 ms, and `slow` ones between 0.2 and 0.5 s besides."""
    return {
        f'{name}_bucket{{{labels}, le="0.05"}}': fast,
        f'{name}_bucket{{{labels}, le="0.2"}}': fast,
        f'{name}_bucket{{{labels}, le="0.5"}}': slow,
        f'{name}_bucket{{{labels}, le="+Inf"}}': slow,
    }


def gauge(values: str, name: str = "tidegate_queue_rows", labels: str = 'model="a", version="1"') -> dict[str, str]:
    return {f"{name}{{{labels}}}": values}


def outcomes(success: str, failed: str, rejected: str = "0x200", model: str = "a") -> dict[str, str]:
    kinds = {"success": success, "failed": failed, "rejected": rejected}
    return {f'{REQUESTS}{{model="{model}", outcome="{outcome}"}}': values for outcome, values in kinds.items()}


QUEUE = "name: queue_rows, threshold: 100"
P99 = "name: inference_latency, threshold: 200ms"
ERRORS = "name: error_rate, threshold: 10%"

SCENARIOS: Mapping[str, Scenario] = {
    "a p99 that rises and falls": Scenario(entry(P99), buckets("0+10x20 210+20x10 410+10x30", "0+10x60")),
    "a p99 with for": Scenario(entry(f"{P99}, for: 1m"), buckets("0+10x20 210+20x10 410+10x30", "0+10x60")),
    "a rise shorter than for": Scenario(entry(f"{P99}, for: 3m"), buckets("0+10x20 210+30x3 300+10x36", "0+10x60")),
    "a p50": Scenario(entry("name: inference_latency, threshold: 30ms, quantile: p50"), buckets("0+10x10 110+40x50", "0+10x60")),
    "a p99.9 over five minutes": Scenario(
        entry("name: inference_latency, threshold: 250ms, quantile: p99.9, window: 5m"), buckets("0+10x20 201+11x40", "0+10x60")
    ),
    "a mean": Scenario(
        entry("name: inference_latency, threshold: 100ms, quantile: mean"),
        {f'{LATENCY}_sum{{model="a"}}': "0+0.5x20 11+5x20 112+0.5x20", f'{LATENCY}_count{{model="a"}}': "0+10x60"},
    ),
    "two models, one of them slow": Scenario(
        entry(P99), {**buckets("0+10x60", "0+10x60"), **buckets("0+30x60", "0+10x60", labels='model="b"')}
    ),
    "two replicas of one model": Scenario(
        entry(P99),
        {
            **buckets("0+100x60", "0+100x60", labels='model="a", instance="1"'),
            **buckets("0+2x20 42+30x40", "0+1x60", labels='model="a", instance="2"'),
        },
    ),
    "a counter that is reset": Scenario(entry(P99), buckets("0+20x20 0+20x39", "0+10x20 0+10x39")),
    "a reset that must look like no burst": Scenario(
        entry("series: c_total, reduce: rate, threshold: 2, by: [model]"), {'c_total{model="a"}': "0+15x20 3+15x15 0+15x23"}
    ),
    "a rate that begins in mid-air": Scenario(
        entry("series: c_total, reduce: rate, threshold: 2/s, by: [model]"), {'c_total{model="a"}': "_x10 5000+15x10 5150+60x10 5750+3x20"}
    ),
    "an increase from nothing": Scenario(
        entry("name: lane_restarts, threshold: 1"), {'tidegate_lane_restarts_total{model="a", lane="0"}': "0x20 1+1x3 4x36"}
    ),
    "a gauge over its threshold": Scenario(entry(QUEUE), gauge("0x10 200x10 0x40")),
    "a gauge of two versions, summed": Scenario(
        entry(f"{QUEUE}, window: 30s"), {**gauge("60x60"), **gauge("0x20 60x20 0x20", labels='model="a", version="2"')}
    ),
    "a gauge that flaps, with keep_firing_for": Scenario(
        entry(f"{QUEUE}, window: 15s, keep_firing_for: 1m"), gauge("0x5 300 0 300 0x3 300 0 0 300 0x45")
    ),
    "for and keep_firing_for": Scenario(
        entry(f"{QUEUE}, window: 15s, for: 45s, keep_firing_for: 45s"), gauge("0x5 300x8 0x2 300x2 0x20 300x2 0x17")
    ),
    "hysteresis": Scenario(entry(f"{QUEUE}, window: 15s, clear: 50"), gauge("0x5 60x5 150x2 90x5 60x5 40x5 90x10 150x3 0x10")),
    "hysteresis with for": Scenario(entry(f"{QUEUE}, window: 15s, clear: 50, for: 30s"), gauge("0x5 150 90x5 150x4 90x5 40x5 90x30")),
    "several levels": Scenario(
        "metrics:\n  - name: queue_rows\n    window: 15s\n    levels:\n"
        "      - {threshold: 100, alert_level: WARNING}\n      - {threshold: 500, alert_level: CRITICAL, for: 30s}\n",
        gauge("0x5 200x5 600x8 200x5 0x35"),
    ),
    "a fall below": Scenario(
        entry("name: throughput, threshold: 10/s, for: 30s"), {'tidegate_rows_total{model="a"}': "0+300x20 6000+60x20 7200+300x20"}
    ),
    "an error rate": Scenario(entry(ERRORS), outcomes("0+100x60", "0x15 0+20x15 300x30")),
    "an error rate of nothing": Scenario(entry(ERRORS), outcomes("100x60", "5x60")),
    "a rejection rate of two models": Scenario(
        entry("name: rejection_rate, threshold: 20%, window: 2m"),
        {**outcomes("0+100x60", "0x60"), **outcomes("0+10x60", "0x60", "0+5x60", model="b")},
    ),
    "a gap shorter than the look-back": Scenario(
        entry("name: model_ready, for: 1m"), {'tidegate_model_ready{model="a"}': "1x10 0x5 _x12 0x30"}
    ),
    "a gap longer than the look-back": Scenario(entry("name: model_ready"), {'tidegate_model_ready{model="a"}': "1x5 0x5 _x30 0x10"}),
    "a series that ends": Scenario(entry("name: model_ready"), {'tidegate_model_ready{model="a"}': "1x5 0x5 stale _x10 0x10"}),
    "a rate across a gap": Scenario(entry(f"{P99}, window: 2m"), buckets("0+20x20 _x5 500+20x30", "0+10x20 _x5 250+10x30")),
    "absence": Scenario(
        entry("name: inference_latency, threshold: 10s, model: a, absent: 1m"),
        {f'{LATENCY}_count{{model="a"}}': "0+1x10 stale _x25 40+1x20", f'{LATENCY}_count{{model="b"}}': "0+1x60"},
    ),
    "change of a gauge": Scenario(entry("name: queue_rows, change: 2m, threshold: 100"), gauge("0x10 0+30x10 300x20 300-30x10 0x10")),
    "a target that is down": Scenario(
        entry("name: target_up, for: 15s"),
        {'up{job="tidegate", instance="a"}': "1x10 0x5 1x45", 'up{job="tidegate", instance="b"}': "1x60"},
    ),
    "a GPU from the server's own figures": Scenario(
        entry("name: gpu_utilization, threshold: 90%"),
        {
            'tidegate_gpu_utilization_ratio{instance="a", gpu="0"}': "0.5x10 1x20 0.2x30",
            'DCGM_FI_DEV_GPU_UTIL{instance="b", gpu="0"}': "100x60",
        },
    ),
    "a GPU from DCGM": Scenario(
        entry("name: gpu_utilization, threshold: 90%"), {'DCGM_FI_DEV_GPU_UTIL{instance="b", gpu="0"}': "50x10 100x20 20x30"}
    ),
    "GPU memory": Scenario(
        entry("name: gpu_memory, threshold: 90%"),
        {'DCGM_FI_DEV_FB_USED{instance="b", gpu="0"}': "5000x20 15000x40", 'DCGM_FI_DEV_FB_FREE{instance="b", gpu="0"}': "10000x20 360x40"},
    ),
    "a pattern of labels": Scenario(
        'metrics:\n  - {name: queue_rows, threshold: 5, labels: {model: "~a|b"}}\n',
        {**gauge("9x20"), **gauge("9x30", labels='model="b"'), **gauge("9x40", labels='model="ab"')},
    ),
    "a latency by phase": Scenario(
        entry("name: time_in_phase, threshold: 100ms, phase: compute"),
        {
            **buckets("0+20x60", "0+10x60", "tidegate_phase_duration_seconds", 'model="a", phase="compute"'),
            **buckets("0+20x60", "0+10x60", "tidegate_phase_duration_seconds", 'model="a", phase="queue"'),
        },
    ),
    "all the pack over a quiet server": Scenario("pack: true\nmetrics: []\n", {**outcomes("0+100x60", "0x60"), **gauge("3x60")}),
    "an availability that burns fast": Scenario(
        "objectives:\n  - {name: availability, target: 99%}\n", outcomes("0+100x300", "0x100 0+50x40 2000x160"), 300
    ),
    "a latency objective that burns": Scenario(
        "objectives:\n  - {name: fast, target: 90%, of: latency, threshold: 200ms}\n",
        {
            f'{LATENCY}_bucket{{model="a", le="0.2"}}': "0+10x80 800+1x60 860+10x160",
            f'{LATENCY}_count{{model="a"}}': "0+10x300",
        },
        300,
    ),
    "a burn that a day shows": Scenario(
        "objectives:\n  - {name: availability, target: 99.9%}\n", outcomes("0+1000x2000", "0x400 0+4x1600"), 2000
    ),
}
