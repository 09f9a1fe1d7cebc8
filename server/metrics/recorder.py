"""All figures of a server by model, version and precision, and the gauges that other parts let it read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from server.messages import ModelKey
from server.metrics.catalogue import CATALOGUE, MODEL_LABELS, OUTCOMES, SUCCESS, TRITON, Metric
from server.metrics.figures import OTHER, Figures, Watched, count_failure, merged
from server.ring import Ring

log = logging.getLogger(__name__)

MAX_KEYS = 20
"""Models, versions and precisions with series of their own: 5,000 series in all. What comes beyond is shown as OTHER."""
MAX_TENANTS = 32
UNROUTED = ModelKey("", "", "")
GaugeKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class Recorder:
    """All figures of a server, the gauges that other parts let it read, and the ring of what happened last. `watched` keeps what each
    request took for a minute, for quantiles."""

    def __init__(self, *, watched: bool = False) -> None:
        self.ring = Ring()
        self._make = Watched if watched else Figures
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
            found = self._make(key, self.ring)
            if len(self._figures) < MAX_KEYS:
                self._figures[key] = found
            else:
                self._rest = ({**rest, key: found}, gone)
        return found

    def of(self, model: str, version: str) -> list[Figures]:
        """The figures of a version, in each of its precisions. Any thread."""
        return [each for key, each in (*self._figures.copy().items(), *self._rest[0].items()) if key[:2] == (model, version)]

    def close(self, key: ModelKey) -> None:
        """The model is gone: its series end, and its place is free."""
        self._figures.pop(key, None)
        rest, gone = self._rest
        if key in rest:
            self._rest = ({other: each for other, each in rest.items() if other != key}, merged(OTHER, (gone, rest[key])))
        self._forget(lambda labels: labels <= set(zip(MODEL_LABELS, key, strict=True)))

    def rest(self, key: ModelKey) -> None:
        """One precision of a version isn't loaded any more: what its gauges read is gone. Its counts stay and go on where it comes back."""
        self._forget(lambda labels: labels == set(zip(MODEL_LABELS, key, strict=True)))

    def _forget(self, whose: Callable[[set[tuple[str, str]]], bool]) -> None:
        for gauge in list(self._gauges):
            labels = {label for label in gauge[1] if label[0] in MODEL_LABELS}
            if whose(labels) and any(name == "version" for name, _ in labels):  # what is of a whole model isn't the version's
                del self._gauges[gauge]

    def unrouted(self, reason: str) -> None:
        """One request failed before it reached a model."""
        count_failure(self._unrouted, reason)

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
        metric = CATALOGUE.get(name) or TRITON.get(name)
        if metric is None or metric.kind not in ("gauge", "counter") or labels.keys() != set(metric.labels):
            raise ValueError(f"{name} with labels {sorted(labels)} isn't a gauge or counter of the catalogue")
        key = (name, tuple((label, labels[label]) for label in metric.labels))
        if key in self._gauges or sum(known == name for known, _ in self._gauges) < MAX_KEYS:
            self._gauges[key] = read

    def ungauge(self, name: str, labels: Mapping[str, str]) -> None:
        """Its series ends."""
        self._gauges.pop((name, tuple((label, labels[label]) for label in CATALOGUE[name].labels)), None)

    def read(self, metrics: Mapping[str, Metric]) -> Iterator[tuple[str, Sequence[str], float]]:
        """Name, values of the labels and value of each gauge that is one of `metrics`. For the scraping thread."""
        for (name, labels), read in self._gauges.copy().items():
            if name in metrics:
                try:
                    value = float(read())
                except Exception:  # whatever one part can't say must not hide what all the others do
                    log.warning("no value for metric %s", name, exc_info=True)
                else:
                    yield name, [text for _, text in labels], value

    def snapshot(self) -> tuple[list[Figures], dict[str, int]]:
        """What there is to show: figures, failures that reached no model. For the scraping thread."""
        figures, (rest, gone) = list(self._figures.values()), self._rest
        if rest or any(gone.duration) or any(gone.failures.values()):
            figures.append(merged(OTHER, (gone, *rest.values())))
        return figures, self._unrouted.copy()
