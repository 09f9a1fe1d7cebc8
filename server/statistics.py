"""What clients ask of …/stats and ModelStatistics: the statistics of the versions that are ready. Both edges call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from server.metrics.recorder import Recorder
from server.metrics.statistics import statistics_of
from server.router.router import Router

Statistics: TypeAlias = Callable[[str, str], Mapping[str, Any]]
"""(model, version) → the fields of a ModelStatisticsResponse."""


def model_statistics(router: Router, recorder: Recorder, model: str, version: str) -> Mapping[str, Any]:
    """Of a version; of all of a model's where `version` is empty, of all models where `model` is too. Raises as Router.entry."""
    entries = router.entries(model, version)
    found = (statistics_of(entry.model, entry.version, recorder.of(entry.model, entry.version)) for entry in entries)
    return {"model_stats": [one.fields(entry.memory) for one, entry in zip(found, entries, strict=True)]}
