"""From measurements of all servers to the targets and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Report, Target
from benchmarks.peers_measured import CONNECTIONS, OURS, SHARES, Cell, Cells

MANY, MOST = CONNECTIONS[-1], SHARES[-1]


def judge(report: Report, cells: Cells) -> None:
    """Each target, met or not; what couldn't be measured is not met."""
    ours = OURS.name
    for name, over_mosec in (("identity", 1.3), ("mlp", 1.5)):
        mine = cells.best(name, ours, "v2-binary")
        triton, mosec = cells.best(name, "triton", "v2-binary"), cells.best(name, "mosec", "raw")
        _ratio(report, f"{name}: V2 binary at 32 connections / Triton's", _rate(mine), _rate(triton), 2.0)
        _ratio(report, f"{name}: V2 binary at 32 connections / Mosec's raw bytes", _rate(mine), _rate(mosec), over_mosec)
        latencies = (mine.p50() if mine else math.nan, triton.p50() if triton else math.nan)
        _ratio(report, f"{name}: p50 at one connection / Triton's", *latencies, 0.6, at_most=True)
    cached = _rate(cells.best("identity", "triton-cache"))
    report.details["identity / Triton's cache hits"] = _rate(cells.best("identity", ours, "v2-binary")) / cached
    best = max((_rate(cells.best("minilm", peer)) for peer in _peers(cells, "minilm")), default=math.nan)
    _ratio(report, "MiniLM, mixed lengths, at 32 connections / the best peer's", _rate(cells.best("minilm", ours)), best, 1.15)
    _ratio(report, "MiniLM: p99 at 0.85 of capacity / the lowest peer's", _late(cells, ours), _lowest_late(cells), 1.0, at_most=True)
    image = cells.best("mobilenet_v2", ours)
    peers = max((cells.best("mobilenet_v2", peer).best for peer in _peers(cells, "mobilenet_v2")), default=math.nan)  # type: ignore[union-attr]
    _ratio(report, "MobileNetV2 / the best peer's", image.best if image else math.nan, peers, 0.97)


def _peers(cells: Cells, workload: str) -> list[str]:
    return sorted({key[0] for key, _ in cells.of(workload)} - {OURS.name})


def _rate(cell: Cell | None) -> float:
    return cell.rate(MANY) if cell is not None else math.nan


def _late(cells: Cells, peer: str) -> float:
    """The lowest 99th percentile at 0.85 of its own capacity, over a peer's settings and bodies, ms."""
    found = [each.p99_ms for key, cell in cells.of("minilm") if key[0] == peer for each in cell.opened[MOST]]
    return min(found, default=math.nan)


def _lowest_late(cells: Cells) -> float:
    return min((_late(cells, peer) for peer in _peers(cells, "minilm")), default=math.nan)


def _ratio(report: Report, name: str, mine: float, theirs: float, must: float, *, at_most: bool = False) -> None:
    report.targets.append(Target(name, mine / theirs, must, at_most, f"{mine:,.4g} against {theirs:,.4g}"))


def show(console: Console, cells: Cells, workloads: Sequence[str]) -> None:
    """A table a workload: each peer's bodies at their best setting, the fastest first."""
    for workload in workloads:
        table = Table(title=workload, title_justify="left", box=None)
        heads = [f"{count} conn./s" for count in CONNECTIONS] + ["p50 at 1", "p99 at 32"]
        heads += [f"p99 at {share:g}" for share in SHARES] + ["CPU ms", "MiB"]
        for head in ("peer", "body", "setting"):
            table.add_column(head)
        for head in heads:
            table.add_column(head, justify="right")
        for key, cell in sorted(cells.of(workload), key=lambda item: -item[1].best):
            table.add_row(key[0], key[2], key[3], *_figures(cell))
        console.print(table)
    for key, cell in cells.all.items():
        if cell.why:
            console.print(f"{' '.join(key)}: {cell.why}", markup=False)


def _figures(cell: Cell) -> list[str]:
    rates = [f"{cell.rate(count):,.0f}" for count in CONNECTIONS]
    p99 = sorted(each.p99_ms for each in cell.closed[MANY])
    late = [sorted(each.p99_ms for each in cell.opened[share]) for share in SHARES]
    middle = [f"{each[len(each) // 2]:.1f}" if each else "-" for each in (p99, *late)]
    cpu = sorted(cell.cpu_ms)
    return [*rates, f"{cell.p50():.2f}", *middle, f"{cpu[len(cpu) // 2]:.3f}" if cpu else "-", f"{cell.memory / 2**20:,.0f}"]
