"""Plain numbers for each model, version and precision, written in the event loop and read at scrape time from another thread.

No locks and no prometheus_client here: a request costs a few list updates. A list or dict is copied in one step under the GIL, so a scrape
sees each of them whole, and at most one observation apart from its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TypeAlias

from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import (
    CATALOGUE,
    DROPS,
    LENGTHS,
    MODEL_LABELS,
    OUTCOMES,
    PADDING,
    PHASE_SECONDS,
    PHASES,
    REQUEST_SECONDS,
    ROWS,
    SUCCESS,
    USUAL_REASONS,
)
from server.ring import Ring

MAX_KEYS = 27
"""Models, versions and precisions with series of their own: 5,000 series in all. What comes beyond is counted under OTHER."""
MAX_LANES = 8
MAX_TENANTS = 32
OTHER = ModelKey("other", "", "")
UNROUTED = ModelKey("", "", "")

Counts: TypeAlias = list[float]
"""A histogram: how many fell into each bucket, the last above all bounds; then the sum of what was observed."""
GaugeKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


def _histogram(bounds: tuple[float, ...]) -> Counts:
    return [0] * (len(bounds) + 1) + [0.0]


class Figures:
    """What one model, version and precision did so far. Called in the event loop only."""

    __slots__ = (
        *("batches", "compute", "decode", "drops", "duration", "encode", "failures", "gather", "key", "lanes", "length", "note", "padding"),
        *("queue", "rows", "scatter"),
    )

    def __init__(self, key: ModelKey, ring: Ring | None = None) -> None:
        self.key = key
        self.note = (ring or Ring()).batch
        self.duration = _histogram(REQUEST_SECONDS)
        self.decode, self.queue, self.gather, self.compute, self.scatter, self.encode = (_histogram(PHASE_SECONDS) for _ in PHASES)
        self.rows = _histogram(ROWS)
        self.length = _histogram(LENGTHS)  # this and the next stay empty where nothing is padded
        self.padding = _histogram(PADDING)
        self.batches: dict[str, int] = {}
        self.lanes: dict[str, float] = {}
        self.failures: dict[str, int] = dict.fromkeys(USUAL_REASONS, 0)
        self.drops: dict[str, int] = dict.fromkeys(DROPS, 0)

    def answered(self, total: float, queue: float, decode: float, encode: float) -> None:
        """One request was answered; seconds in all, and in the phases that are its own."""
        counts = self.duration
        counts[bisect_left(REQUEST_SECONDS, total)] += 1
        counts[-1] += total
        counts = self.queue
        counts[bisect_left(PHASE_SECONDS, queue)] += 1
        counts[-1] += queue
        counts = self.decode
        counts[bisect_left(PHASE_SECONDS, decode)] += 1
        counts[-1] += decode
        counts = self.encode
        counts[bisect_left(PHASE_SECONDS, encode)] += 1
        counts[-1] += encode

    def failed(self, reason: str) -> None:
        """One request was not answered. `reason` is its error's; one that the catalogue doesn't know counts as internal."""
        _failed(self.failures, reason)

    def batch(self, facts: BatchFacts, gather_seconds: float, scatter_seconds: float) -> None:
        """One batch ran: its phases count once for each of its requests, so that a request's phases add up."""
        requests, compute = facts.requests, facts.finished - facts.started
        self.note((facts.cut, *self.key, facts.rows, requests, facts.length, facts.reason, facts.lane, compute))
        for counts, seconds in ((self.gather, gather_seconds), (self.compute, compute), (self.scatter, scatter_seconds)):
            counts[bisect_left(PHASE_SECONDS, seconds)] += requests
            counts[-1] += seconds * requests
        self.rows[bisect_left(ROWS, facts.rows)] += 1
        self.rows[-1] += facts.rows
        if facts.length > 1:
            self.length[bisect_left(LENGTHS, facts.length)] += 1
            self.length[-1] += facts.length
            self.padding[bisect_left(PADDING, facts.padding)] += 1
            self.padding[-1] += facts.padding
        try:
            self.batches[facts.reason] += 1
            self.lanes[facts.lane] += compute
        except KeyError:
            self._first(facts, compute)

    def _first(self, facts: BatchFacts, compute: float) -> None:
        """Count a batch whose reason or lane is new."""
        if facts.reason not in self.batches:
            self.batches[facts.reason] = 1
        lane = facts.lane if len(self.lanes) < MAX_LANES - 1 else OTHER.name
        self.lanes[lane] = self.lanes.get(lane, 0.0) + compute


class Recorder:
    """All figures of a server, the gauges that other parts let it read, and the ring of what happened last."""

    def __init__(self) -> None:
        self.ring = Ring()
        self._figures: dict[ModelKey, Figures] = {}
        self._other: Figures | None = None
        self._unrouted: dict[str, int] = dict.fromkeys(("invalid", "not_found", "model_unavailable"), 0)
        self._gauges: dict[GaugeKey, Callable[[], float]] = {}
        self._tenants: dict[str, dict[str, int]] = {}

    def figures(self, key: ModelKey) -> Figures:
        """The figures of `key`, made if there are none; those of OTHER beyond MAX_KEYS."""
        found = self._figures.get(key)
        if found is not None:
            return found
        if len(self._figures) >= MAX_KEYS:
            self._other = self._other or Figures(OTHER, self.ring)
            return self._other
        made = self._figures[key] = Figures(key, self.ring)
        return made

    def close(self, key: ModelKey) -> None:
        """The model is gone: its series end, and its place is free."""
        self._figures.pop(key, None)
        gone = set(zip(("model", "version", "precision"), key, strict=True))
        for gauge in list(self._gauges):
            labels = {label for label in gauge[1] if label[0] in MODEL_LABELS}
            if labels and labels <= gone:
                del self._gauges[gauge]

    def unrouted(self, reason: str) -> None:
        """One request failed before it reached a model."""
        _failed(self._unrouted, reason)

    def tenant(self, name: str, reason: str = "") -> None:
        """One request for a tenant ended; `reason` is its error's. Tenants beyond MAX_TENANTS count as other."""
        counts = self._tenants.get(name)
        if counts is None:
            name = name if len(self._tenants) < MAX_TENANTS else OTHER.name
            counts = self._tenants.setdefault(name, {})
        outcome = OUTCOMES.get(reason, "failed") if reason else SUCCESS
        counts[outcome] = counts.get(outcome, 0) + 1

    def tenants(self) -> dict[str, dict[str, int]]:
        """Requests by tenant and outcome. For the scraping thread."""
        return {name: counts.copy() for name, counts in self._tenants.copy().items()}

    def gauge(self, name: str, labels: Mapping[str, str], read: Callable[[], float]) -> None:
        """Have `read` called at each scrape, from the scraping thread, for the gauge or counter `name`. The same name and labels again
        replace it; beyond MAX_KEYS label sets of a name it's left out. Raises ValueError for what isn't in the catalogue."""
        metric = CATALOGUE.get(name)
        if metric is None or metric.kind == "histogram" or labels.keys() != set(metric.labels):
            raise ValueError(f"{name} with labels {sorted(labels)} isn't a gauge or counter of the catalogue")
        key = (name, tuple((label, labels[label]) for label in metric.labels))
        if key in self._gauges or sum(known == name for known, _ in self._gauges) < MAX_KEYS:
            self._gauges[key] = read

    def snapshot(self) -> tuple[list[Figures], dict[str, int], dict[GaugeKey, Callable[[], float]]]:
        """What there is to show: figures, failures that reached no model, gauges. For the scraping thread."""
        figures = list(self._figures.values())
        return [*figures, self._other] if self._other else figures, self._unrouted.copy(), self._gauges.copy()


def _failed(failures: dict[str, int], reason: str) -> None:
    if reason not in OUTCOMES:
        reason = "internal"
    failures[reason] = failures.get(reason, 0) + 1
