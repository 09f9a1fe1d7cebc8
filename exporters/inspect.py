"""A manifest as people read it: one row a variant, narrow enough for a terminal of 80 columns."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from exporters.optimize.choose import speed_up
from server.repository.manifest import Manifest, Parity, Variant


def manifest_table(manifest: Manifest) -> Table:
    """Size, nodes, measured latency and parity of each variant; of several their speed against the first, of other
    precisions than FP32 their cosine.
    """
    variants = manifest.variants
    rows = sorted({rows for variant in variants if variant.latency for rows in variant.latency.seconds})
    latency = f"ms at\n{'/'.join(map(str, rows))} row{'s' if rows != [1] else ''}" if rows else "ms"
    several = len(variants) > 1
    inexact = any(variant.precision != "fp32" for variant in variants)
    columns = (
        *(("level", _level), ("size", lambda variant: decimal(variant.size)), ("nodes", _last_nodes if inexact else _nodes)),
        (latency, lambda variant: _latency(variant, rows)),
        *((("speed", lambda variant: _speed(variants[0], variant)),) if several else ()),
        ("differs\nby", lambda variant: f"{variant.parity.max_abs:.1e}"),
        *((("mean\ncosine", lambda variant: _cosine(variant.parity.cosine_mean)),) if inexact else ()),
        ("top-1\ndiffers", lambda variant: _top1(variant.parity, inexact)),
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("variant")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for variant in variants:
        table.add_row(f"{variant.precision} engine" if variant.engine else variant.precision, *(cell(variant) for _, cell in columns))
    return table


def _level(variant: Variant) -> str:
    return str(variant.optimization_level)


def _nodes(variant: Variant) -> str:
    return " → ".join(str(count) for count in variant.nodes.values())


def _last_nodes(variant: Variant) -> str:
    return str(list(variant.nodes.values())[-1])


def _latency(variant: Variant, rows: list[int]) -> str:
    seconds = variant.latency.seconds if variant.latency else {}
    return " ".join(_milliseconds(seconds[count]) if count in seconds else "-" for count in rows)


def _speed(first: Variant, variant: Variant) -> str:
    return f"{speed_up(first.latency.seconds, variant.latency.seconds):.2f}×" if first.latency and variant.latency else "-"


def _cosine(cosine: float | None) -> str:
    """Rounded down, so that only what is 1 but for FP32's rounding is called 1."""
    return "-" if cosine is None else f"{math.floor((cosine + 1e-6) * 1e4) / 1e4:.4f}"


def _milliseconds(seconds: float) -> str:
    """To three digits, and never finer than a microsecond."""
    ms = seconds * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _top1(parity: Parity, brief: bool) -> str:
    if parity.top1_disagreement is None or parity.top1_upper95 is None:
        return "-"
    return f"≤ {parity.top1_upper95:.1%}" if brief else f"{parity.top1_disagreement:.1%} ≤ {parity.top1_upper95:.1%}"
