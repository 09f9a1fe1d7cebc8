"""Plain numbers of one model, version and precision, written in the event loop and read at scrape time from another thread.

No locks and no prometheus_client here: a request costs a few list updates. A list or dict is copied in one step under the GIL, so a scrape
sees each of them whole, and at most one observation apart from its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic, time
from typing import TypeAlias

from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import (
    DROPS,
    FIRST_RESPONSE_SECONDS,
    LENGTHS,
    OUTCOMES,
    PADDING,
    PHASE_SECONDS,
    PHASES,
    REQUEST_SECONDS,
    ROWS,
    USUAL_REASONS,
)
from server.ring import Ring

MAX_LANES = 8
OTHER = ModelKey("other", "", "")
WINDOW = 60.0  # seconds that quantiles look back
KEPT = 16_384  # requests, and runs, that they are of at most
MAX_RESPONSES = 64
"""Responses of a request that statistics tell apart; those after the last count with it."""
OTHER = ModelKey("other", "", "")


Counts: TypeAlias = list[float]
"""A histogram: how many fell into each bucket, the last above all bounds; then the sum of what was observed."""
RESPONSE_PARTS = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
"""What is known of the n-th responses of a model's requests: how many, and seconds, of each."""


def _histogram(bounds: tuple[float, ...]) -> Counts:
    return [0] * (len(bounds) + 1) + [0.0]


class Figures:
    """What one model, version and precision did so far. Called in the event loop only."""

    __slots__ = (
        *("batches", "compute", "decode", "drops", "duration", "encode", "examples", "fail_seconds", "failures", "first", "gather", "hits"),
        *("key", "lanes", "last", "length", "misses", "note", "padding", "queue", "responses", "rows", "runs", "scatter"),
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
        self.first = _histogram(FIRST_RESPONSE_SECONDS)  # of decoupled models
        self.examples: dict[int, tuple[str, float, float]] = {}  # by duration's bucket: a trace's id, its duration, its Unix time
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

    def example(self, total: float, trace_id: str) -> None:
        """A traced request was answered after `total` seconds: an example of its bucket."""
        self.examples[bisect_left(REQUEST_SECONDS, total)] = (trace_id, total, time())

    def failed(self, reason: str, total: float = 0.0) -> None:
        """One request was not answered, after `total` seconds. `reason` is its error's; one that the catalogue doesn't know counts as
        internal."""
        count_failure(self.failures, reason)
        self.fail_seconds += total

    def hit(self, lookup: float) -> None:
        """The response cache answers one request, after `lookup` seconds: it's answered, but doesn't run."""
        _add(self.hits, lookup)

    def missed(self, seconds: float) -> None:
        """The response cache was asked in vain, and later given the answer: seconds of both."""
        _add(self.misses, seconds)

    def began(self, seconds: float) -> None:
        """A decoupled model gave a request its first response, after `seconds` seconds."""
        self.first[bisect_left(FIRST_RESPONSE_SECONDS, seconds)] += 1
        self.first[-1] += seconds

    def responded(self, index: int, outcome: str, compute: float, output: float) -> None:
        """A decoupled model gave response `index` (from 0) of a request, in `compute` seconds, and `output` more to hand it on.
        `outcome` is success, fail, empty_response or cancel."""
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


class Watched(Figures):
    """Figures that also keep what the requests of the last WINDOW seconds took, for quantiles."""

    __slots__ = ("_requests", "_runs")

    def __init__(self, key: ModelKey, ring: Ring | None = None) -> None:
        super().__init__(key, ring)
        self._requests: deque[tuple[float, float, float]] = deque(maxlen=KEPT)
        self._runs: deque[tuple[float, int, float, float, float]] = deque(maxlen=KEPT)

    def answered(self, total: float, queue: float, decode: float, encode: float) -> None:
        super().answered(total, queue, decode, encode)
        self._requests.append((monotonic(), total, queue))

    def batch(self, facts: BatchFacts, gather_seconds: float, scatter_seconds: float, failed: bool = False) -> None:
        super().batch(facts, gather_seconds, scatter_seconds, failed)
        if not failed:
            self._runs.append((facts.finished, facts.requests, gather_seconds, facts.finished - facts.started, scatter_seconds))

    def watched(self, now: float) -> Mapping[str, list[float]]:
        """What each request took of late, in seconds, by part: request, queue, compute_input, compute_infer, compute_output. Any thread."""
        requests = [each for each in self._requests.copy() if each[0] > now - WINDOW]
        runs = [each for each in self._runs.copy() if each[0] > now - WINDOW]
        parts = {"request": [each[1] for each in requests], "queue": [each[2] for each in requests]}
        for place, part in enumerate(("compute_input", "compute_infer", "compute_output"), 2):
            parts[part] = [each[place] for each in runs for _ in range(each[1])]
        return parts


def merged(key: ModelKey, several: Iterable[Figures]) -> Figures:
    """The sums of several figures, as one."""
    total = Figures(key)
    for figures in several:
        for name in (
            "duration",
            "decode",
            "queue",
            "gather",
            "compute",
            "scatter",
            "encode",
            "rows",
            "length",
            "padding",
            "first",
            "hits",
            "misses",
        ):
            setattr(total, name, [a + b for a, b in zip(getattr(total, name), getattr(figures, name).copy(), strict=True)])
        for name in ("batches", "lanes", "failures", "drops"):
            counts = getattr(total, name)
            for label, count in getattr(figures, name).copy().items():
                counts[label] = counts.get(label, 0) + count
        for rows, run in figures.runs.copy().items():
            total.runs[rows] = [a + b for a, b in zip(total.runs.get(rows, [0.0] * 4), run, strict=True)]
        for index, parts in figures.responses.copy().items():
            known = total.responses.setdefault(index, {part: [0.0, 0.0] for part in RESPONSE_PARTS})
            total.responses[index] = {name: [a + b for a, b in zip(known[name], part, strict=True)] for name, part in parts.items()}
        total.examples |= figures.examples.copy()
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


def count_failure(failures: dict[str, int], reason: str) -> None:
    """Count a failure; one whose reason the catalogue doesn't know is internal."""
    if reason not in OUTCOMES:
        reason = "internal"
    failures[reason] = failures.get(reason, 0) + 1
