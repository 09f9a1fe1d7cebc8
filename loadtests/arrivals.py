"""When requests fall due: arrival processes over a rate that goes with time. Pure: a seed in, sorted seconds out.

A process of unit rate is drawn and bent by the integral of the rate (time rescaling: Brown, Barbieri, Ventura, Kass & Frank 2002), so that
each process keeps its character at any shape. Bursts (mmpp) are a Markov-modulated Poisson process of two states (Fischer & Meier-Hellstern
1993): calm and burst, exponential in length, with the mean rate as asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtests.scenario import Arrivals, Shape

Times = NDArray[np.float64]
GRID = 0.001  # seconds between points at which the rate is integrated


def due_times(arrivals: Arrivals, duration: float, random: np.random.Generator) -> Times:
    """Sorted times in [0, duration) at which requests fall due."""
    grid = np.linspace(0.0, duration, max(2, round(duration / GRID) + 1))
    rate = rate_at(arrivals.rate, arrivals.shape, grid, duration)
    if arrivals.process == "mmpp":
        rate = rate * _modulation(arrivals, grid, random)
    passed = np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid))))
    points = _unit_process(arrivals, passed[-1], random)
    bent = np.interp(points, passed, grid)
    return bent[bent < duration]


def rate_at(rate: float, shape: Shape, times: Times, duration: float) -> Times:
    """Requests a second at each time. `rate` is the constant, the ramp's begin, the spike's base, the diurnal's lowest."""
    share = times / duration
    to = rate if shape.to is None else shape.to
    if shape.kind == "ramp":
        return rate + (to - rate) * share
    if shape.kind == "steps":
        steps = np.asarray(shape.rates, np.float64)
        return steps[np.minimum((share * len(steps)).astype(np.int64), len(steps) - 1)]
    if shape.kind == "spike":
        return np.where((share >= shape.at) & (share < shape.at + shape.lasts), to, rate)
    if shape.kind == "diurnal":
        return rate + (to - rate) * (1 - np.cos(2 * np.pi * shape.periods * share)) / 2
    return np.full(len(times), rate)


def _unit_process(arrivals: Arrivals, end: float, random: np.random.Generator) -> Times:
    """Points of mean rate 1 in [0, end)."""
    if arrivals.process == "uniform":
        return np.arange(random.random(), end)
    spread = arrivals.cv if arrivals.process == "gamma" else 1.0
    shape = 1 / spread**2
    count = int(end + 6 * spread * np.sqrt(end) + 16)
    points = np.zeros(0)
    while not len(points) or points[-1] < end:
        gaps = random.gamma(shape, 1 / shape, count)
        points = np.concatenate((points, (points[-1] if len(points) else 0.0) + np.cumsum(gaps)))
    return points[points < end]


def _modulation(arrivals: Arrivals, grid: Times, random: np.random.Generator) -> Times:
    """What the rate is multiplied by: `burst` in bursts, less between, 1 in the mean of long runs."""
    share, high = arrivals.burst_share, arrivals.burst
    low = (1 - share * high) / (1 - share)
    calm = arrivals.burst_lasts * (1 - share) / share
    bursting = random.random() < share
    edges, states, at = [0.0], [bursting], 0.0
    while at < grid[-1]:
        at += random.exponential(arrivals.burst_lasts if bursting else calm)
        bursting = not bursting
        edges.append(at)
        states.append(bursting)
    found = np.asarray(states)[np.searchsorted(edges, grid, side="right") - 1]
    return np.where(found, high, low)
