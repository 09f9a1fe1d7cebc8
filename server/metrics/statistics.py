"""A version's statistics by Triton's rules, out of the recorder's figures: what clients ask of …/stats and ModelStatistics, and what nv_*
metrics show. Each request of a run counts with the whole run's durations.

Triton's compute_input is our gather, compute_infer our compute and compute_output our scatter; queue is the time until a run was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from server.messages import ModelKey
from server.metrics.catalogue import FAILURE_REASONS, OUTCOMES
from server.metrics.figures import Counts, Figures, merged
from server.ring import unix_offset

_BY_OUTCOME: Mapping[str, str] = {"rejected": "REJECTED", "cancelled": "CANCELED"}
_BACKENDS = ("backend", "device_memory", "device_lost")


PARTS: Mapping[str, str] = {
    "request": "success",
    "queue": "queue",
    "compute_input": "compute_input",
    "compute_infer": "compute_infer",
    "compute_output": "compute_output",
}
"""What a request goes through, as nv_* metrics call it → as the statistics do."""


class Sum(NamedTuple):
    """How many, and seconds of them all."""

    number: float
    seconds: float


class Memory(NamedTuple):
    """An estimate, made at load, of what a version holds: `kind` is CPU or GPU, `device` its number."""

    kind: str
    device: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """One version's, since it was first loaded. `rows` and `runs` are of runs that went well; `failures` are by Triton's reasons."""

    model: str
    version: str
    parts: Mapping[str, Sum]
    rows: int
    runs: int
    last: float
    failures: Mapping[str, int]
    batches: Mapping[int, Sequence[float]]
    responses: Mapping[int, Mapping[str, Sequence[float]]]

    def fields(self, memory: Iterable[Memory] = ()) -> dict[str, Any]:
        """The members of a ModelStatistics, by the names that JSON and proto share."""
        return {
            "name": self.model,
            "version": self.version,
            "last_inference": max(0, int((self.last + unix_offset()) * 1e3)) if self.last else 0,
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {name: _duration(*part) for name, part in self.parts.items()},
            "batch_stats": [_batch(rows, *run) for rows, run in sorted(self.batches.items())],
            "memory_usage": [{"type": each.kind, "id": each.device, "byte_size": each.bytes} for each in memory],
            "response_stats": {
                str(index): {name: _duration(*part) for name, part in parts.items()} for index, parts in sorted(self.responses.items())
            },
        }


def statistics_of(model: str, version: str, figures: Sequence[Figures]) -> Statistics:
    """The sums over a version's precisions. Any thread."""
    all_of = merged(ModelKey(model, version, ""), figures)
    success, ran = _total(all_of.duration), sum(all_of.compute[:-1])
    parts = {
        "success": success,
        "fail": Sum(sum(all_of.failures.values()), all_of.fail_seconds),
        "queue": Sum(success.number, all_of.queue[-1]),
        "compute_input": Sum(ran, all_of.gather[-1]),
        "compute_infer": Sum(ran, all_of.compute[-1]),
        "compute_output": Sum(ran, all_of.scatter[-1]),
        "cache_hit": Sum(*all_of.hits),
        "cache_miss": Sum(*all_of.misses),
    }
    runs = all_of.runs
    rows, count = sum(rows * run[0] for rows, run in runs.items()), sum(run[0] for run in runs.values())
    failures = dict.fromkeys(FAILURE_REASONS, 0)
    for reason, failed in all_of.failures.items():
        failures[_failure(reason)] += failed
    return Statistics(model, version, parts, int(rows), int(count), all_of.last, failures, runs, all_of.responses)


def nanoseconds(seconds: float) -> int:
    """Whole ones."""
    return round(seconds * 1e9)


def _failure(reason: str) -> str:
    """Triton's word for a reason of ours."""
    return "BACKEND" if reason in _BACKENDS else _BY_OUTCOME.get(OUTCOMES[reason], "OTHER")


def _total(counts: Counts) -> Sum:
    return Sum(sum(counts[:-1]), counts[-1])


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": nanoseconds(seconds)}


def _batch(rows: int, count: float, gather: float, compute: float, scatter: float) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(count, gather),
        "compute_infer": _duration(count, compute),
        "compute_output": _duration(count, scatter),
    }
