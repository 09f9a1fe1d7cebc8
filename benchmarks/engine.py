"""The engine's targets: `python -m benchmarks.engine`, `make bench-engine`. About four minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/engine.json.
"""

from __future__ import annotations

import sys

from benchmarks.emulated_t4 import emulated_repository, under_load
from benchmarks.harness import BUILD, BenchError, Report, loadgen, tidegate
from benchmarks.ragged_text import by_length, text_repository
from examples.console import heading, make_console, step
from examples.fetch import FetchError
from examples.prepare import PrepareError, prepare
from examples.serving import ServerError


def main() -> int:
    """The command. Its exit status."""
    console = make_console()
    try:
        loadgen()
        heading(console, "The models")
        models = prepare(console)
        heading(console, "Measurements")
        report = Report("engine")
        with (
            step(console, "an emulated T4 by deadline, below and above its capacity"),
            tidegate(emulated_repository(BUILD / "engine-emulated"), "engine-emulated") as ours,
        ):
            under_load(report, ours.ready["http"])
        with (
            step(console, "MiniLM, texts of unlike length"),
            tidegate(text_repository(models, BUILD / "engine-text"), "engine-text") as ours,
        ):
            by_length(report, ours.ready["http"], models)
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
