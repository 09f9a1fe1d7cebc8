"""What two entries differ in: where they came from, and each variant's file, graph, proof and speed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from exporters.inspect import cosine, milliseconds
from server.repository.manifest import Manifest, TensorEntry, Variant


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs, in words; `measured` where it's a time or memory, which never comes out the same twice."""

    what: str
    a: str
    b: str
    measured: bool = False


def differences(a: Manifest, b: Manifest) -> list[Difference]:
    """All of them, the whole's first, then by variant; the date isn't one."""
    return [found for found in _all(a, b) if found.a != found.b]


def difference_table(found: list[Difference]) -> Table:
    """One row each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("", "A", "B"):
        table.add_column(title, overflow="fold")
    for part in found:
        table.add_row(part.what, part.a, part.b)
    return table


def _all(a: Manifest, b: Manifest) -> Iterator[Difference]:
    yield Difference("model", a.model, b.model)
    for key in type(a.source).model_fields:
        yield Difference(f"source {key}", _short(getattr(a.source, key)), _short(getattr(b.source, key)))
    for tool in sorted({*a.tools, *b.tools}):
        yield Difference(f"tool {tool}", a.tools.get(tool, "-"), b.tools.get(tool, "-"))
    yield Difference("unbatched", a.unbatched or "-", b.unbatched or "-")
    one, other = ({_name(variant): variant for variant in manifest.variants} for manifest in (a, b))
    for name in dict.fromkeys((*one, *other)):
        yield from _variant(name, one.get(name), other.get(name))


def _name(variant: Variant) -> str:
    return f"{variant.precision} engine" if variant.engine else variant.precision


def _variant(name: str, a: Variant | None, b: Variant | None) -> Iterator[Difference]:
    if a is None or b is None:
        yield Difference(name, "there" if a else "-", "there" if b else "-")
        return
    one, other = _figures(a), _figures(b)
    for what in one:
        yield Difference(f"{name} {what}", one[what], other[what])
    yield Difference(f"{name} peak memory", _peak(a), _peak(b), measured=True)
    for rows in sorted({*_seconds(a), *_seconds(b)}):
        times = [milliseconds(found[rows]) if rows in found else "-" for found in (_seconds(a), _seconds(b))]
        yield Difference(f"{name} ms at {rows} rows", times[0], times[1], measured=True)


def _figures(variant: Variant) -> dict[str, str]:
    parity = variant.parity
    return {
        "file": _short(variant.sha256),
        "weights beside it": _short(variant.data.sha256 if variant.data else None),
        "size": f"{variant.bytes:,} bytes",
        "backend": variant.backend,
        "target": variant.target,
        "opset": str(variant.opset),
        "level": str(variant.optimization_level),
        "method": variant.method or "-",
        "nodes": str(list(variant.nodes.values())[-1]),
        "kept in FP32": str(len(variant.kept_fp32)),
        "calibration": _short(variant.calibration.sha256 if variant.calibration else None),
        "inputs": _tensors(variant.inputs),
        "outputs": _tensors(variant.outputs),
        "differs by": f"{parity.max_abs:.1e}",
        "mean cosine": cosine(parity.cosine_mean),
        "top-1 differs": "-" if parity.top1_disagreement is None else f"{parity.top1_disagreement:.1%}",
        "task": "-" if parity.task is None else f"{parity.task.metric} {parity.task.value:.4f}",
    }


def _tensors(entries: tuple[TensorEntry, ...]) -> str:
    return ", ".join(f"{entry.name} {entry.datatype} {list(entry.shape)}" for entry in entries)


def _peak(variant: Variant) -> str:
    return decimal(variant.memory.peak) if variant.memory else "-"


def _seconds(variant: Variant) -> dict[int, float]:
    return variant.latency.seconds if variant.latency else {}


def _short(text: str | None) -> str:
    """Enough of a hash to tell two apart."""
    return "-" if text is None else text[:12] if len(text) == 64 else text
