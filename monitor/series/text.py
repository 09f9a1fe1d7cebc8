"""Prometheus' text format → samples. What targets send isn't trusted: a line that can't be read is counted, and too many are an error."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from monitor.alerts import Labels, labels_of
from monitor.series.window import Sample

MAX_LINES = 200_000
MAX_LABEL = 1024
_NAME = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|(?=\}))')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Unreadable(ValueError):
    """Text that is no sample, or no series."""


class Exposition:
    """Reads one target's pages. A series is parsed when it's first seen; from then on its line costs a look-up.

    `target` are the labels that say where a sample comes from; a sample's own labels of those names become exported_NAME, as in
    Prometheus. Only names in `wanted` are read; None reads all.
    """

    def __init__(self, target: Mapping[str, str], wanted: Collection[str] | None = None) -> None:
        self._target = dict(target)
        self._wanted = wanted
        self._known: dict[str, tuple[str, Labels] | None] = {}
        self.unreadable = 0

    def read(self, page: str) -> list[Sample]:
        """The samples of `page`. Raises Unreadable where it has too many lines, or none that can be read."""
        lines = page.split("\n")
        if len(lines) > MAX_LINES:
            raise Unreadable(f"more than {MAX_LINES} lines")
        if len(self._known) > 2 * len(lines) + 1000:
            self._known.clear()
        self.unreadable = 0
        samples = list(self._samples(lines))
        if self.unreadable and not self._known:
            raise Unreadable("no line is in Prometheus' text format")
        return samples

    def _samples(self, lines: list[str]) -> Iterator[Sample]:
        known = self._known
        for line in lines:
            if not line or line[0] == "#":
                continue
            head, _, tail = line.rstrip().rpartition(" ")
            try:
                series = known[head]
            except KeyError:
                series, tail = self._first_seen(head, line)
            if series is not None:
                try:
                    yield (*series, float(tail))
                except ValueError:
                    self.unreadable += 1

    def _first_seen(self, head: str, line: str) -> tuple[tuple[str, Labels] | None, str]:
        """A line whose series isn't known yet, and the text of its value. A time stamp after the value isn't used."""
        try:
            name, labels, rest = _series(line)
            words = rest.split()
            if len(words) not in (1, 2):
                raise Unreadable(line)
        except Unreadable:
            self.unreadable += 1
            return None, ""
        series = (name, self._labels(labels)) if self._wanted is None or name in self._wanted else None
        if len(words) == 1:
            self._known[head] = series
        return series, words[0]

    def _labels(self, own: Mapping[str, str]) -> Labels:
        moved = {f"exported_{name}" if name in self._target else name: value for name, value in own.items()}
        return labels_of({**moved, **self._target})


def series_named(text: str) -> tuple[str, Labels]:
    """`name{label="value"}` as name and labels. Raises Unreadable."""
    name, labels, rest = _series(text)
    if rest.strip():
        raise Unreadable(f'expected NAME{{LABEL="VALUE"}}, got {text[:80]!r}')
    return name, labels_of(labels)


def _series(line: str) -> tuple[str, dict[str, str], str]:
    """Name, labels, and what comes after them."""
    match = _NAME.match(line)
    if match is None:
        raise Unreadable(f"expected a metric's name, got {line[:80]!r}")
    name, at = match[1], match.end()
    labels: dict[str, str] = {}
    if line[at : at + 1] != "{":
        return name, labels, line[at:]
    at += 1
    while (label := _LABEL.match(line, at)) is not None:
        if len(label[2]) > MAX_LABEL:
            raise Unreadable(f"a label of more than {MAX_LABEL} characters")
        labels[label[1]] = re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), label[2])
        at = label.end()
    closing = re.compile(r"\s*\}").match(line, at)
    if closing is None:
        raise Unreadable(f"expected labels in braces, got {line[:80]!r}")
    return name, labels, line[closing.end() :]
