"""A manifest as people read it: one row a variant."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from server.repository.manifest import Manifest, Variant


def manifest_table(manifest: Manifest) -> Table:
    """Size, nodes, measured latency and parity of each variant."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    rows = sorted({rows for variant in manifest.variants if variant.latency for rows in variant.latency.seconds})
    for column in ("variant", "level", "size", "nodes", *(f"{count} row{'s' if count > 1 else ''}, ms" for count in rows)):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for column in ("differs by", "top-1 differs", "samples"):
        table.add_column(column, justify="right")
    for variant in manifest.variants:
        table.add_row(*_cells(variant, rows))
    return table


def _cells(variant: Variant, rows: list[int]) -> list[str]:
    seconds = variant.latency.seconds if variant.latency else {}
    parity = variant.parity
    return [
        f"{variant.precision} {variant.backend}",
        str(variant.optimization_level),
        decimal(variant.size),
        " → ".join(str(count) for count in variant.nodes.values()),
        *(f"{seconds[count] * 1e3:.3f}" if count in seconds else "-" for count in rows),
        f"{parity.max_abs:.1e}",
        _top1(parity.top1_disagreement, parity.top1_upper95),
        str(parity.samples),
    ]


def _top1(share: float | None, upper: float | None) -> str:
    return "-" if share is None or upper is None else f"{share:.1%} (≤ {upper:.1%})"
