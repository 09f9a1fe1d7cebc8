"""Every level and precision of the demo's models, exported and proved: `make parity-matrix`. A cell is what the manifest says of it.

Exit status 0 when every cell could be made: five levels in three precisions each. Names of models measure those alone
(`python -m benchmarks.parity_matrix digits`). The figures are in build/bench.
"""

from __future__ import annotations

import shutil
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.command import run
from benchmarks.export_models import WORK, digits_flags, example, export, minilm_flags, weights
from benchmarks.harness import BenchError, Report
from examples.console import step

LEVELS = (0, 1, 2, 3, 4)
PRECISIONS = "fp32,fp16,int8"


def measure(report: Report, console: Console) -> None:
    """Fill the report's details, and show them as a table."""
    shutil.rmtree(WORK, ignore_errors=True)
    folder = weights(console)
    table = Table("model", "asked for", "level kept", "precision", "size", "nodes", "differs by", "mean cosine", "method")
    failed: list[str] = []
    flags = {"digits": digits_flags(), "minilm": minilm_flags(folder), "mobilenet_v2": ()}
    asked = sys.argv[1:] or list(flags)
    for name in asked:
        for level in LEVELS:
            with step(console, f"{name} at level {level}"):
                failed += _cell(report, table, name, level, flags[name])
    console.print(table)
    if failed:
        raise BenchError(f"{len(failed)} of {len(LEVELS) * len(asked)} exports failed: {'; '.join(failed)}")


def _cell(report: Report, table: Table, name: str, level: int, flags: tuple[str, ...]) -> list[str]:
    """Export one model at one level, its precisions too; what failed."""
    try:
        made = export(f"{name}_{level}", example(name), "--optimization-level", str(level), "--precisions", PRECISIONS, *flags)
    except BenchError as error:
        return [str(error)]
    for variant in made.manifest.variants:
        parity = variant.parity
        nodes, cosine = list(variant.nodes.values())[-1], parity.cosine_mean or 0.0
        row = (name, str(level), str(variant.optimization_level), variant.precision, f"{variant.size:,}", str(nodes))
        table.add_row(*row, f"{parity.max_abs:.1e}", f"{cosine:.5f}", (variant.method or "")[:40])
        report.details[f"{name} level {level} {variant.precision}"] = variant.model_dump(
            mode="json", include={"size", "nodes", "parity", "method"}
        )
    return []


if __name__ == "__main__":
    sys.exit(run("parity_matrix", measure))
