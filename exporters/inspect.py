"""A manifest as people read it: one row a variant, narrow enough for a terminal of 80 columns."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from exporters.optimize.choose import speed_up
from exporters.parity.report import pruning_line
from server.repository.manifest import Engine, Manifest, Parity, Variant


def manifest_table(manifest: Manifest) -> Table:
    """Size, nodes, measured latency, memory and parity of each variant; of several their speed against the first, of other
    precisions than FP32 their cosine.
    """
    variants = manifest.variants
    rows = sorted({rows for variant in variants if variant.latency for rows in variant.latency.seconds})
    latency = f"ms at\n{'/'.join(map(str, rows))} row{'s' if rows != [1] else ''}" if rows else "ms"
    several = len(variants) > 1
    inexact = any(variant.precision != "fp32" for variant in variants)
    columns = (
        *(("level", _level), ("size", lambda variant: decimal(variant.bytes)), ("nodes", _last_nodes if inexact else _nodes)),
        (latency, lambda variant: _latency(variant, rows)),
        *((("peak\nmemory", _memory),) if any(variant.memory for variant in variants) else ()),
        *((("speed", lambda variant: _speed(variants[0], variant)),) if several else ()),
        ("differs\nby", lambda variant: f"{variant.parity.max_abs:.1e}"),
        *((("mean\ncosine", lambda variant: cosine(variant.parity.cosine_mean)),) if inexact else ()),
        ("top-1\ndiffers", lambda variant: _top1(variant.parity, inexact)),
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("variant")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for variant in variants:
        table.add_row(f"{variant.precision} engine" if variant.engine else variant.precision, *(cell(variant) for _, cell in columns))
    return table


def manifest_lines(manifest: Manifest) -> list[str]:
    """What the table has no room for: where the model came from, and how each variant was made and judged."""
    source = manifest.source
    hashes = [f"{what} {found[:12]}" for what, found in (("weights", source.weights_sha256), ("code", source.code_sha256)) if found]
    return [
        f"{manifest.model}: {source.factory} ({', '.join((source.kind, *hashes))}), {manifest.created}",
        f"made with {', '.join(f'{tool} {version}' for tool, version in manifest.tools.items())}",
        *([f"not batched: {manifest.unbatched}"] if manifest.unbatched else []),
        *([pruning_line(manifest.pruning)] if manifest.pruning else []),
        *(line for variant in manifest.variants for line in _variant_lines(variant)),
    ]


def _variant_lines(variant: Variant) -> list[str]:
    parity, rows, task = variant.parity, variant.calibration, variant.parity.task
    where = f"for {variant.target}, {variant.backend}, opset {variant.opset}"
    kept = f", {len(variant.kept_fp32)} nodes in FP32" if variant.kept_fp32 else ""
    lines = [f"{variant.precision}: {variant.method or 'made'}{kept}; {where}; {variant.file} {variant.sha256[:12]}"]
    if variant.data:
        lines.append(f"  its weights lie in {variant.data.file} {variant.data.sha256[:12]}, {decimal(variant.data.size)}")
    lines.append(
        f"  proved on {parity.samples} rows against {parity.reference}, by {parity.runtime or 'unknown'} on {parity.device or 'unknown'}"
    )
    if variant.engine:
        lines += _engine_lines(variant.engine)
    if variant.unproven:
        lines.append(f"  unproven on a GPU: {variant.target}'s own kernels may answer otherwise")
    if held := variant.memory:
        lines.append(
            f"  {decimal(held.peak)} at most in a process that serves {held.rows} rows, {decimal(held.bare)} before it opened the file"
        )
    if rows:
        lines.append(f"  calibrated on {rows.rows} rows ({rows.origin}), chosen by {rows.chosen_by} others")
    if task:
        lines.append(f"  {task.metric} {task.value:.4f} on {task.rows} labelled rows, {task.reference:.4f} in FP32")
    return lines


def _engine_lines(engine: Engine) -> list[str]:
    """Where an engine runs, and the rows that each of its profiles takes."""
    where = f"  for compute capability {engine.compute_capability}, built on {engine.gpu} in {engine.build_seconds:g} s"
    version = f"TensorRT {engine.tensorrt}{' and later' if engine.version_compatible else ' alone'}, a driver for CUDA {engine.driver}"
    spans = [[bounds.least[0], bounds.greatest[0]] for profile in engine.profiles for bounds in list(profile.values())[:1] if bounds.least]
    rows = ", ".join(f"{least} to {most}" for least, most in spans)
    return [f"{where}; {version}", f"  takes {rows} rows, at builder level {engine.builder_level}, from ONNX {engine.onnx_sha256[:12]}"]


def _memory(variant: Variant) -> str:
    return decimal(variant.memory.peak) if variant.memory else "-"


def _level(variant: Variant) -> str:
    return str(variant.optimization_level)


def _nodes(variant: Variant) -> str:
    return " → ".join(str(count) for count in variant.nodes.values())


def _last_nodes(variant: Variant) -> str:
    return str(list(variant.nodes.values())[-1])


def _latency(variant: Variant, rows: list[int]) -> str:
    seconds = variant.latency.seconds if variant.latency else {}
    return " ".join(milliseconds(seconds[count]) if count in seconds else "-" for count in rows)


def _speed(first: Variant, variant: Variant) -> str:
    return f"{speed_up(first.latency.seconds, variant.latency.seconds):.2f}×" if first.latency and variant.latency else "-"


def cosine(found: float | None) -> str:
    """Rounded down, so that only what is 1 but for FP32's rounding is called 1."""
    return "-" if found is None else f"{math.floor((found + 1e-6) * 1e4) / 1e4:.4f}"


def milliseconds(seconds: float) -> str:
    """To three digits, and never finer than a microsecond."""
    ms = seconds * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _top1(parity: Parity, brief: bool) -> str:
    if parity.top1_disagreement is None or parity.top1_upper95 is None:
        return "-"
    return f"≤ {parity.top1_upper95:.1%}" if brief else f"{parity.top1_disagreement:.1%} ≤ {parity.top1_upper95:.1%}"
