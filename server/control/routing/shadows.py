"""What of shadow copies is seen in the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from server.metrics.recorder import Recorder
from server.router.live.shadow import RESULTS, Shadow

GAUGES: Mapping[str, Callable[[Shadow], float]] = MappingProxyType(
    {
        "tidegate_shadow_max_abs": lambda shadow: shadow.compared.max_abs,
        "tidegate_shadow_cosine": lambda shadow: shadow.compared.cosine_mean,
        "tidegate_shadow_disagreement_ratio": lambda shadow: shadow.compared.top1_disagreement or 0.0,
    }
)


def show_shadow(recorder: Recorder, model: str, shadow: Shadow) -> None:
    """Have the metrics say what comes of a model's copies."""
    labels = {"model": model, "version": shadow.version}
    for result in RESULTS:
        recorder.gauge("tidegate_shadow_requests_total", {**labels, "result": result}, partial(_count, shadow, result))
    for name, read in GAUGES.items():
        recorder.gauge(name, labels, partial(read, shadow))


def _count(shadow: Shadow, result: str) -> float:
    return float(shadow.results[result])
