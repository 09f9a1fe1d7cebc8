"""Other servers on the same work, side by side on this machine: `python -m benchmarks.peers`, `make bench-peers`. About forty minutes.

Each peer runs in a virtual environment of its own (build/peers), at each of the settings that a workload names; its best counts. Answers
are checked first against onnxruntime. Rounds go over all servers, so that a slow spell hits all; figures are medians. The client has the
same two cores. `--peers`, `--workloads` and `--rounds` choose less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.command import run
from benchmarks.harness import BenchError, Report
from benchmarks.peers_judged import judge, show
from benchmarks.peers_measured import Cells, measure_round
from benchmarks.peers_run import make_venvs, model_files
from examples.console import heading, step
from examples.prepare import prepare
from loadtests.peers.adapters import PEERS
from loadtests.peers.workloads import WORKLOADS

ROUNDS = 2


def measure(report: Report, console: Console, peers: Sequence[str], workloads: Sequence[str], rounds: int) -> None:
    """Fill the report."""
    heading(console, "The servers")
    ready = make_venvs([PEERS[name] for name in peers], console)
    heading(console, "The models")
    files = model_files(prepare(console))
    heading(console, "Measurements")
    cells = Cells()
    for number in range(rounds):
        for name in workloads:
            with step(console, f"{name}, round {number + 1} of {rounds}"):
                measure_round(cells, WORKLOADS[name], ready, files[name], reverse=number % 2 == 1)
    report.details |= cells.as_details()
    judge(report, cells)
    show(console, cells, workloads)


def _chosen(said: str, known: Sequence[str]) -> list[str]:
    names = said.split(",") if said else list(known)
    if unknown := [name for name in names if name not in known]:
        raise BenchError(f"unknown: {', '.join(unknown)}; expected of {', '.join(known)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="", help="names, by commas; default all")
    parser.add_argument("--workloads", default="", help="names, by commas; default all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    said = parser.parse_args()
    sys.exit(
        run("peers", lambda report, console: measure(
            report, console, _chosen(said.peers, list(PEERS)), _chosen(said.workloads, list(WORKLOADS)), said.rounds
        ))
    )  # fmt: skip
