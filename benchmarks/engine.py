"""The engine's targets: `python -m benchmarks.engine`, `make bench-engine`. About four minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/engine.json.
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.command import run
from benchmarks.emulated_t4 import emulated_repository, under_load
from benchmarks.harness import BUILD, Report, tidegate
from benchmarks.ragged_text import by_length, text_repository
from examples.console import heading, step
from examples.prepare import prepare


def measure(report: Report, console: Console) -> None:
    """Fill the report."""
    heading(console, "The models")
    models = prepare(console)
    heading(console, "Measurements")
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


if __name__ == "__main__":
    sys.exit(run("engine", measure))
