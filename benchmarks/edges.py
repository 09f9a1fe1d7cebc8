"""The edges' targets, as ratios measured in one run: `python -m benchmarks.edges`, `make bench-edges`. About three minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/edges.json.
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.command import run
from benchmarks.grpc_unary import beside_http, compare_unary
from benchmarks.harness import BUILD, Report, python_server, tidegate
from benchmarks.images import as_json, in_the_body
from benchmarks.models import edges_repository
from examples.console import heading, step


def measure(report: Report, console: Console) -> str:
    """Fill the report."""
    heading(console, "Measurements")
    repository = edges_repository(BUILD / "edges-repository")
    with tidegate(repository, "edges-tidegate", "--allow", "shared-memory") as ours:
        with step(console, "unary gRPC, against an empty servicer"):
            compare_unary(report, ours)
        with step(console, "small HTTP requests beside gRPC"):
            beside = beside_http(report, ours)
        image = str(repository / "image" / "1" / "model.onnx")
        with step(console, "images of 600 KB, against a raw ASGI app"), python_server("benchmarks.raw_asgi", image, log="edges-raw") as raw:
            in_the_body(report, ours.ready["http"], raw.ready["http"])
        with step(console, "images as JSON, against the parsing alone"):
            as_json(report, ours.ready["http"])
    return beside


if __name__ == "__main__":
    sys.exit(run("edges", measure))
