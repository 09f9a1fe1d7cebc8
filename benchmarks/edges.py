"""The edges' targets, as ratios measured in one run: `python -m benchmarks.edges`, `make bench-edges`. About a minute.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/edges.json.
"""

from __future__ import annotations

import sys

from benchmarks.grpc_unary import beside_http, compare_unary
from benchmarks.harness import BUILD, BenchError, Report, loadgen, tidegate
from benchmarks.models import front_repository
from examples.console import heading, make_console, step
from examples.serving import ServerError


def main() -> int:
    """The command. Its exit status."""
    console = make_console()
    try:
        loadgen()
        heading(console, "Measurements")
        report = Report("edges")
        with tidegate(front_repository(BUILD / "front-repository"), "edges-tidegate") as ours:
            with step(console, "unary gRPC, against an empty servicer"):
                compare_unary(report, ours)
            with step(console, "small HTTP requests beside gRPC"):
                beside = beside_http(report, ours)
    except (BenchError, ServerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print()
    report.show(console)
    console.print(beside)
    console.print(f"all measurements: {report.write().relative_to(BUILD.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
