"""Replicas of an emulated T4 behind an even split, and the traces they are put through; simulated in steps, nothing is served.

A replica is a queue before a device: a run takes the rows that wait, up to the capacity's run size, and lasts what the table says. Rows
that couldn't be answered within the objective are refused at once, as the server does. With the ladder, a replica that is offered more than
its preferred precision serves steps down, and back up when it's been quiet; its utilization is still reckoned at the preferred one, as the
server's is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from server.backends.latency_table import BUILT_IN, Curve, read_table
from server.engine.cost_model import CostModel
from server.errors import ConfigError

MODEL, OBJECTIVE, MAX_ROWS = "bert_base_128", 0.100, 64
STEP = 0.25
"""Seconds of a step: some ten runs."""

STEP_DOWN, STEP_UP, QUIET, SMOOTH = 0.95, 0.7, 60.0, 5.0
"""The ladder: down over that utilization, up after QUIET seconds below the other; it looks at the mean of some SMOOTH seconds."""


@dataclass(frozen=True, slots=True)
class Device:
    """One precision: the run that keeps the objective, its rows a second, and T(rows)."""

    curve: Curve
    rows: int
    rate: float

    def served(self, waiting: float) -> float:
        """Rows a second where so many wait for a run."""
        rows = min(self.rows, max(1.0, waiting))
        return rows / self.curve.seconds(math.ceil(rows))


@cache
def device(precision: str) -> Device:
    """The emulated T4, with the capacity that the server would reckon."""
    curve = read_table(BUILT_IN["t4"], ConfigError).curve(MODEL, precision)
    sizes = (1, 2, 4, 8, 16, 32, 64)
    found = CostModel({rows: curve.seconds(rows) for rows in sizes}).capacity(OBJECTIVE, MAX_ROWS)
    return Device(curve, found.rows, found.rate)


@dataclass(slots=True)
class Fleet:
    """All replicas, alike, so that one queue stands for each of theirs. `lower` is the precision to step down to, if any."""

    preferred: Device
    lower: Device | None = None
    waiting: float = 0.0
    load: float = 0.0
    quiet: float = 0.0
    stepped: bool = False

    def step(self, offered: float, ready: int) -> Step:
        """One STEP of `offered` rows to `ready` replicas."""
        each = offered / ready
        utilization = each / STEP / self.preferred.rate
        device = self._device(utilization)
        room = device.rate * OBJECTIVE
        came = self.waiting + each
        done = min(came, device.served(came) * STEP)
        left = came - done
        refused = max(0.0, left - room)
        self.waiting = left - refused
        busy = min(1.0, done / (device.rate * STEP))
        return Step(utilization, busy, self.waiting, done * ready, refused * ready, self.stepped)

    def joined(self, before: int) -> None:
        """A replica came to `before` others, with nothing waiting: the mean falls."""
        self.waiting *= before / (before + 1)

    def _device(self, utilization: float) -> Device:
        if self.lower is None:
            return self.preferred
        self.load += (utilization - self.load) * STEP / SMOOTH
        self.quiet = 0.0 if self.load > STEP_UP else self.quiet + STEP
        if self.load > STEP_DOWN:
            self.stepped = True
        elif self.quiet >= QUIET:
            self.stepped = False
        return self.lower if self.stepped else self.preferred


@dataclass(frozen=True, slots=True)
class Step:
    """What a step showed, of one replica: its utilization, how busy its device was, what waited; and of all, rows done and refused."""

    utilization: float
    busy: float
    waiting: float
    done: float
    refused: float
    stepped: bool


def diurnal(rate: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Rows of each step of a day whose nights have a tenth of its evenings, with minutes that wander by a tenth; `rate` is the peak."""
    hours = np.arange(0, 24, STEP / 3600)
    shape = 0.55 - 0.35 * np.cos((hours - 3) * np.pi / 12) - 0.1 * np.cos((hours - 3) * np.pi / 6)
    return _arrivals(np.asarray(rate * shape / shape.max() * _wander(len(hours), random), np.float64), random)


def flash_crowd(rate: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Two hours at a fifth of the peak; after half an hour a crowd comes within a minute, stays ten, and thins out over twenty."""
    seconds = np.arange(0, 7200, STEP)
    points = ((0, 0.2), (1800, 0.2), (1860, 1.0), (2460, 1.0), (3660, 0.2), (7200, 0.2))
    shape = np.interp(seconds, [when for when, _ in points], [level for _, level in points])
    return _arrivals(np.asarray(rate * shape * _wander(len(seconds), random), np.float64), random)


TRACES: Mapping[str, Callable[[float, np.random.Generator], NDArray[np.float64]]] = {"diurnal": diurnal, "flash crowd": flash_crowd}


def _wander(steps: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose minutes differ by a tenth, straight between."""
    minutes = int(steps * STEP / 60) + 2
    levels = (1 + 0.1 * random.standard_normal(minutes)).clip(0.5, 1.5)
    return np.asarray(np.interp(np.arange(steps) * STEP / 60, np.arange(minutes), levels), np.float64)


def _arrivals(rate: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Poisson, but in clumps of four: clients come together more than that."""
    return np.asarray(4.0 * random.poisson(rate * STEP / 4), np.float64)
