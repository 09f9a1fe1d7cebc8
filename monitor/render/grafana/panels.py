"""What a panel is, and the queries that panels are made of. Nothing here knows Grafana's JSON: builder makes that of these lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from monitor.metrics.families import EXPORTED, FAMILIES

VARIABLES = ("instance", "model", "version", "precision", "gpu")
MODEL = 'model=~"$model", version=~"$version", precision=~"$precision", instance=~"$instance"'
VERSION = 'model=~"$model", version=~"$version", instance=~"$instance"'
NAME = 'model=~"$model", instance=~"$instance"'
SERVER = 'instance=~"$instance"'
GPU = 'gpu=~"$gpu", instance=~"$instance"'
DCGM = 'gpu=~"$gpu"'
"""Selectors by the variables. DCGM's exporter is an instance of its own, so that only the GPU's number is asked of it."""


class Kind(StrEnum):
    """How a panel is drawn."""

    LINES = "lines"
    STACK = "stack"
    STAT = "stat"
    STATES = "states"
    HEATMAP = "heatmap"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Limits:
    """Colours by value: `base` below the first step, then each step's from its value on. Lines show them, figures wear them."""

    steps: Sequence[tuple[float, str]]
    base: str = "green"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `tells` says what an operator reads off it, `asks` are (PromQL, legend) pairs, `unit` is Grafana's name of theirs.

    `to` is the dashboard that a click leads to, of the model that was clicked where there's one.
    """

    title: str
    tells: str
    asks: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: Kind = Kind.LINES
    limits: Limits | None = None
    to: str = ""

    @property
    def missing(self) -> Sequence[str]:
        """Families that it asks for and that this server version doesn't export; DCGM's are another exporter's anyway."""
        asked = {name for expr, _ in self.asks for name in families(expr)}
        return sorted(name for name in asked if name not in EXPORTED and not name.startswith("DCGM_"))


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: its rows of panels, and the variables that its queries use."""

    key: str
    title: str
    tells: str
    variables: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def uid(self) -> str:
        """Its address in Grafana."""
        return f"tidegate-{self.key}"


def families(expr: str) -> Sequence[str]:
    """The metric families that PromQL names."""
    words = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", re.sub(r'"[^"]*"', "", expr))
    return [found for word in words for found in (word, re.sub(r"_(bucket|sum|count)$", "", word)) if found in FAMILIES]


def worse_above(warning: float, critical: float) -> Limits:
    """Yellow from `warning` on, red from `critical` on."""
    return Limits(((warning, "yellow"), (critical, "red")))


def worse_below(critical: float, warning: float) -> Limits:
    """Red below `critical`, yellow below `warning`."""
    return Limits(((critical, "yellow"), (warning, "green")), "red")


def legend(labels: str) -> str:
    """The values of `labels`, which stand as in PromQL's `by (…)`."""
    return " ".join(f"{{{{{label}}}}}" for label in labels.split(", "))


def quantiles(name: str, by: str, labels: str, qs: Sequence[float] = (0.5, 0.9, 0.99)) -> list[tuple[str, str]]:
    """Quantiles of a histogram."""
    rate = f"sum by (le, {by}) (rate({name}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{legend(by)} p{q * 100:g}") for q in qs]


def mean(name: str, by: str, labels: str) -> tuple[str, str]:
    """A histogram's mean."""
    total, count = (f"sum by ({by}) (rate({name}_{part}{{{labels}}}[$__rate_interval]))" for part in ("sum", "count"))
    return f"{total} / {count}", legend(by)


def rate(name: str, by: str, labels: str) -> tuple[str, str]:
    """A counter's rate a second."""
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))", legend(by)


def newest(name: str, by: str, labels: str, op: str = "max") -> tuple[str, str]:
    """A gauge, one value for each of `by`."""
    return f"{op} by ({by}) ({name}{{{labels}}})", legend(by)
