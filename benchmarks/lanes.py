"""The lanes' targets, as ratios measured in one run: `python -m benchmarks.lanes`, `make bench-lanes`. About five minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/lanes.json.
"""

from __future__ import annotations

import sys

import uvloop

from benchmarks import lane_loads, lane_server
from benchmarks.harness import BUILD, BenchError, Report, loadgen
from examples.console import heading, make_console, step
from examples.fetch import FetchError
from examples.prepare import PrepareError, prepare
from examples.serving import ServerError
from server.app import SWITCH_INTERVAL


def main() -> int:
    """The command. Its exit status."""
    console = make_console()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        loadgen()
        heading(console, "The models")
        models = prepare(console)
        heading(console, "Measurements")
        report = Report("lanes")
        with step(console, "a process lane against a thread lane"):
            load_seconds = uvloop.run(lane_loads.process_against_thread(report, models))
        for title, measure in (
            ("a quiet model beside one that saturates", lane_loads.beside_a_neighbour),
            ("a serving model while another loads", lane_loads.beside_loads),
            ("lanes over a saturated loop", lane_loads.over_a_busy_loop),
        ):
            with step(console, title):
                uvloop.run(measure(report, models))
        with lane_server.server(lane_server.repository(BUILD / "lanes-repository", models)) as running:
            with step(console, "kill -9 of a process lane under load"):
                lane_server.killed_under_load(report, running, load_seconds)
            with step(console, "a poison request in a thousand"):
                lane_server.poisoned(report, running)
    except (BenchError, PrepareError, FetchError, ServerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print()
    report.show(console)
    console.print(f"all measurements: {report.write().relative_to(BUILD.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
