"""The lanes' targets, as ratios measured in one run: `python -m benchmarks.lanes`, `make bench-lanes`. About five minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/lanes.json.
"""

from __future__ import annotations

import sys

import uvloop
from rich.console import Console

from benchmarks import lane_loads, lane_server
from benchmarks.command import run
from benchmarks.harness import BUILD, Report
from examples.console import heading, step
from examples.prepare import prepare
from server.app import SWITCH_INTERVAL


def measure(report: Report, console: Console) -> None:
    """Fill the report."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    heading(console, "The models")
    models = prepare(console)
    heading(console, "Measurements")
    with step(console, "a process lane against a thread lane"):
        load_seconds = uvloop.run(lane_loads.process_against_thread(report, models))
    for title, beside in (
        ("a quiet model beside one that saturates", lane_loads.beside_a_neighbour),
        ("a serving model while another loads", lane_loads.beside_loads),
        ("lanes over a saturated loop", lane_loads.over_a_busy_loop),
    ):
        with step(console, title):
            uvloop.run(beside(report, models))
    with lane_server.server(lane_server.repository(BUILD / "lanes-repository", models)) as running:
        with step(console, "kill -9 of a process lane under load"):
            lane_server.killed_under_load(report, running, load_seconds)
        with step(console, "a poison request in a thousand"):
            lane_server.poisoned(report, running)


if __name__ == "__main__":
    sys.exit(run("lanes", measure))
