"""The HorizontalPodAutoscaler's published algorithm, pure: how many replicas a figure asks for, and how many it may have.

Source: Kubernetes' documentation of the algorithm and pkg/controller/podautoscaler. A figure becomes a number in two ways: an External
metric of type AverageValue (what KEDA makes) is a sum that all replicas share; a Resource metric is a mean over the pods that are ready,
the others guessed on the careful side. Then come stabilization, policies and bounds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

TOLERANCE = 0.1
PERIOD = 15.0
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How far replicas may move within `period` seconds."""

    kind: Literal["Percent", "Pods"]
    value: int
    period: float


@dataclass(frozen=True, slots=True)
class Rules:
    """One direction: the window whose most careful recommendation counts, and policies, the most generous of which counts."""

    window: float
    policies: Sequence[Policy]


@dataclass(frozen=True, slots=True)
class Settings:
    """An autoscaler's. `per_pod`: the figure is the mean over ready pods (Resource metrics), else a sum (External)."""

    target: float
    least: int
    most: int
    up: Rules
    down: Rules
    per_pod: bool = False


@dataclass(slots=True)
class Autoscaler:
    """Decides every PERIOD seconds. It remembers recommendations and what it changed, as long as windows and policies need them."""

    settings: Settings
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now: float, figure: float, replicas: int, ready: int) -> int:
        """How many replicas there should be."""
        wanted = self._stabilized(now, recommended(self.settings, figure, replicas, ready), replicas)
        rules = self.settings.up if wanted > replicas else self.settings.down
        if wanted != replicas:
            wanted = self._limited(now, wanted, replicas, rules)
        wanted = min(max(wanted, self.settings.least), self.settings.most)
        if wanted != replicas:
            self._changes.append((now, wanted - replicas))
        return wanted

    def _stabilized(self, now: float, wanted: int, replicas: int) -> int:
        """Up to the lowest recommendation of the upward window, down to the highest of the downward one."""
        self._recommended.append((now, wanted))
        longest = max(self.settings.up.window, self.settings.down.window)
        while self._recommended[0][0] < now - longest:
            self._recommended.popleft()
        up = min(each for when, each in self._recommended if when >= now - self.settings.up.window)
        down = max(each for when, each in self._recommended if when >= now - self.settings.down.window)
        return min(max(replicas, up), down)

    def _limited(self, now: float, wanted: int, replicas: int, rules: Rules) -> int:
        sign = 1 if wanted > replicas else -1
        bounds = []
        for policy in rules.policies:
            moved = sum(change for when, change in self._changes if when > now - policy.period and change * sign > 0)
            before = replicas - moved
            if policy.kind == "Pods":
                bounds.append(before + sign * policy.value)
            else:
                share = before * (1 + sign * policy.value / 100)
                bounds.append(math.ceil(share) if sign > 0 else int(share))
        if not bounds:
            return wanted
        return min(wanted, max(replicas, *bounds)) if sign > 0 else max(wanted, min(replicas, *bounds))


def recommended(settings: Settings, figure: float, replicas: int, ready: int) -> int:
    """What the figure alone asks for."""
    if not settings.per_pod:
        ratio = figure / (settings.target * replicas)
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(figure / settings.target)
    ratio = figure / settings.target
    if abs(ratio - 1) <= TOLERANCE:
        return replicas
    if ready == replicas:
        return math.ceil(ratio * replicas)
    # Pods that aren't ready count as idle where it would go up, as being on target where it would go down.
    guess = 0.0 if ratio > 1 else settings.target
    careful = (figure * ready + guess * (replicas - ready)) / replicas / settings.target
    if abs(careful - 1) <= TOLERANCE or (careful > 1) != (ratio > 1):
        return replicas
    return math.ceil(careful * replicas)
