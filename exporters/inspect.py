"""A manifest as people read it: one row a variant, narrow enough for a terminal of 80 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from server.repository.manifest import Manifest, Variant


def manifest_table(manifest: Manifest) -> Table:
    """Size, nodes, measured latency and parity of each variant."""
    rows = sorted({rows for variant in manifest.variants if variant.latency for rows in variant.latency.seconds})
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("variant")
    latency = f"ms at\n{'/'.join(map(str, rows))} row{'s' if rows != [1] else ''}" if rows else "ms"
    for column in ("level", "size", "nodes", latency, "differs\nby", "top-1\ndiffers"):
        table.add_column(column, justify="right")
    for variant in manifest.variants:
        table.add_row(*_cells(variant, rows))
    return table


def _cells(variant: Variant, rows: list[int]) -> list[str]:
    seconds = variant.latency.seconds if variant.latency else {}
    parity = variant.parity
    return [
        variant.precision,
        str(variant.optimization_level),
        decimal(variant.size),
        " → ".join(str(count) for count in variant.nodes.values()),
        " ".join(_milliseconds(seconds[count]) if count in seconds else "-" for count in rows),
        f"{parity.max_abs:.1e}",
        _top1(parity.top1_disagreement, parity.top1_upper95),
    ]


def _milliseconds(seconds: float) -> str:
    """To three digits, and never finer than a microsecond."""
    ms = seconds * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _top1(share: float | None, upper: float | None) -> str:
    return "-" if share is None or upper is None else f"{share:.1%} ≤ {upper:.1%}"
