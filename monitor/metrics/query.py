"""What a rule asks of the series, as a tree of frozen values. One tree is both computed here (monitor.series.vectors) and written
as PromQL, so that the monitor and Prometheus can't be asked different things.

Queries are hashable: a tick computes an equal query once, however many rules ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

LOOKBACK = 300.0
"""Seconds after which a sample is no answer any more (Prometheus' default)."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on one label: `op` is =, !=, =~ or !~ (anchored, as in PromQL)."""

    name: str
    op: str
    value: str


@dataclass(frozen=True, slots=True)
class Select:
    """The newest samples of the series with that name and those labels."""

    name: str
    matchers: tuple[Matcher, ...] = ()


@dataclass(frozen=True, slots=True)
class Over:
    """A function of each series' samples of the last `window` seconds.

    `function`: rate, increase, delta, avg_over_time, max_over_time, min_over_time.
    """

    function: str
    of: Select
    window: float


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`op` (sum, avg, max, min, count) over the series that agree in the labels `by`."""

    op: str
    by: tuple[str, ...]
    of: Query


@dataclass(frozen=True, slots=True)
class Quantile:
    """The q-quantile of histogram buckets: `of` gives a value for each `le` and `by`."""

    q: float
    of: Query


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`left` op `right`, where their labels are equal or one is a number. `op`: + - * /."""

    op: str
    left: Query
    right: Query | float


@dataclass(frozen=True, slots=True)
class Compare:
    """Those of `of` for which the comparison with a number holds."""

    op: str
    of: Query
    threshold: float


@dataclass(frozen=True, slots=True)
class Both:
    """Those of `left` whose labels are also in `right`."""

    left: Query
    right: Query


@dataclass(frozen=True, slots=True)
class Either:
    """`left`, and those of `right` whose labels aren't in it. `first` means that `right` counts only where `left` is empty."""

    left: Query
    right: Query
    first: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """1 where `of` has no series at all; its labels are those that the selector says must be equal."""

    of: Select


@dataclass(frozen=True, slots=True)
class Always:
    """1, with no labels: what a watchdog asks."""


@dataclass(frozen=True, slots=True)
class Raw:
    """PromQL that only a Prometheus server can answer."""

    expr: str


Query: TypeAlias = Select | Over | Aggregate | Quantile | Arithmetic | Compare | Both | Either | Absent | Always | Raw


def promql(query: Query) -> str:
    """`query` in PromQL, as Prometheus reads it."""
    match query:
        case Select(name, matchers):
            inside = ", ".join(f'{m.name}{m.op}"{_escaped(m.value)}"' for m in matchers)
            return f"{name}{{{inside}}}" if inside else name
        case Over(function, of, window):
            return f"{function}({promql(of)}[{promql_duration(window)}])"
        case Aggregate(op, by, of):
            return f"{op} by ({', '.join(by)}) ({promql(of)})" if by else f"{op}({promql(of)})"
        case Quantile(q, of):
            return f"histogram_quantile({number(q)}, {promql(of)})"
        case Arithmetic(op, left, right):
            return f"{_operand(left)} {op} {number(right) if isinstance(right, float | int) else _operand(right)}"
        case Compare(op, of, threshold):
            return f"{_operand(of)} {op} {number(threshold)}"
        case Both(left, right):
            return f"{_operand(left)} and {_operand(right)}"
        case Either(left, right, first):
            return f"{_operand(left)} or {'on () ' if first else ''}{_operand(right)}"
        case Absent(of):
            return f"absent({promql(of)})"
        case Always():
            return "vector(1)"
        case Raw(expr):
            return expr


def selects(query: Query) -> tuple[tuple[Select, float], ...]:
    """Every selector of `query`, with the seconds of samples that it needs."""
    match query:
        case Select():
            return ((query, LOOKBACK),)
        case Over(_, of, window):
            return ((of, window),)
        case Both(left, right) | Either(left, right, _):
            return (*selects(left), *selects(right))
        case Arithmetic(_, left, right):
            return (*selects(left), *(() if isinstance(right, float | int) else selects(right)))
        case Aggregate(_, _, of) | Quantile(_, of) | Compare(_, of, _) | Absent(of):
            return selects(of)
    return ()


def labels_by(query: Query) -> tuple[str, ...]:
    """The labels that tell the query's answers apart."""
    match query:
        case Aggregate(_, by, _):
            return tuple(label for label in by if label != "le")
        case Over(_, _, _) | Quantile(_, _) | Compare(_, _, _):
            return labels_by(query.of)
        case Arithmetic() | Both() | Either():
            return labels_by(query.left)
    return ()


def needs_prometheus(query: Query) -> bool:
    """Whether some part of it is PromQL that isn't computed here."""
    match query:
        case Raw():
            return True
        case Both(left, right) | Either(left, right, _):
            return needs_prometheus(left) or needs_prometheus(right)
        case Arithmetic(_, left, right):
            return needs_prometheus(left) or not (isinstance(right, float | int) or not needs_prometheus(right))
        case Aggregate(_, _, of) | Quantile(_, of) | Compare(_, of, _):
            return needs_prometheus(of)
    return False


def promql_duration(seconds: float) -> str:
    """Seconds as PromQL writes them: 90 is 1m30s, 0.5 is 500ms."""
    left = round(seconds * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def number(value: float) -> str:
    """A number as PromQL reads it back to the same value."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _operand(query: Query) -> str:
    """`query` as a part of a larger expression: in brackets where precedence could change it."""
    text = promql(query)
    return f"({text})" if isinstance(query, Arithmetic | Compare | Both | Either | Raw) else text


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
