"""`tidegate monitor test`: unit tests of rules, written in YAML. Series go in, the alerts that must be firing come out.

Time is simulated: it begins at 0 and moves by `interval`; at each step the series' samples are taken and every rule is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from monitor.alerts import Alert, Labels, State, labels_of
from monitor.evaluator import Evaluator
from monitor.metrics.query import promql_duration
from monitor.rules.build import read_rules
from monitor.rules.model import Rule
from monitor.rules.settings import Interval, Part, Span
from monitor.series.notation import Mark, Value, values
from monitor.series.text import Unreadable, series_named
from monitor.series.vectors import Vectors, needed
from monitor.series.window import Window
from server.documents import Document, read_yaml
from server.errors import ConfigError


class GivenSeries(Part):
    """A series that goes in."""

    series: str = Field(description='NAME{LABEL="VALUE"}.')
    values: str = Field(description="One value an interval: `0+10x5 _x3 stale 7`.")


class Expected(Part):
    """What must be firing at a time: the labels of each alert of that name, besides alertname."""

    at: Span = Field(description="When, from the start.")
    alert: str = Field(description="The alert's name.")
    firing: tuple[dict[str, str], ...] = Field(description="Labels of each; [] for none.")
    summary: str | None = Field(default=None, description="The text of the only one.")


class Case(Part):
    """One test."""

    name: str = Field(description="What it shows.")
    interval: Interval = Field(default=15.0, description="Between two samples, and between two looks at the rules.")
    series: tuple[GivenSeries, ...] = Field(description="What goes in.")
    alerts: tuple[Expected, ...] = Field(description="What must come out.")


class TestFile(Part):
    """The whole file."""

    __test__ = False  # pytest: no test class

    rules: Path = Field(description="The rules file, relative to this one.")
    tests: tuple[Case, ...] = Field(description="The tests.")


@dataclass(frozen=True, slots=True)
class Result:
    """How one test went; `failures` is empty where it passed."""

    name: str
    failures: tuple[str, ...]


GivenValues = Mapping[tuple[str, Labels], Sequence[Value]]


def run_tests(path: Path) -> list[Result]:
    """Run the tests of a file. Raises ConfigError where it, or its rules, can't be read."""
    document = read_yaml(path, ConfigError)
    file = document.read_as(TestFile)
    rules = read_rules(path.parent / file.rules).rules
    return [_run(case, rules, _given(document, index, case)) for index, case in enumerate(file.tests)]


def simulate(rules: Iterable[Rule], series: GivenValues, interval: float, until: float) -> Iterator[tuple[float, list[Alert]]]:
    """The alerts that are pending or firing at each step from 0 to `until`."""
    rules = tuple(rules)
    window = Window(needed(query for rule in rules for query in (rule.condition, rule.value)))
    evaluator = Evaluator(rules)
    for index in range(int(until / interval + 1e-9) + 1):
        now = index * interval
        for (name, labels), given in series.items():
            value = given[index] if index < len(given) else Mark.MISSING
            if value is Mark.STALE:
                window.end([(name, labels)])
            elif not isinstance(value, Mark):
                window.add(name, labels, now, value)
        evaluator.judge(Vectors(window, now).answer, now)
        yield now, list(evaluator.active())


def _given(document: Document, index: int, case: Case) -> GivenValues:
    given: dict[tuple[str, Labels], Sequence[Value]] = {}
    for number, entry in enumerate(case.series):
        try:
            given[series_named(entry.series)] = values(entry.values)
        except (Unreadable, ValueError) as error:
            raise document.error(("tests", index, "series", number), str(error)) from error
    return given


def _run(case: Case, rules: Iterable[Rule], series: GivenValues) -> Result:
    until = max((expected.at for expected in case.alerts), default=0.0)
    steps = list(simulate(rules, series, case.interval, until))
    failures: list[str] = []
    for expected in case.alerts:
        now, alerts = steps[int(expected.at / case.interval + 1e-9)]
        failures += _compare(expected, now, [alert for alert in alerts if alert.state is State.FIRING and alert.name == expected.alert])
    return Result(case.name, tuple(failures))


def _compare(expected: Expected, now: float, firing: list[Alert]) -> Iterator[str]:
    at = f"at {promql_duration(expected.at)}: {expected.alert}"
    wanted = sorted(labels_of({**labels, "alertname": expected.alert}) for labels in expected.firing)
    found = sorted(alert.labels for alert in firing)
    if wanted != found:
        yield f"{at}: expected {_shown(wanted)} firing, got {_shown(found)}"
    elif expected.summary is not None and [alert.annotations["summary"] for alert in firing] != [expected.summary]:
        yield f"{at}: expected the summary {expected.summary!r}, got {[alert.annotations['summary'] for alert in firing]}"


def _shown(alerts: Iterable[Labels]) -> str:
    shown = ["{" + ", ".join(f"{name}={value}" for name, value in labels if name != "alertname") + "}" for labels in alerts]
    return ", ".join(shown) or "none"
