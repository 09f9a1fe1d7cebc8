"""The last samples of the series that rules need, kept as Prometheus would see them: staleness, counter resets, look-back.

It knows no rule and no clock: samples come with their times. Of each series only as much is kept as some query looks back.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from monitor.alerts import Labels, labels_of
from monitor.metrics.query import LOOKBACK, Matcher, Select

Sample: TypeAlias = tuple[str, Labels, float]
"""Name, labels and value."""

TRIM_EVERY = 64  # samples of a series between two looks at what is too old


@dataclass(frozen=True, slots=True)
class Reading:
    """What one target said at one time; `error` is empty where it answered."""

    job: str
    instance: str
    samples: Sequence[Sample] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.error


class Series:
    """One series: times, values, and the values as if a counter had never been reset."""

    __slots__ = ("_resets", "labels", "stale", "times", "unbroken", "values")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.times: array[float] = array("d")
        self.values: array[float] = array("d")
        self.unbroken: array[float] = array("d")
        self.stale = False
        self._resets = 0.0

    def add(self, time: float, value: float, keep: float) -> None:
        """The newest sample; a time that isn't after the last one is left out."""
        if self.times and time <= self.times[-1]:
            return
        if self.values and value < self.values[-1]:
            self._resets += self.values[-1]
        self.times.append(time)
        self.values.append(value)
        self.unbroken.append(value + self._resets)
        self.stale = False
        if len(self.times) % TRIM_EVERY == 0:
            self._trim(time - keep)

    def _trim(self, before: float) -> None:
        count = bisect_left(self.times, before)
        if count:
            del self.times[:count], self.values[:count], self.unbroken[:count]

    def newest(self, now: float) -> float | None:
        """The value that an instant query sees at `now`."""
        index = bisect_right(self.times, now) - 1
        if index < 0 or self.stale or self.times[index] < now - LOOKBACK:
            return None
        return self.values[index]

    def span(self, start: float, end: float) -> tuple[int, int]:
        """Indices of the samples from `start` to `end`, both counted in."""
        return bisect_left(self.times, start), bisect_right(self.times, end)


@dataclass(slots=True)
class _Family:
    """The series of one name."""

    keep: float
    series: dict[Labels, Series] = field(default_factory=dict)
    found: dict[Select, list[Series]] = field(default_factory=dict)


class Window:
    """Samples of the names in `needed` (name → seconds to keep), by target."""

    def __init__(self, needed: Mapping[str, float]) -> None:
        self._families = {name: _Family(max(keep, LOOKBACK)) for name, keep in needed.items()}
        self._seen: dict[tuple[str, str], set[tuple[str, Labels]]] = {}
        self.targets: dict[tuple[str, str], Reading] = {}

    def ingest(self, readings: Iterable[Reading], now: float) -> None:
        """Take what the targets said at `now`. Series that a target no longer has, and targets that are no more, become stale."""
        current: dict[tuple[str, str], Reading] = {}
        for reading in readings:
            current[reading.job, reading.instance] = reading
            self._take(reading, now)
        for gone in self._seen.keys() - current.keys():
            self.end(self._seen.pop(gone))
        self.targets = current

    def need(self, needed: Mapping[str, float]) -> None:
        """Other names from now on: what is known of those that stay is kept."""
        families = {name: self._families.get(name) or _Family(0.0) for name in needed}
        for name, keep in needed.items():
            families[name].keep = max(keep, LOOKBACK)
        self._families = families

    def expire(self, now: float) -> None:
        """Forget series that have had no sample for longer than anything looks back."""
        for family in self._families.values():
            dead = [labels for labels, series in family.series.items() if not series.times or series.times[-1] < now - family.keep]
            for labels in dead:
                del family.series[labels]
            if dead:
                family.found.clear()

    def select(self, select: Select) -> list[Series]:
        """The series that a selector names, with or without samples at any time."""
        family = self._families.get(select.name)
        if family is None:
            return []
        found = family.found.get(select)
        if found is None:
            found = family.found[select] = [s for s in family.series.values() if _matches(s.labels, select.matchers)]
        return found

    def __len__(self) -> int:
        return sum(len(family.series) for family in self._families.values())

    def _take(self, reading: Reading, now: float) -> None:
        target = {"job": reading.job, "instance": reading.instance}
        samples = [*reading.samples, ("up", labels_of(target), float(reading.ok))]
        seen = {(name, labels) for name, labels, value in samples if self.add(name, labels, now, value)}
        key = (reading.job, reading.instance)
        self.end(self._seen.get(key, set()) - seen)
        self._seen[key] = seen

    def add(self, name: str, labels: Labels, now: float, value: float) -> bool:
        """Take one sample; False where nothing asks for its name."""
        family = self._families.get(name)
        if family is None:
            return False
        series = family.series.get(labels)
        if series is None:
            series = family.series[labels] = Series(labels)
            family.found.clear()
        series.add(now, value, family.keep)
        return True

    def end(self, ended: Iterable[tuple[str, Labels]]) -> None:
        """These have no value from now on, until their next sample."""
        for name, labels in ended:
            family = self._families.get(name)
            series = family.series.get(labels) if family else None
            if series is not None:
                series.stale = True


def _matches(labels: Labels, matchers: Sequence[Matcher]) -> bool:
    values = dict(labels)
    return all(_match(matcher, values.get(matcher.name, "")) for matcher in matchers)


def _match(matcher: Matcher, value: str) -> bool:
    same = value == matcher.value if matcher.op in ("=", "!=") else re.fullmatch(matcher.value, value) is not None
    return same == (matcher.op in ("=", "=~"))


def over(function: str, series: Series, window: float, now: float) -> float | None:
    """`function` of the samples from `now - window` to `now`, None where there are too few. rate, increase and delta extrapolate."""
    start, end = series.span(now - window, now)
    if end == start:
        return None
    if function == "avg_over_time":
        return math.fsum(series.values[start:end]) / (end - start)
    if function == "max_over_time":
        return max(series.values[start:end])
    if function == "min_over_time":
        return min(series.values[start:end])
    if end - start < 2:
        return None
    values = series.values if function == "delta" else series.unbroken
    moved = values[end - 1] - values[start]
    counter = function != "delta"
    factor = _extrapolation(
        (series.times[start], series.times[end - 1]), end - start, (now - window, now), (series.values[start], moved, counter)
    )
    return moved * factor / (window if function == "rate" else 1.0)


def _extrapolation(sampled: tuple[float, float], count: int, asked: tuple[float, float], counter: tuple[float, float, bool]) -> float:
    """By how much the movement between the first and the last sample is stretched to the whole window, as Prometheus does it: to the
    window's ends where a sample is near, else by half a sample's distance; a counter not beyond where it would have been zero."""
    first, moved, is_counter = counter
    interval = sampled[1] - sampled[0]
    average = interval / (count - 1)
    before, after = sampled[0] - asked[0], asked[1] - sampled[1]
    if is_counter and moved > 0 and first >= 0:
        before = min(before, interval * (first / moved))
    near = average * 1.1
    stretched = interval + (before if before < near else average / 2) + (after if after < near else average / 2)
    return stretched / interval


def targets_down(targets: Mapping[tuple[str, str], Reading]) -> Iterator[Reading]:
    """Those that didn't answer their last scrape."""
    return (reading for reading in targets.values() if not reading.ok)
