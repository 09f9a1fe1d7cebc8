"""`make bench-routing`: what choosing a version costs a request."""

from __future__ import annotations

import timeit
from collections.abc import Iterator

from rich.console import Console

from benchmarks.harness import Report, Target
from server.router.rules import choose, split

CALLS, REPEATS = 50_000, 9
WIDTH = 150  # columns of what goes into a file


def costs() -> Iterator[Target]:
    """Microseconds of one choice between two versions, the best of several runs."""
    rules, ready = split("bench", {"1": 95, "2": 5}), frozenset("12")
    for name, key, most in (("weights", "", 1.5), ("sticky", "user-1234567890", 3.0)):
        seconds = timeit.repeat(lambda key=key: choose(rules, ready, "2", key, 0.3), number=CALLS, repeat=REPEATS)  # type: ignore[misc]
        yield Target(f"µs a choice by {name}", min(seconds) / CALLS * 1e6, most, at_most=True, note=f"best of {REPEATS} × {CALLS}")


def main() -> None:
    """Measure, show and write what was found."""
    console, report = Console(), Report("routing")
    if not console.is_terminal:
        console = Console(width=WIDTH)
    report.targets += costs()
    report.show(console)
    console.print(f"written to {report.write()}")


if __name__ == "__main__":
    main()
