"""Service level objectives → alerts on how fast the error budget burns: several windows, several rates (the SRE workbook's table).

A budget that would be gone in two days wakes somebody; one that is used up faster than it comes back makes a ticket. The short window
beside each long one ends the alert soon after the trouble does.
"""

from __future__ import annotations

from collections.abc import Iterator

from monitor.alerts import Level, labels_of
from monitor.metrics.families import LATENCY_BOUNDS
from monitor.metrics.quantities import Unit, parse, show
from monitor.metrics.query import Aggregate, Arithmetic, Both, Compare, Either, Matcher, Over, Query, Select
from monitor.rules.entries import camel
from monitor.rules.file import Objective
from monitor.rules.model import Rule
from monitor.rules.places import Finding
from server.metrics import catalogue
from server.validation import KeyPath

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
BURNS: dict[Level, tuple[tuple[float, float, float], ...]] = {
    Level.CRITICAL: ((14.4, HOUR, 5 * MINUTE), (6.0, 6 * HOUR, 30 * MINUTE)),
    Level.WARNING: ((3.0, DAY, 2 * HOUR), (1.0, 3 * DAY, 6 * HOUR)),
}
"""Level → (how many times faster than allowed, long window, short window), for a budget of 30 days."""


def objective_rules(objective: Objective, at: KeyPath) -> Iterator[Rule | Finding]:
    """A page and a ticket for the objective, or what is wrong with it."""
    matchers = (Matcher("model", "=", objective.model),) if objective.model else ()
    if objective.of == "availability" and objective.threshold is not None:
        yield Finding((*at, "threshold"), "belongs to an objective `of: latency`")
        return
    bound = 0.0
    if objective.of == "latency":
        try:
            bound = _bound(objective.threshold)
        except ValueError as error:
            yield Finding((*at, "threshold"), str(error))
            return
    for level, burns in BURNS.items():
        yield _rule(objective, level, burns, (matchers, bound), at)


def _bound(threshold: object) -> float:
    if threshold is None:
        raise ValueError("an objective `of: latency` needs the time that is still good, such as 200ms")
    seconds = parse(threshold, Unit.SECONDS)
    if seconds not in LATENCY_BOUNDS:
        near = sorted(sorted(LATENCY_BOUNDS, key=lambda bound: abs(bound - seconds))[:2])
        raise ValueError(
            f"latencies are counted at {' and '.join(show(b, Unit.SECONDS) for b in near)}, not at {show(seconds, Unit.SECONDS)}"
        )
    return seconds


def _rule(
    objective: Objective,
    level: Level,
    burns: tuple[tuple[float, float, float], ...],
    what: tuple[tuple[Matcher, ...], float],
    at: KeyPath,
) -> Rule:
    matchers, bound = what
    parts = [
        Both(_burning(objective, matchers, bound, rate, long), _burning(objective, matchers, bound, rate, short))
        for rate, long, short in burns
    ]
    value = _good(matchers, bound, burns[0][2]) if bound else _bad(matchers, burns[0][2])
    kind = f"answers within {show(bound, Unit.SECONDS)}" if bound else "bad answers"
    return Rule(
        key="",
        alert=f"{camel(objective.name)}BudgetBurn",
        level=level,
        value=value,
        condition=Either(parts[0], parts[1]),
        unit=Unit.RATIO,
        comparison="<" if bound else ">",
        threshold=_limit(objective.target, burns[0][0], bool(bound)),
        labels=labels_of({"severity": level.severity, "objective": objective.name}),
        summary=f"model {{model}}: {objective.name} burns its error budget: {{value}} {kind}, objective {objective.target * 100:g}%",
        runbook="BudgetBurn.md",
        notify=objective.notify,
        actions=objective.actions,
        metric=objective.name,
        where=f"{at[0]}.{at[1]}",
    )


def _burning(objective: Objective, matchers: tuple[Matcher, ...], bound: float, rate: float, window: float) -> Query:
    limit = _limit(objective.target, rate, bool(bound))
    return Compare("<", _good(matchers, bound, window), limit) if bound else Compare(">", _bad(matchers, window), limit)


def _limit(target: float, rate: float, good: bool) -> float:
    """The share at which the budget burns at `rate`: of good requests, or of bad ones."""
    bad = rate * (1 - target)
    return round(1 - bad if good else bad, 12)


def _bad(matchers: tuple[Matcher, ...], window: float) -> Query:
    bad, judged = (
        _rate(Select(catalogue.REQUESTS.name, (*matchers, Matcher("outcome", "=~", outcomes))), window)
        for outcomes in ("failed|rejected", "success|failed|rejected")
    )
    return Arithmetic("/", bad, judged)


def _good(matchers: tuple[Matcher, ...], bound: float, window: float) -> Query:
    name = catalogue.REQUEST_DURATION.name
    good = _rate(Select(f"{name}_bucket", (*matchers, Matcher("le", "=", repr(bound)))), window)
    return Arithmetic("/", good, _rate(Select(f"{name}_count", matchers), window))


def _rate(select: Select, window: float) -> Query:
    return Aggregate("sum", ("model",), Over("rate", select, window))
