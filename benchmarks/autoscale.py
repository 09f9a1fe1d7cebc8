"""Which figure to scale by, and where to set it: replicas of an emulated T4 under a day and under a flash crowd, by simulation.

Nothing is measured: device times are the published table's (docs/emulated.md), the autoscaler is Kubernetes' published algorithm, and CPU
use is an assumption that is printed. What it shows is how the policies compare. The chart's defaults are DEFAULTS.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.autoscale_fleet import MODEL, OBJECTIVE, STEP, TRACES, Fleet, Step, device
from benchmarks.autoscale_hpa import PERIOD, Autoscaler, Policy, Rules, Settings

PEAK = 8.0
"""Peak load in replicas' worth of capacity."""

START = 90.0
"""Seconds from a replica's creation to its being ready: image pulled already, models loaded and warm."""

AVERAGED, DELAY = 30.0, 15.0
"""Seconds over which the figure is averaged (a scrape interval and a rate's window), and how old it is when it's looked at."""

IDLE_CPU, BUSY_CPU = 0.10, 0.55
"""Assumed share of the requested CPU: idle, and more at a busy device; refusing takes next to none."""

UP = Rules(0.0, (Policy("Percent", 100, 30.0),))
DOWN = Rules(300.0, (Policy("Percent", 25, 60.0),))
DEFAULTS = Settings(target=0.7, least=2, most=20, up=UP, down=DOWN)

SEEDS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Signal:
    """A figure to scale by: what of a step it is, and the targets tried."""

    name: str
    targets: Sequence[float]
    per_pod: bool


SIGNALS: Mapping[str, Signal] = {
    "capacity": Signal("capacity utilization", (0.6, 0.7, 0.8), per_pod=False),
    "cpu": Signal("CPU", (0.4, 0.5, 0.7), per_pod=True),
    "queue": Signal("queue rows", (4.0, 16.0, 32.0), per_pod=True),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run: share answered in time, replica-hours and what an oracle would have used, turns of direction, the most replicas."""

    goodput: float
    hours: float
    ideal: float
    turns: int
    most: int
    stepped: float


def figure(signal: str, step: Step) -> float:
    """What a replica shows of a signal."""
    return {"capacity": step.utilization, "cpu": IDLE_CPU + BUSY_CPU * step.busy, "queue": step.waiting}[signal]


def play(trace: str, signal: str, settings: Settings, *, ladder: bool, seed: int) -> Outcome:
    """One simulation: the trace through a fleet that the autoscaler moves."""
    preferred = device("fp16")
    fleet = Fleet(preferred, device("int8") if ladder else None)
    offered = TRACES[trace](PEAK * preferred.rate, np.random.default_rng(seed))
    scaler = Autoscaler(settings)
    ready = max(settings.least, math.ceil(float(offered[: int(60 / STEP)].mean()) / STEP / preferred.rate / DEFAULTS.target))
    starting: deque[float] = deque()
    shown: deque[float] = deque(maxlen=int((AVERAGED + DELAY) / STEP))
    done = hours = stepped = 0.0
    sizes: list[int] = [ready]
    for index, rows in enumerate(offered):
        now = index * STEP
        while starting and starting[0] <= now:
            starting.popleft()
            fleet.joined(ready)
            ready += 1
        step = fleet.step(float(rows), ready)
        shown.append(figure(signal, step) * (1 if settings.per_pod else ready))
        done, stepped = done + step.done, stepped + step.stepped
        replicas = ready + len(starting)
        hours += replicas * STEP / 3600
        if index % int(PERIOD / STEP) == 0 and len(shown) == shown.maxlen:
            seen = list(shown)[: int(AVERAGED / STEP)]
            wanted = scaler.decide(now, statistics.fmean(seen), replicas, ready)
            while wanted < ready + len(starting) and starting:
                starting.pop()
            ready = min(ready, wanted)
            starting.extend([now + START] * (wanted - ready - len(starting)))
            sizes.append(wanted)
    ideal = float(np.maximum(1.0, np.ceil(_minutes(offered) / STEP / preferred.rate)).sum() / 60)
    return Outcome(done / float(offered.sum()), hours, ideal, turns(sizes), max(sizes), stepped / len(offered))


def turns(sizes: Sequence[int]) -> int:
    """How often growing became shrinking or the other way round."""
    moves = [after - before for before, after in pairwise(sizes) if after != before]
    return sum((a > 0) != (b > 0) for a, b in pairwise(moves))


def _minutes(offered: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean rows a step of each minute."""
    steps = int(60 / STEP)
    whole: np.ndarray[tuple[int], np.dtype[np.float64]] = offered[: len(offered) // steps * steps].reshape(-1, steps).mean(axis=1)
    return whole


def row(trace: str, signal: str, settings: Settings, *, ladder: bool) -> tuple[str, ...]:
    """One line of the table: means over the seeds."""
    outcomes = [play(trace, signal, settings, ladder=ladder, seed=seed) for seed in SEEDS]
    hours = statistics.fmean(outcome.hours for outcome in outcomes)
    ideal = statistics.fmean(outcome.ideal for outcome in outcomes)
    return (
        trace,
        SIGNALS[signal].name,
        f"{settings.target:g}",
        "on" if ladder else "off",
        f"{statistics.fmean(outcome.goodput for outcome in outcomes):.2%}",
        f"{hours:.1f}",
        f"{hours / ideal:.2f}",
        f"{statistics.fmean(outcome.turns for outcome in outcomes):.1f}",
        f"{max(outcome.most for outcome in outcomes)}",
        f"{statistics.fmean(outcome.stepped for outcome in outcomes):.1%}",
    )


def main() -> None:
    """Prints the table."""
    console = Console(width=140)
    preferred = device("fp16")
    console.print(
        f"Simulated, nothing measured: {MODEL} on an emulated T4, objective {OBJECTIVE * 1e3:g} ms, {preferred.rate:.0f} rows/s a replica "
        f"in runs of {preferred.rows}; peak {PEAK:g} replicas' worth; a replica takes {START:g} s to start; CPU {IDLE_CPU:.0%} idle and "
        f"{IDLE_CPU + BUSY_CPU:.0%} at a busy device; {len(SEEDS)} seeds."
    )
    table = Table()
    for column in ("trace", "scaled by", "target", "ladder", "answered in time", "replica-hours", "of ideal", "turns", "most", "stepped"):
        table.add_column(column, justify="left" if column in ("trace", "scaled by") else "right")
    for trace in TRACES:
        for signal, about in SIGNALS.items():
            for target in about.targets:
                for ladder in (False, True) if signal == "capacity" else (False,):
                    settings = replace(DEFAULTS, target=target, per_pod=about.per_pod)
                    table.add_row(*row(trace, signal, settings, ladder=ladder))
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
