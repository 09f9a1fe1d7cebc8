"""Queries over a window → vectors, with PromQL's meaning. Pure: a query, the samples and a time in, values out."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import assert_never

from monitor.alerts import Labels, Vector
from monitor.metrics.query import (
    Absent,
    Aggregate,
    Always,
    Arithmetic,
    Both,
    Compare,
    Either,
    Over,
    Quantile,
    Query,
    Raw,
    Select,
    selects,
)
from monitor.series.window import Window, over

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
AGGREGATIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "max": lambda values: max((v for v in values if v == v), default=math.nan),
    "min": lambda values: min((v for v in values if v == v), default=math.nan),
    "avg": lambda values: sum(values) / len(values),
    "count": lambda values: float(len(values)),
}


class NotComputable(Exception):
    """PromQL that only a Prometheus server can answer, and it hasn't."""


class Vectors:
    """Answers queries at one time. An equal query is computed once; `answers` are those that a Prometheus server gave."""

    def __init__(self, window: Window, now: float, answers: Mapping[str, Vector] | None = None) -> None:
        self._window = window
        self._now = now
        self._answers = answers or {}
        self._known: dict[Query, Vector] = {}

    def of(self, query: Query) -> Vector:
        """The answer of `query`. Raises NotComputable for PromQL that has no answer yet."""
        known = self._known.get(query)
        if known is None:
            known = self._known[query] = self._compute(query)
        return known

    def answer(self, query: Query) -> Vector | None:
        """As `of`; None for what only a Prometheus server could say and hasn't."""
        try:
            return self.of(query)
        except NotComputable:
            return None

    def _compute(self, query: Query) -> Vector:
        match query:
            case Select():
                found = ((series.labels, series.newest(self._now)) for series in self._window.select(query))
                return {labels: value for labels, value in found if value is not None}
            case Over(function, of, window):
                moved = ((series.labels, over(function, series, window, self._now)) for series in self._window.select(of))
                return {labels: value for labels, value in moved if value is not None}
            case Aggregate(op, by, of):
                return _aggregated(self.of(of), by, AGGREGATIONS[op])
            case Quantile(q, of):
                return _quantiles(self.of(of), q)
            case Arithmetic(op, left, right):
                return _combined(op, self.of(left), right if isinstance(right, float | int) else self.of(right))
            case Compare(op, of, threshold):
                holds = COMPARISONS[op]
                return {labels: value for labels, value in self.of(of).items() if holds(value, threshold)}
            case Both(left, right):
                also = self.of(right)
                return {labels: value for labels, value in self.of(left).items() if labels in also}
            case Either(left, right, first):
                own = self.of(left)
                return own if first and own else {**self.of(right), **own}
            case Absent(of):
                return {} if self.of(of) else {_fixed(of): 1.0}
            case Always():
                return {(): 1.0}
            case Raw(expr):
                if expr not in self._answers:
                    raise NotComputable(expr)
                return self._answers[expr]
        assert_never(query)


def needed(queries: Iterable[Query]) -> dict[str, float]:
    """Which series the queries need, and for how many seconds."""
    names: dict[str, float] = {}
    for query in queries:
        for select, seconds in selects(query):
            names[select.name] = max(names.get(select.name, 0.0), seconds)
    return names


def _fixed(select: Select) -> Labels:
    """The labels that a selector says must be equal."""
    return tuple(sorted((m.name, m.value) for m in select.matchers if m.op == "=" and m.value))


def _aggregated(vector: Vector, by: tuple[str, ...], join: Callable[[Sequence[float]], float]) -> Vector:
    groups: dict[Labels, list[float]] = {}
    wanted = frozenset(by)
    for labels, value in vector.items():
        key = tuple([pair for pair in labels if pair[0] in wanted])
        groups.setdefault(key, []).append(value)
    return {labels: join(values) for labels, values in groups.items()}


def _combined(op: str, left: Vector, right: Vector | float) -> Vector:
    calculate = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divided}[op]
    if isinstance(right, float | int):
        return {labels: calculate(value, right) for labels, value in left.items()}
    return {labels: calculate(value, right[labels]) for labels, value in left.items() if labels in right}


def _divided(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if not left or math.isnan(left) else math.copysign(math.inf, left)


def _quantiles(vector: Vector, q: float) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in vector.items():
        bound = next((text for name, text in labels if name == "le"), None)
        if bound is not None:
            groups.setdefault(tuple(pair for pair in labels if pair[0] != "le"), []).append((_bound(bound), value))
    return {labels: quantile(q, buckets) for labels, buckets in groups.items()}


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def quantile(q: float, buckets: Sequence[tuple[float, float]]) -> float:
    """The q-quantile of (upper bound, cumulative count) pairs, linear inside a bucket, as Prometheus' histogram_quantile.

    NaN where nothing was observed or no bucket is +Inf; the largest finite bound where the quantile lies beyond it.
    """
    joined: dict[float, float] = {}
    for bound, count in buckets:
        if bound == bound:
            joined[bound] = joined.get(bound, 0.0) + count
    bounds = sorted(joined)
    if len(bounds) < 2 or bounds[-1] != math.inf:
        return math.nan
    counts = _rising([joined[bound] for bound in bounds])
    total = counts[-1]
    if not total > 0:
        return math.nan
    rank = q * total
    index = next((i for i, count in enumerate(counts[:-1]) if count >= rank), len(bounds) - 1)
    if index == len(bounds) - 1:
        return bounds[-2]
    if index == 0:
        return bounds[0] * (rank / counts[0]) if bounds[0] > 0 else bounds[0]
    below = counts[index - 1]
    return bounds[index - 1] + (bounds[index] - bounds[index - 1]) * ((rank - below) / (counts[index] - below))


def _rising(counts: list[float]) -> list[float]:
    """Counts that never fall: rounding and scrapes in mid-update may let them."""
    highest = 0.0
    for index, count in enumerate(counts):
        highest = counts[index] = max(highest, count)
    return counts
