"""What travels between the monitor's parts: labels, levels, and an alert with its state. Knows no rule, no series and no notifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Sorted (name, value) pairs: equal sets of labels are equal keys."""

Vector: TypeAlias = Mapping[Labels, float]
"""What a query answers at one time: a value for each set of labels."""


def labels_of(pairs: Mapping[str, str]) -> Labels:
    """`pairs` as a key. An empty value is a label that isn't there, as in Prometheus."""
    return tuple(sorted((name, value) for name, value in pairs.items() if value))


class Level(StrEnum):
    """How urgent an alert is: INFO is for the record, WARNING for working hours, CRITICAL wakes somebody."""

    INFO = "INFO"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"

    @property
    def severity(self) -> str:
        """The label's value, in the words of Prometheus' ecosystem."""
        return self.value.lower()

    @property
    def rank(self) -> int:
        return list(Level).index(self)


class State(StrEnum):
    """Where an alert stands; monitor.evaluator has the table of how it moves."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule's alert for one set of labels. Times are seconds since the epoch, 0 where it hasn't happened."""

    rule: str
    labels: Labels
    level: Level
    state: State
    value: float
    active_at: float
    fired_at: float = 0.0
    resolved_at: float = 0.0
    quiet_since: float = 0.0
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of its labels: the same in every monitor and after every restart."""
        return fingerprint(self.labels)

    @property
    def name(self) -> str:
        return dict(self.labels).get("alertname", self.rule)


def fingerprint(labels: Labels) -> str:
    """16 hexadecimal digits that stand for a set of labels."""
    return hashlib.sha256(json.dumps(labels, ensure_ascii=False).encode()).hexdigest()[:16]
