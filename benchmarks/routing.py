"""`make bench-routing`: what choosing a version costs a request, and the canary's tests over simulated roll-outs."""

from __future__ import annotations

import math
import subprocess
import sys
import timeit
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness import Report, Target
from benchmarks.roll_outs import ALPHA, OUTCOME, Event, Latency, Traffic, fixed_size, found, harmless
from server.router.canary import OUTRIGHT, Action, Plan, Standing, judge
from server.router.evidence import MOST_BLOCKS, UNIT, Arm, Evidence, Sums
from server.router.experiment import EXPOSURES, Guard
from server.router.rules import choose, split

CALLS, REPEATS = 50_000, 9
RUNS, SLOW_RUNS = 2000, 500
BURST_RUNS, BURST, BURST_SECONDS = 400, 16, 60
GUARDS = 3
AA_SHARES, AA_RUNS = (1.0, 5.0, 25.0, 50.0), 60
LOOKED_AT = ("errors", "latency", "slow", "outcome", "rating")
ERRORS, LATENCY = Event((0.01, 0.03), 0.01), Latency(1.2, 0.1)
EQUAL = (Event((0.01, 0.01), 0.01), Latency(1.0, 0.1), Event((0.10, 0.10), 0.03, lower=True))
WIDTH = 150  # columns of what goes into a file


@dataclass(frozen=True, slots=True)
class Bad:
    """A canary that is worse. `most`: canary requests, in the median. `seconds`: how long it's played, by requests/s."""

    name: str
    metric: Event | Latency
    seed: int
    most: float
    requests: int
    seconds: Mapping[int, int]


BAD = (
    Bad("errors 1 → 3 %", ERRORS, 1, 600, 4000, MappingProxyType({10: 4000, 1000: 400})),
    Bad("latency +20 %", LATENCY, 2, 800, 2000, MappingProxyType({10: 3000, 1000: 60})),
    Bad("outcome 10 → 8 %", OUTCOME, 3, 1.6 * fixed_size(0.10, 0.08), 20_000, MappingProxyType({10: 4000, 1000: 400})),
)
EQUAL_SEEDS: Mapping[int, int] = MappingProxyType({0: 4, 10: 5, 1000: 6})
EQUAL_RUNS: Mapping[int, int] = MappingProxyType({0: RUNS, 10: RUNS, 1000: SLOW_RUNS})


def costs() -> Iterator[Target]:
    """Microseconds of one choice between two versions, the best of several runs."""
    rules, ready = split("bench", {"1": 95, "2": 5}), frozenset("12")
    for name, key, most in (("weights", "", 1.5), ("sticky", "user-1234567890", 3.0)):
        seconds = timeit.repeat(lambda key=key: choose(rules, ready, "2", key, 0.3), number=CALLS, repeat=REPEATS)  # type: ignore[misc]
        yield Target(f"µs a choice by {name}", min(seconds) / CALLS * 1e6, most, at_most=True, note=f"best of {REPEATS} × {CALLS}")


def looks() -> Iterator[Target]:
    """Milliseconds of a look at as much evidence as there ever is, after a run's was added; microseconds of what a run adds."""
    plan = Plan("m", tuple(Guard(metric, 0.1) for metric in LOOKED_AT), (1, 5, 25, 50, 100), min_seconds=1e6)
    evidence, random, last = Evidence(), np.random.default_rng(8), float(MOST_BLOCKS - 1)
    for second in range(MOST_BLOCKS):
        for metric in LOOKED_AT:
            for share in plan.steps[:-1]:
                for arm in Arm:
                    evidence.count(metric, share, arm, Sums.of(random.random(8) < 0.1), second)
    run = [0.01 * number for number in range(32)]
    most = min(timeit.repeat(lambda: evidence.count("latency", 50, Arm.CANARY, Sums.of(run), last), number=2000, repeat=REPEATS))
    yield Target("µs a value that a run adds", most / 2000 / len(run) * 1e6, 0.5, at_most=True, note=f"{len(run)} values at once")

    def look() -> None:
        evidence.count("latency", 50, Arm.CANARY, Sums.of(run), last)
        judge(plan, Standing(3, 0.0), evidence, last + 1)

    note = f"{len(LOOKED_AT)} guards, {len(plan.steps) - 1} shares, {MOST_BLOCKS} blocks each"
    yield Target("ms a look at a canary", min(timeit.repeat(look, number=20, repeat=REPEATS)) / 20 * 1e3, 2.0, at_most=True, note=note)


def bad(one: Bad, table: Table) -> Iterator[Target]:
    """How soon one is rolled back, as a target and as a row of the table."""
    half = Traffic.looked_at_each(one.requests)
    alone, split_ = (float(np.median(found(one.metric, half, guards, RUNS, one.seed)[0])) for guards in (1, GUARDS))
    cells = []
    for rate, seconds in one.seconds.items():
        runs = SLOW_RUNS if isinstance(one.metric, Latency) else RUNS
        needed, times = found(one.metric, Traffic.rolled_out(rate, seconds), 1, runs, one.seed)
        cells.append(f"{np.median(times):.0f} s ({np.median(needed):.0f})")
    table.add_row(one.name, f"{alone:.0f}", f"{one.most:.0f}", f"{split_:.0f}", *cells, str(one.seed))
    yield Target(f"{one.name}: canary requests, median", alone, one.most, at_most=True, note=f"{RUNS} runs, seed {one.seed}, one guard")


def equal(rate: int, table: Table) -> Iterator[Target]:
    """How a canary that equals the baseline fares: with a look after each request (0) or each second of a roll-out at this rate."""
    traffic = Traffic.rolled_out(rate, 40_000 // rate if rate == 10 else 400) if rate else Traffic.looked_at_each(20_000)
    runs, seed = EQUAL_RUNS[rate], EQUAL_SEEDS[rate]
    share, looks = harmless(EQUAL, traffic, runs, seed)
    promoted, middle = float(np.isfinite(looks).mean()), float(np.median(looks))
    where = f"steps, {rate}/s" if rate else "50 %, each request"
    table.add_row(
        where, f"{share:.2%}", f"{promoted:.1%}", f"{middle:.0f} s" if rate else f"{middle / 2:.0f} canary requests", str(runs), str(seed)
    )
    note = f"{runs} runs, seed {seed}, {GUARDS} guards"
    yield Target(f"equal, {where}: rolled back", share, within(runs), at_most=True, note=note)
    yield Target(f"equal, {where}: ever promoted", promoted, 0.95, note=note)


def within(runs: int) -> float:
    """alpha and two standard errors."""
    return ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def bursts() -> Target:
    """An equal canary whose requests fail 16 at a time, through the server's own judge: 100 requests/s, a look each second."""
    plan = Plan("m", (Guard("errors", 0.01),), (50, 100), min_seconds=1e6)
    rolled = sum(_burst(plan, seed) for seed in track(range(BURST_RUNS), "bursts", transient=True))
    note = f"{BURST_RUNS} runs, seeds 0 to {BURST_RUNS - 1}, {BURST_SECONDS} s each"
    return Target(f"equal, errors in bursts of {BURST}: rolled back", rolled / BURST_RUNS, within(BURST_RUNS), at_most=True, note=note)


def _burst(plan: Plan, seed: int) -> bool:
    random, evidence = np.random.default_rng(seed), Evidence()
    for second in range(BURST_SECONDS):
        canary = int(random.binomial(100, 0.5))
        for arm, n in ((Arm.BASELINE, 100 - canary), (Arm.CANARY, canary)):
            failed = int(random.binomial(n // BURST, 0.05)) * BURST * UNIT
            evidence.count(EXPOSURES, 50, arm, Sums(n, failed, failed * UNIT), second)
        if judge(plan, Standing(0, 0.0), evidence, second + 1.0).action is Action.ROLL_BACK:
            return True
    return False


def through_the_engine() -> Iterator[Target]:
    """A canary that is its baseline, on one emulated T4 under bursts, at each share: a process each, where time is virtual."""
    runs = [
        (share, subprocess.Popen([sys.executable, "-m", "benchmarks.same_arms", f"{share:g}", str(AA_RUNS), "0"], stdout=subprocess.PIPE))
        for share in AA_SHARES
    ]
    for share, process in runs:
        output, _ = process.communicate()
        rolled = int(output) / AA_RUNS if process.returncode == 0 else math.nan
        note = f"{AA_RUNS} runs, seeds 0 to {AA_RUNS - 1}, the real engine, tally and judge, 0.7 of capacity in bursts"
        yield Target(f"A/A through the engine, {share:g} %: rolled back", rolled, within(AA_RUNS), at_most=True, note=note)


def outright() -> Iterator[Target]:
    """A canary that fails every request, at 20 requests/s: after how many it's gone, and when."""
    plan, evidence, now = Plan("m", (Guard("errors", 0.01),), (50, 100)), Evidence(), 0.0
    for number in range(1000):
        arm = (Arm.BASELINE, Arm.CANARY)[number % 2]
        now = number / 20
        evidence.add(EXPOSURES, 50.0, arm, float(arm is Arm.CANARY), now)
        if judge(plan, Standing(0, 0.0), evidence, now).action is Action.ROLL_BACK:
            break
    requests = evidence.total(EXPOSURES, Arm.CANARY).n
    yield Target("fails every request: canary requests", requests, OUTRIGHT, at_most=True, note="the server's judge, 20 requests/s")
    yield Target("fails every request: seconds", now, 2.0, at_most=True, note="the server's judge, 20 requests/s")


def main() -> None:
    """Measure, show and write what was found."""
    console, report = Console(), Report("routing")
    if not console.is_terminal:
        console = Console(width=WIDTH)
    worse = Table("worse canary", "median, 50 %", "at most", f"alpha over {GUARDS}", "1 % first, 10/s", "1 % first, 1,000/s", "seed")
    same = Table("equal canary", "rolled back", "ever promoted", "median until then", "runs", "seed")
    report.targets += [*costs(), *looks(), *outright()]
    for one in track(BAD, "bad canaries", console=console, transient=True):
        report.targets += bad(one, worse)
    for rate in track(EQUAL_SEEDS, "equal canaries", console=console, transient=True):
        report.targets += equal(rate, same)
    report.targets.append(bursts())
    report.targets += through_the_engine()
    console.print(worse, same)
    report.show(console)
    console.print(f"written to {report.write()}")


if __name__ == "__main__":
    main()
