"""The front's targets, as ratios measured in one run: `python -m benchmarks.front`, `make bench-front`. About three minutes.

Exit status 0 when everything could be measured, whether the targets are met or not; the figures are in build/bench/front.json.
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.command import run
from benchmarks.harness import BUILD, Report, python_server, tidegate
from benchmarks.models import front_repository
from benchmarks.real_models import against_onnxruntime, batched_equals_single
from benchmarks.small_requests import beside_large_json, compare_fronts
from examples.console import heading, step
from examples.prepare import prepare


def measure(report: Report, console: Console) -> None:
    """Fill the report."""
    heading(console, "The models")
    models = prepare(console)
    heading(console, "Measurements")
    repository = front_repository(BUILD / "front-repository")
    with tidegate(repository, "front-tidegate") as ours:
        identity = str(repository / "identity" / "1" / "model.onnx")
        with (
            step(console, "small requests, against a raw ASGI app"),
            python_server("benchmarks.raw_asgi", identity, log="front-raw") as raw,
        ):
            compare_fronts(report, ours.ready["http"], raw.ready["http"])
        with step(console, "small requests beside 16 MiB JSON posts"):
            beside_large_json(report, ours.ready["http"])
    with tidegate(models, "front-models") as ours:
        with step(console, "MobileNetV2, against onnxruntime alone"):
            against_onnxruntime(report, ours.ready["http"], models)
        with step(console, "batched answers against single ones"):
            batched_equals_single(report, ours.ready["http"], ours.ready["metrics"])


if __name__ == "__main__":
    sys.exit(run("front", measure))
