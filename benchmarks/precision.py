"""`make bench-precision`: what precision switching and its guard are held to. What can't be measured yet is reported as not met.

The drift detector is played through its real code where a run is short; a million samples a run are skipped through, from one differing
sample to the next, which is the same process.
"""

from __future__ import annotations

from random import Random
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import precision_guard, precision_ladder
from benchmarks.harness import Report, Target
from benchmarks.precision_switch import switched
from server.precision.drift import THRESHOLD, Cusum, rates

PROVEN, TOLERATE = 0.01, 0.05
RUNS, LONG_RUNS, LONG = 4000, 4000, 1_000_000
"""Name, bound, whether it's an upper one: these wait for the switch and the guard."""


def delays(rate: float, runs: int, seed: int) -> list[int]:
    """Samples until the alarm for a variant that differs at `rate`, one figure a run."""
    random, found = Random(seed), []
    for _ in range(runs):
        cusum = Cusum(rates(PROVEN, TOLERATE))
        while not cusum.add(random.random() < rate):
            pass
        found.append(cusum.samples)
    return found


def alarm_within(samples: int, rate: float, runs: int, seed: int) -> float:
    """The share of runs in which an alarm comes within so many samples."""
    generator = np.random.default_rng(seed)
    up, down = rates(PROVEN, TOLERATE).up, rates(PROVEN, TOLERATE).down
    statistic, at, alarmed = np.zeros(runs), np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=np.bool_)
    while bool(((at < samples) & ~alarmed).any()):
        gaps = generator.geometric(rate, runs)
        at += gaps
        statistic = np.maximum(0.0, statistic - down * (gaps - 1)) + up
        alarmed |= (statistic >= THRESHOLD) & (at <= samples)
    return float(alarmed.mean())


def drift(report: Report) -> None:
    """The drift detector's targets."""
    found: dict[str, Any] = {"p0": PROVEN, "p1": rates(PROVEN, TOLERATE).p1, "threshold": THRESHOLD}
    for rate, most in ((0.05, 350), (0.2, 60)):
        seen = delays(rate, RUNS, seed=int(rate * 100))
        found[f"{rate:.0%}"] = {"median": median(seen), "p90": float(np.quantile(seen, 0.9)), "mean": sum(seen) / RUNS}
        note = f"samples, median of {RUNS:,} simulated runs, mean {sum(seen) / RUNS:.0f}"
        report.targets.append(Target(f"drift: {rate:.0%} disagreement is caught", median(seen), most, at_most=True, note=note))
    healthy = 1 - alarm_within(LONG, PROVEN, LONG_RUNS, seed=7)
    found["healthy"] = healthy
    note = f"share of {LONG_RUNS:,} simulated runs of {LONG:,} samples at 1 %"
    report.targets.append(Target("drift: a healthy variant raises no alarm", healthy, 0.95, note=note))
    report.details["drift"] = found


def main() -> None:
    """Measure, print, write precision.json."""
    report, console = Report("precision"), Console(width=150)
    drift(report)
    switched(report)
    precision_ladder.ladder(report)
    precision_guard.guard(report)
    report.show(console)
    console.print(f"written to {report.write()}", soft_wrap=True)


if __name__ == "__main__":
    main()
