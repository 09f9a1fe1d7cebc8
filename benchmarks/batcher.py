"""`make bench-batcher`: the real queue, batcher and cost model under simulated time, against other policies and the exact offline optimum.

Nothing here runs on a GPU: service times are a fit to NVIDIA's published T4 latencies. The cost model isn't told the fit: it starts from
warm-up points that are 5 % off and learns in the run; the other policies are told.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import scheduler
from benchmarks.batcher_grid import LAWS, REQUESTS, Case, grid, optimum
from benchmarks.batcher_policies import POLICIES, Outcome, play
from benchmarks.harness import Report, Target

OURS = "tidegate"
WIDTH = 150  # columns of what goes into a file
OTHERS = tuple(name for name in POLICIES if name != OURS)
Cell: TypeAlias = tuple[str, str, float]


@dataclass(frozen=True, slots=True)
class Played:
    """A trace under every policy, and the most that could be answered in time."""

    case: Case
    best: int
    outcomes: Mapping[str, Outcome]

    def ratio(self, policy: str) -> float:
        return self.outcomes[policy].good / self.best


def played(case: Case) -> Played:
    """Play one trace."""
    arrivals = case.arrivals()
    outcomes = {name: play(case, arrivals, make(case)) for name, make in POLICIES.items()}
    dropped = REQUESTS - max(outcome.good for outcome in outcomes.values())
    return Played(case, optimum(arrivals, case.model, dropped), outcomes)


def main() -> None:
    """Play the grid, measure the scheduler, show and write what was found."""
    console, report = Console(), Report("batcher")
    if not console.is_terminal:
        console = Console(width=WIDTH)
    found = [played(case) for case in track(list(grid()), "playing the grid", console=console, transient=True)]
    cells = _by_cell(found)
    console.print(_table(cells))
    report.details["cells"] = [_detail(cell, several) for cell, several in cells.items()]
    report.targets += [*_targets(cells, found), *scheduler.measure()]
    report.show(console)
    console.print(f"written to {report.write()}")


def _by_cell(found: Sequence[Played]) -> dict[Cell, list[Played]]:
    cells: dict[Cell, list[Played]] = defaultdict(list)
    for one in found:
        cells[one.case.cell].append(one)
    return cells


def _ratios(cells: Mapping[Cell, Sequence[Played]], policy: str) -> dict[Cell, float]:
    return {cell: statistics.mean(one.ratio(policy) for one in several) for cell, several in cells.items()}


def _targets(cells: Mapping[Cell, Sequence[Played]], found: Sequence[Played]) -> Iterator[Target]:
    ours = _ratios(cells, OURS)
    others = {name: _ratios(cells, name) for name in OTHERS}
    worst = min(ours, key=lambda cell: ours[cell])
    yield Target("worst cell / optimum", ours[worst], 0.94, note=f"goal 0.957; {_name(worst)}")
    yield Target("mean of all cells / optimum", statistics.mean(ours.values()), 0.97, note="goal 0.98")
    late = sum(one.outcomes[OURS].late for one in found)
    yield Target("late answers, % of all", 100 * late / (REQUESTS * len(found)), 0.1, at_most=True, note=f"{late} requests")
    gaps = {(name, cell): ratio - ours[cell] for name, ratios in others.items() for cell, ratio in ratios.items()}
    name, cell = max(gaps, key=lambda key: gaps[key])
    yield Target("furthest behind another policy in a cell", gaps[name, cell], 0.015, at_most=True, note=f"{name}, {_name(cell)}")
    for law in LAWS:
        means = {name: _mean_of_law(ratios, law) for name, ratios in {OURS: ours, **others}.items()}
        note = "goal; " + ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        yield Target(f"ahead of window early drop: {law}", means[OURS] - means["window"], 0.0, note=note)


def _mean_of_law(ratios: Mapping[Cell, float], law: str) -> float:
    return statistics.mean(ratio for cell, ratio in ratios.items() if cell[1] == law)


def _table(cells: Mapping[Cell, Sequence[Played]]) -> Table:
    """A row a cell: our own figures, then every policy's ratio to the optimum."""
    table = Table(title="goodput against the exact offline optimum, mean of the seeds", title_justify="left")
    for column in ("model", "arrivals", "load", "goodput", "p50 ms", "p99 ms", "rows", "dropped", "late", *POLICIES):
        table.add_column(column, justify="left" if column in ("model", "arrivals") else "right")
    for cell, several in cells.items():
        figures = _figures(several)
        ratios = [f"{statistics.mean(one.ratio(name) for one in several):.3f}" for name in POLICIES]
        table.add_row(
            cell[0],
            cell[1],
            f"{cell[2]:g}",
            f"{figures['goodput']:.3f}",
            f"{figures['p50_ms']:.1f}",
            f"{figures['p99_ms']:.1f}",
            f"{figures['rows']:.1f}",
            f"{figures['dropped']:.1%}",
            f"{figures['late']:.2%}",
            *ratios,
        )
    return table


def _figures(several: Sequence[Played], policy: str = OURS) -> dict[str, float]:
    outcomes = [one.outcomes[policy] for one in several]
    return {
        "goodput": statistics.mean(outcome.good for outcome in outcomes) / REQUESTS,
        "p50_ms": 1e3 * statistics.mean(outcome.percentile(50) for outcome in outcomes),
        "p99_ms": 1e3 * statistics.mean(outcome.percentile(99) for outcome in outcomes),
        "rows": statistics.mean(statistics.mean(outcome.runs) for outcome in outcomes),
        "dropped": statistics.mean(outcome.dropped for outcome in outcomes) / REQUESTS,
        "late": statistics.mean(outcome.late for outcome in outcomes) / REQUESTS,
    }


def _detail(cell: Cell, several: Sequence[Played]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    for one in several:
        reasons.update(one.outcomes[OURS].reasons)
    return {
        "model": cell[0],
        "arrivals": cell[1],
        "load": cell[2],
        "optimum": [one.best for one in several],
        "policies": {name: {"ratio": statistics.mean(one.ratio(name) for one in several), **_figures(several, name)} for name in POLICIES},
        "close_reasons": dict(reasons),
    }


def _name(cell: Cell) -> str:
    return f"{cell[0]}, {cell[1]}, load {cell[2]:g}"


if __name__ == "__main__":
    main()
