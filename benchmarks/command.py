"""The frame of a benchmark that is a command: what can go wrong, the table, the report, the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console

from benchmarks.harness import BUILD, BenchError, Report, loadgen
from examples.console import make_console
from examples.fetch import FetchError
from examples.prepare import PrepareError
from examples.serving import ServerError


def run(name: str, measure: Callable[[Report, Console], str | None]) -> int:
    """Have `measure` fill the report called `name`, show it with the text that `measure` answers, and write it. The exit status: 0 when
    everything could be measured, whether the targets are met or not."""
    console, report = make_console(), Report(name)
    try:
        loadgen()
        more = measure(report, console)
    except (BenchError, PrepareError, FetchError, ServerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print()
    report.show(console)
    if more:
        console.print(more)
    console.print(f"all measurements: {report.write().relative_to(BUILD.parents[1])}")
    return 0
