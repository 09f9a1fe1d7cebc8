"""Plain numbers for each model, version and precision, written in the event loop and read at scrape time from another thread.

No locks and no prometheus_client here: a request costs a few list updates. A list or dict is copied in one step under the GIL, so a scrape
sees each of them whole, and at most one observation apart from its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import (
    CATALOGUE,
    DROPS,
    LENGTHS,
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
"""Models, versions and precisions with series of their own: 5,000 series in all. What comes beyond is shown as OTHER."""
MAX_LANES = 8
MAX_TENANTS = 32
MAX_RESPONSES = 64
"""Responses of a request that statistics tell apart; those after the last count with it."""
OTHER = ModelKey("other", "", "")
UNROUTED = ModelKey("", "", "")

Counts: TypeAlias = list[float]
"""A histogram: how many fell into each bucket, the last above all bounds; then the sum of what was observed."""
GaugeKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
RESPONSE_PARTS = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
"""What is known of the n-th responses of a model's requests: how many, and seconds, of each."""


def _histogram(bounds: tuple[float, ...]) -> Counts:
    return [0] * (len(bounds) + 1) + [0.0]


class Figures:
    """What one model, version and precision did so far. Called in the event loop only."""

    __slots__ = (
        *("batches", "compute", "decode", "drops", "duration", "encode", "fail_seconds", "failures", "gather", "hits", "key", "lanes"),
        *("last", "length", "misses", "note", "padding", "queue", "responses", "rows", "runs", "scatter"),
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
        self.fail_seconds = 0.0
        self.last = 0.0  # time.monotonic of the end of the last run
        self.runs: dict[int, list[float]] = {}  # of runs that went well, by their rows: how many, seconds of gather, compute and scatter
        self.hits, self.misses = [0.0, 0.0], [0.0, 0.0]  # of the response cache: how many, seconds
        self.responses: dict[int, dict[str, list[float]]] = {}

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

    def failed(self, reason: str, total: float = 0.0) -> None:
        """One request was not answered, after `total` seconds. `reason` is its error's; one that the catalogue doesn't know counts as
        internal."""
        _failed(self.failures, reason)
        self.fail_seconds += total

    def hit(self, total: float, lookup: float, decode: float, encode: float) -> None:
        """One request was answered from the response cache, which took `lookup` seconds; it's answered without having run."""
        self.answered(total, 0.0, decode, encode)
        _add(self.hits, lookup)

    def missed(self, seconds: float) -> None:
        """The response cache was asked in vain, and later given the answer: seconds of both."""
        _add(self.misses, seconds)

    def responded(self, index: int, outcome: str, compute: float, output: float) -> None:
        """A decoupled model gave response `index` (from 0) of a request, in `compute` seconds, and `output` more to hand it on. `outcome` is
        success, fail, empty_response or cancel."""
        index = min(index, MAX_RESPONSES - 1)
        parts = self.responses.get(index)
        if parts is None:
            parts = self.responses[index] = {part: [0.0, 0.0] for part in RESPONSE_PARTS}
        _add(parts["compute_infer"], compute)
        if outcome != "empty_response":
            _add(parts["compute_output"], output)
        _add(parts[outcome], compute + output)

    def batch(self, facts: BatchFacts, gather_seconds: float, scatter_seconds: float, failed: bool = False) -> None:
        """One batch ran. The phases of one that went well count once for each of its requests, so that a request's phases add up."""
        rows, requests, compute = facts.rows, facts.requests, facts.finished - facts.started
        self.note((facts.cut, *self.key, rows, requests, facts.length, facts.reason, facts.lane, compute))
        if not failed:
            for counts, seconds in ((self.gather, gather_seconds), (self.compute, compute), (self.scatter, scatter_seconds)):
                counts[bisect_left(PHASE_SECONDS, seconds)] += requests
                counts[-1] += seconds * requests
            run = self.runs.get(rows)
            if run is None:
                run = self.runs[rows] = [0.0, 0.0, 0.0, 0.0]
            run[0] += 1
            run[1] += gather_seconds
            run[2] += compute
            run[3] += scatter_seconds
            self.last = facts.finished
        self.rows[bisect_left(ROWS, rows)] += 1
        self.rows[-1] += rows
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
        # Those that are shown as OTHER, and the sums of those of them that were closed: a counter never falls. Replaced, never changed.
        self._rest: tuple[Mapping[ModelKey, Figures], Figures] = ({}, Figures(OTHER))
        self._unrouted: dict[str, int] = dict.fromkeys(("invalid", "not_found", "model_unavailable"), 0)
        self._gauges: dict[GaugeKey, Callable[[], float]] = {}
        self._tenants: dict[str, dict[str, int]] = {}

    def figures(self, key: ModelKey) -> Figures:
        """The figures of `key`, made if there are none. They stay while a version is loaded anew: counts never fall."""
        rest, gone = self._rest
        found = self._figures.get(key) or rest.get(key)
        if found is None:
            found = Figures(key, self.ring)
            if len(self._figures) < MAX_KEYS:
                self._figures[key] = found
            else:
                self._rest = ({**rest, key: found}, gone)
        return found

    def of(self, model: str, version: str) -> list[Figures]:
        """The figures of a version, in each of its precisions. Any thread."""
        return [each for key, each in (self._figures | self._rest[0]).items() if key[:2] == (model, version)]

    def close(self, key: ModelKey) -> None:
        """The model is gone: its series end, and its place is free."""
        self._figures.pop(key, None)
        rest, gone = self._rest
        if key in rest:
            self._rest = ({other: each for other, each in rest.items() if other != key}, merged(OTHER, (gone, rest[key])))
        gone_labels = set(zip(("model", "version", "precision"), key, strict=True))
        for gauge in list(self._gauges):
            labels = set(gauge[1])
            if labels and labels <= gone_labels:
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
        figures, (rest, gone) = list(self._figures.values()), self._rest
        if rest or any(gone.duration) or any(gone.failures.values()):
            figures.append(merged(OTHER, (gone, *rest.values())))
        return figures, self._unrouted.copy(), self._gauges.copy()


def merged(key: ModelKey, several: Iterable[Figures]) -> Figures:
    """The sums of several figures, as one."""
    total = Figures(key)
    for figures in several:
        for name in ("duration", "decode", "queue", "gather", "compute", "scatter", "encode", "rows", "length", "padding", "hits", "misses"):
            setattr(total, name, [a + b for a, b in zip(getattr(total, name), getattr(figures, name), strict=True)])
        for name in ("batches", "lanes", "failures", "drops"):
            counts = getattr(total, name)
            for label, count in getattr(figures, name).copy().items():
                counts[label] = counts.get(label, 0) + count
        for rows, run in figures.runs.copy().items():
            total.runs[rows] = [a + b for a, b in zip(total.runs.get(rows, [0.0] * 4), run, strict=True)]
        for index, parts in figures.responses.copy().items():
            known = total.responses.setdefault(index, {part: [0.0, 0.0] for part in RESPONSE_PARTS})
            total.responses[index] = {name: [a + b for a, b in zip(known[name], part, strict=True)] for name, part in parts.items()}
        total.fail_seconds += figures.fail_seconds
        total.last = max(total.last, figures.last)
    return _few_lanes(total)


def _few_lanes(figures: Figures) -> Figures:
    """No more lanes than a model's series may name."""
    names = list(figures.lanes)
    rest = sum(figures.lanes.pop(name) for name in names[MAX_LANES - 1 :])
    if rest:
        figures.lanes[OTHER.name] = figures.lanes.get(OTHER.name, 0.0) + rest
    return figures


def _add(counts: list[float], seconds: float) -> None:
    counts[0] += 1
    counts[1] += seconds


def _failed(failures: dict[str, int], reason: str) -> None:
    if reason not in OUTCOMES:
        reason = "internal"
    failures[reason] = failures.get(reason, 0) + 1
