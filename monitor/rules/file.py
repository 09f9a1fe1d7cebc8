"""The rules file as people write it: its keys, their types and what they mean. What the words amount to is monitor.rules.build's work."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from monitor.alerts import Level
from monitor.rules.settings import LevelName, Part, Settings, Span, Words
from server.units import ratio

NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"

Quantity: TypeAlias = Annotated[Any, WithJsonSchema({"type": ["number", "string"]})]
Name: TypeAlias = Annotated[str, Field(pattern=NAME)]
LabelValue: TypeAlias = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
Comparison: TypeAlias = Literal[">", ">=", "<", "<=", "==", "!="]
Reduction: TypeAlias = Literal["last", "mean", "max", "min", "rate", "increase"]


def _target(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError("expected a target between 0% and 100%, such as 99.9%")
    return share


def _window(seconds: float) -> float:
    if seconds < 1:
        raise ValueError(f"expected a window of at least 1s, got {seconds:g}s")
    return seconds


Window: TypeAlias = Annotated[Span, AfterValidator(_window)]
Target: TypeAlias = Annotated[
    float, BeforeValidator(ratio), AfterValidator(_target), WithJsonSchema({"type": ["number", "string"], "examples": ["99.9%"]})
]


class Step(Part):
    """One level of an entry that has several."""

    threshold: Quantity = Field(description="What the value is compared with.")
    alert_level: LevelName = Field(description="INFO, WARNING or CRITICAL.")
    clear: Quantity | None = Field(default=None, description="Once firing, it stays so until the value is back beyond this.")
    for_: Span | None = Field(default=None, alias="for", description="How long it must hold before it fires.")


class Entry(Part):
    """One thing that's watched: a named metric, a series, or PromQL."""

    name: str | None = Field(default=None, description="A named metric, such as inference_latency.")
    series: str | None = Field(default=None, pattern=r"^[A-Za-z_:][A-Za-z0-9_:]*$", description="A series by its own name.")
    expr: str | None = Field(default=None, min_length=1, max_length=4096, description="PromQL; needs sources.prometheus.")
    alert: Name | None = Field(default=None, description="The alert's name; else made from the metric's.")
    threshold: Quantity | None = Field(default=None, description="What the value is compared with, with its unit.")
    clear: Quantity | None = Field(default=None, description="Once firing, it stays so until the value is back beyond this.")
    alert_level: LevelName = Field(default=Level.WARNING, description="INFO, WARNING or CRITICAL.")
    levels: tuple[Step, ...] = Field(default=(), description="Several thresholds, each with its level.")
    comparison: Comparison | None = Field(default=None, description="Between the value and the threshold; a metric has its usual one.")
    quantile: str | None = Field(default=None, description="p50 to p99.9, or mean; of histograms.")
    window: Window | None = Field(default=None, description="Over what time the value is taken.")
    change: Window | None = Field(default=None, description="Watch how far a gauge moved in this time, instead of its value.")
    for_: Span = Field(default=0.0, alias="for", description="How long it must hold before it fires.")
    keep_firing_for: Span = Field(default=0.0, description="How long it goes on firing once it no longer holds.")
    absent: Span | None = Field(default=None, description="Also alert when there has been no data at all for this long.")
    model: LabelValue | None = Field(default=None, description="Only this model.")
    version: LabelValue | None = Field(default=None, description="Only this version.")
    precision: LabelValue | None = Field(default=None, description="Only this precision.")
    phase: LabelValue | None = Field(default=None, description="Only this phase of a request.")
    labels: dict[str, LabelValue] = Field(default={}, description="Label → value that the series must have; ~ before it is a pattern.")
    by: tuple[Name, ...] | None = Field(default=None, description="One alert for each value of these labels.")
    reduce: Reduction = Field(default="mean", description="Of a series by its own name: what becomes of its samples.")
    unit: Literal["seconds", "ratio", "bytes", "celsius", "watts", "count"] = Field(
        default="count", description="Of a series or PromQL: in what its values are."
    )
    notify: Words = Field(default=(), description="Notifiers that get it, instead of those of `routes`.")
    actions: Words = Field(default=(), description="Actions to take when it fires.")
    tags: dict[str, LabelValue] = Field(default={}, description="Labels that the alert carries besides.")
    summary: str | None = Field(default=None, max_length=500, description="One line; {value}, {threshold} and {LABEL} are filled in.")
    runbook: str | None = Field(default=None, description="Where the runbook is, instead of the one of that name.")


class Objective(Part):
    """A service level objective, watched by how fast its error budget burns (several windows, several rates)."""

    name: Name = Field(description="What it's called; the alert is NAME with BudgetBurn.")
    target: Target = Field(description="Share of good requests, such as 99.9%.")
    of: Literal["availability", "latency"] = Field(default="availability", description="What is good: answered, or answered in time.")
    threshold: Quantity | None = Field(default=None, description="Of latency: the time that is still good; a bound of the histogram.")
    model: LabelValue | None = Field(default=None, description="Only this model.")
    notify: Words = Field(default=(), description="Notifiers that get it, instead of those of `routes`.")
    actions: Words = Field(default=(), description="Actions to take when it fires.")


class RulesFile(Settings):
    """The whole file."""

    metrics: tuple[Entry, ...] = Field(default=(), description="What is watched.")
    objectives: tuple[Objective, ...] = Field(default=(), description="Service level objectives.")
    pack: bool = Field(default=True, description="Whether tidegate's own alerts are watched too.")
    watchdog: bool = Field(default=True, description="An alert that always fires, so that silence is noticed.")
