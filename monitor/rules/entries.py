"""One entry of `metrics:` → its rules, or what is wrong with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from monitor.alerts import labels_of
from monitor.metrics.families import EXPORTED, FAMILIES
from monitor.metrics.named import NAMED, RUNBOOKS
from monitor.metrics.quantities import Unit, parse, show
from monitor.metrics.query import Absent, Aggregate, Both, Compare, Matcher, Over, Query, Raw, Select, labels_by, promql, promql_duration
from monitor.metrics.shapes import Ask, Named, gauge, newest
from monitor.rules.file import Entry, Step
from monitor.rules.model import Rule
from monitor.rules.places import Finding
from server.validation import KeyPath

TARGET_LABELS = ("instance", "job")
_UNITS = {
    "celsius": Unit.CELSIUS,
    "watts": Unit.WATTS,
    "seconds": Unit.SECONDS,
    "ratio": Unit.RATIO,
    "bytes": Unit.BYTES,
    "count": Unit.COUNT,
}
_QUANTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]+)?)")
_WORDS = {">": "above", ">=": "at or above", "<": "below", "<=": "at or below", "==": "equal to", "!=": "other than"}


@dataclass(frozen=True, slots=True)
class Watched:
    """What an entry watches, before it's compared: the query, its unit, and what its alert is called."""

    query: Query
    unit: Unit
    name: str
    title: str
    comparison: str
    threshold: float | None
    families: tuple[str, ...] = ()
    presence: tuple[Select, ...] = ()


class Wrong(Exception):
    """What is wrong with an entry, at a key of it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def entry_rules(entry: Entry, at: KeyPath, *, prometheus: bool) -> Iterator[Rule | Finding]:
    """The rules that `entry` stands for; instead of one that can't be made, a finding."""
    try:
        watched = _watched(entry, prometheus)
        steps = _steps(entry)
    except Wrong as wrong:
        yield Finding((*at, wrong.key) if wrong.key else at, str(wrong))
        return
    for index, step in enumerate(steps):
        where: KeyPath = (*at, "levels", index) if entry.levels else at
        try:
            yield _rule(entry, watched, step, at)
        except Wrong as wrong:
            yield Finding((*where, wrong.key), str(wrong))
    if entry.absent is not None:
        yield _absence(entry, watched, at)


def _steps(entry: Entry) -> Iterable[Step]:
    if not entry.levels:
        step = {"threshold": entry.threshold, "clear": entry.clear, "alert_level": entry.alert_level, "for": entry.for_}
        return (Step.model_validate(step),)
    if entry.threshold is not None or entry.clear is not None:
        raise Wrong("levels", "each level has its threshold: leave out the entry's own `threshold` and `clear`")
    if len({step.alert_level for step in entry.levels}) < len(entry.levels):
        raise Wrong("levels", "each level may stand once")
    return entry.levels


def _watched(entry: Entry, prometheus: bool) -> Watched:
    if sum(given is not None for given in (entry.name, entry.series, entry.expr)) != 1:
        raise Wrong("", "give one of `name` (a named metric), `series` and `expr`")
    if entry.expr is not None:
        return _promql(entry, prometheus)
    if entry.series is not None:
        return _series(entry, entry.series)
    named = NAMED.get(entry.name or "")
    if named is None:
        raise Wrong("name", unknown_metric(entry.name or ""))
    return _named(entry, named)


def unknown_metric(name: str) -> str:
    """What to say to a name that no metric has: the nearest right ones, or all."""
    close = difflib.get_close_matches(name, NAMED, n=3, cutoff=0.5)
    right = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(NAMED)}"
    return f"no metric is called {name[:64]!r}; {right}"


def _promql(entry: Entry, prometheus: bool) -> Watched:
    if not prometheus:
        raise Wrong(
            "expr", "PromQL is answered by a Prometheus server: give its address as `sources.prometheus`, or use `name` or `series`"
        )
    if entry.alert is None:
        raise Wrong("", "an entry with `expr` needs `alert`, the alert's name")
    return Watched(Raw(entry.expr or ""), _UNITS[entry.unit], entry.alert, entry.alert, entry.comparison or ">", None)


def _series(entry: Entry, series: str) -> Watched:
    """A series by its own name. Labels are free: nobody but its exporter knows them."""
    ask = Ask(
        _matchers(entry),
        entry.by if entry.by is not None else TARGET_LABELS,
        entry.change or entry.window or 60.0,
        None,
        bool(entry.change),
    )
    functions = {"mean": "avg_over_time", "max": "max_over_time", "min": "min_over_time", "rate": "rate", "increase": "increase"}
    if entry.reduce == "last" and not entry.change:
        query = newest(series)(ask)
    elif entry.reduce in ("rate", "increase"):
        query = Aggregate("sum", ask.by, Over(functions[entry.reduce], Select(series, ask.matchers), ask.window))
    else:
        query = gauge(series, function=functions.get(entry.reduce, "avg_over_time"))(ask)
    unit = Unit.RATE if entry.reduce == "rate" and entry.unit == "count" else _UNITS[entry.unit]
    return Watched(query, unit, series, f"{series} ({entry.reduce})", entry.comparison or ">", None, (), (Select(series, ask.matchers),))


def _named(entry: Entry, named: Named) -> Watched:
    matchers = _matchers(entry)
    labels = (*dict.fromkeys((*(label for family in named.families for label in FAMILIES[family].labels), *named.labels)), *TARGET_LABELS)
    _known(((matcher.name, _label_key(entry, matcher.name)) for matcher in matchers), labels, named.name)
    by = entry.by if entry.by is not None else (*named.by, *(m.name for m in matchers if m.op == "=" and m.name not in named.by))
    _known(((label, "by") for label in by), labels, named.name)
    if entry.change is not None and not named.gauge:
        raise Wrong("change", f"only a gauge's change can be watched; {named.name} is none")
    quantile = _quantile(entry, named)
    window = entry.change or entry.window or named.window
    query = named.build(Ask(matchers, by, window, quantile, entry.change is not None))
    presence = tuple(Select(_presence(family), matchers) for family in named.families)
    title = " ".join((named.name, *_detail(named, quantile), "change over" if entry.change else "over", promql_duration(window)))
    return Watched(query, named.unit, named.name, title, entry.comparison or named.comparison, named.threshold, named.families, presence)


def _detail(named: Named, quantile: float | None) -> Iterator[str]:
    if named.histogram:
        yield "mean" if quantile is None else f"p{quantile * 100:g}"


def _presence(family: str) -> str:
    return f"{family}_count" if FAMILIES[family].kind == "histogram" else family


def _matchers(entry: Entry) -> tuple[Matcher, ...]:
    own = {name: getattr(entry, name) for name in ("model", "version", "precision", "phase")}
    given = {**{name: text for name, text in own.items() if text is not None}, **entry.labels}
    return tuple(_matcher(entry, name, text) for name, text in given.items())


def _matcher(entry: Entry, name: str, text: str) -> Matcher:
    if not text.startswith("~"):
        return Matcher(name, "=", text)
    try:
        re.compile(text[1:])
    except re.error as error:
        raise Wrong(_label_key(entry, name), f"{name}: {text[1:]!r} is no pattern: {error}") from error
    return Matcher(name, "=~", text[1:])


def _label_key(entry: Entry, name: str) -> str:
    return "labels" if name in entry.labels else name


def _known(asked: Iterable[tuple[str, str]], labels: Iterable[str], metric: str) -> None:
    right = list(labels)
    for label, key in asked:
        if label not in right:
            close = difflib.get_close_matches(label, right, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(right)}"
            raise Wrong(key, f"{metric} has no label {label!r}; {hint}")


def _quantile(entry: Entry, named: Named) -> float | None:
    if entry.quantile is None:
        return named.q
    if not named.histogram:
        raise Wrong("quantile", f"{named.name} is no histogram: it has no quantiles")
    if entry.quantile == "mean":
        return None
    match = _QUANTILE.fullmatch(entry.quantile)
    if match is None or not 0 < float(match[1]) < 100:
        raise Wrong("quantile", f"expected p50 to p99.9, or mean, got {entry.quantile[:64]!r}")
    return round(float(match[1]) / 100, 12)


def _rule(entry: Entry, watched: Watched, step: Step, at: KeyPath) -> Rule:
    comparison = watched.comparison
    threshold = _number(step.threshold, watched, "threshold", watched.threshold)
    keeps = None
    if step.clear is not None:
        keeps = Compare(comparison, watched.query, _clear(step, watched, threshold))
    if entry.reduce == "rate" and entry.series is None and entry.name is not None:
        raise Wrong("reduce", "`reduce` belongs to `series`; a named metric knows what becomes of its samples")
    summary = entry.summary or f"{_subject(watched)}{watched.title} is {{value}}, {_WORDS[comparison]} {{threshold}}"
    return Rule(
        key="",
        alert=entry.alert or camel(watched.name),
        level=step.alert_level,
        value=watched.query,
        condition=Compare(comparison, watched.query, threshold),
        unit=watched.unit,
        comparison=comparison,
        threshold=threshold,
        keeps=keeps,
        hold=entry.for_ if step.for_ is None else step.for_,
        keep_firing_for=entry.keep_firing_for,
        labels=labels_of({**entry.tags, "severity": step.alert_level.severity}),
        summary=summary.replace("{threshold}", show(threshold, watched.unit)),
        runbook=entry.runbook or (f"{RUNBOOKS.get(watched.name, camel(watched.name))}.md" if watched.name in NAMED else ""),
        notify=entry.notify,
        actions=entry.actions,
        metric=watched.name,
        where=f"{at[0]}.{at[1]}",
        families=() if any(family in EXPORTED for family in watched.families) else watched.families,
    )


def _subject(watched: Watched) -> str:
    """What the alert is about, for its summary: the labels that tell its alerts apart."""
    return "".join(f"{label} {{{label}}} " for label in labels_by(watched.query))


def _number(given: object, watched: Watched, key: str, default: float | None) -> float:
    if given is None:
        if default is None:
            raise Wrong(key, "must be given")
        return default
    try:
        return parse(given, watched.unit)
    except ValueError as error:
        raise Wrong(key, f"{error} ({watched.name})") from error


def _clear(step: Step, watched: Watched, threshold: float) -> float:
    clear = _number(step.clear, watched, "clear", None)
    rising, falling = watched.comparison in (">", ">="), watched.comparison in ("<", "<=")
    if not (rising or falling):
        raise Wrong("clear", f"has no meaning for the comparison {watched.comparison}")
    if (rising and clear > threshold) or (falling and clear < threshold):
        side = "below" if rising else "above"
        raise Wrong("clear", f"expected a value {side} the threshold {show(threshold, watched.unit)}, got {show(clear, watched.unit)}")
    return clear


def _absence(entry: Entry, watched: Watched, at: KeyPath) -> Rule:
    """Nobody exports any of the families that the entry reads."""
    queries: list[Query] = [Absent(select) for select in watched.presence] or [Raw(f"absent({promql(watched.query)})")]
    condition = queries[0]
    for query in queries[1:]:
        condition = Both(condition, query)
    alert = f"{entry.alert or camel(watched.name)}Absent"
    level = max((step.alert_level for step in entry.levels), key=lambda level: level.rank) if entry.levels else entry.alert_level
    labels = labels_of({**entry.tags, "severity": level.severity})
    hold = entry.absent or 0.0
    summary = f"{watched.name}: no data for {promql_duration(hold)}"
    return Rule(
        "",
        alert,
        level,
        condition,
        condition,
        threshold=0.0,
        hold=hold,
        labels=labels,
        summary=summary,
        runbook="MetricAbsent.md",
        notify=entry.notify,
        metric=watched.name,
        where=f"{at[0]}.{at[1]}",
    )


def camel(name: str) -> str:
    """inference_latency → InferenceLatency, as alerts are called."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[_:]+", name))
