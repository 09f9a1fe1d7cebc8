"""What evidence keeps up to date for the judge is what goes through every cell would find, to the last bit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.router.evidence import BLOCK, MOST_BLOCKS, NOTHING, UNIT, Arm, Cell, Evidence, Sums, add_up, as_rows, from_rows
from server.router.experiment import design_effect

Strata: TypeAlias = Mapping[float, Mapping[int, tuple[Sums, Sums]]]
Seen: TypeAlias = tuple[str, float, Arm, float, float]

SEEN = st.tuples(
    st.sampled_from(["errors", "latency"]),
    st.sampled_from([1.0, 5.0, 50.0]),
    st.sampled_from(list(Arm)),
    st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1),
    st.integers(0, 30).map(float) | st.integers(0, 8 * MOST_BLOCKS).map(float),
)


class Plain:
    """Evidence as it was first written: a sum a cell, and all cells gone through for each question."""

    def __init__(self) -> None:
        self.cells: dict[Cell, Sums] = {}
        self.width = 1

    def add(self, metric: str, stratum: float, arm: Arm, value: float, now: float) -> None:
        units = round(min(max(value, 0.0), 1.0) * UNIT) if value == value else UNIT
        self._put(Cell(metric, stratum, int(now // (BLOCK * self.width)), arm), Sums(1, units, units * units))
        while self._most() > MOST_BLOCKS:
            cells, self.cells, self.width = self.cells, {}, 2 * self.width
            for cell, sums in cells.items():
                self._put(cell._replace(block=cell.block // 2), sums)

    def strata(self, metric: str) -> Strata:
        found: dict[float, dict[int, tuple[Sums, Sums]]] = defaultdict(dict)
        for cell in sorted(cell for cell in self.cells if cell.metric == metric):
            base, canary = found[cell.stratum].get(cell.block, (NOTHING, NOTHING))
            sums = self.cells[cell]
            found[cell.stratum][cell.block] = (sums, canary) if cell.arm is Arm.BASELINE else (base, sums)
        return found

    def total(self, metric: str, arm: Arm, since: float) -> Sums:
        first = int(since // (BLOCK * self.width))
        return add_up(sums for cell, sums in self.cells.items() if cell.metric == metric and cell.arm is arm and cell.block >= first)

    def _put(self, cell: Cell, sums: Sums) -> None:
        self.cells[cell] = self.cells.get(cell, NOTHING).plus(sums)

    def _most(self) -> int:
        spans: dict[tuple[str, float], set[int]] = defaultdict(set)
        for cell in self.cells:
            spans[cell.metric, cell.stratum].add(cell.block)
        return max(len(blocks) for blocks in spans.values())


def plain_design_effect(strata: Strata) -> float:
    """The design effect as it was first written: block after block."""
    scatter = independent = 0.0
    for percent, blocks in strata.items():
        share, count = percent / 100, len(blocks)
        baseline, canary = (add_up(pair[arm] for pair in blocks.values()) for arm in (0, 1))
        if count < 2:
            continue
        residues = (
            (1 - share) * (ours.sum - ours.n * canary.mean) - share * (theirs.sum - theirs.n * baseline.mean)
            for theirs, ours in blocks.values()
        )
        scatter += math.fsum(residue * residue for residue in residues) * count / (count - 1)
        independent += (1 - share) ** 2 * canary.n * canary.variance + share**2 * baseline.n * baseline.variance
    return max(1.0, scatter / independent) if independent else 1.0


def both(seen: Iterable[Seen], looked_at: bool) -> tuple[Plain, Evidence]:
    """Counted both ways; `looked_at` after each, so that nothing hides in what is kept up to date."""
    plain, kept = Plain(), Evidence()
    for one in seen:
        plain.add(*one)
        kept.add(*one)
        if looked_at:
            design_effect(kept.strata(one[0]))
    return plain, kept


def same(plain: Plain, kept: Evidence, since: float) -> None:
    """Both say the same of everything that the judge asks."""
    assert (kept.width, kept.cells) == (plain.width, plain.cells)
    for metric in ("errors", "latency"):
        assert {share: dict(one.items()) for share, one in kept.strata(metric).items()} == plain.strata(metric)
        assert [list(one) for one in kept.strata(metric).values()] == [list(one) for one in plain.strata(metric).values()]
        assert design_effect(kept.strata(metric)) == plain_design_effect(plain.strata(metric))
        for arm in Arm:
            assert kept.total(metric, arm) == plain.total(metric, arm, 0.0)
            assert kept.total(metric, arm, since) == plain.total(metric, arm, since)


@given(st.lists(SEEN, min_size=1, max_size=60), st.booleans(), st.integers(0, 60).map(float))
def test_it_is_what_all_cells_say(seen: list[Seen], looked_at: bool, since: float) -> None:
    same(*both(seen, looked_at), since)


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(0, 3 * MOST_BLOCKS, 2)), st.integers(0, 3 * MOST_BLOCKS).map(float))
def test_also_where_blocks_are_put_together(times: list[int], since: float) -> None:
    same(*both([("errors", 5.0, list(Arm)[at % 4 // 2], float(at % 3 == 0), float(at)) for at in times], looked_at=True), since)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1), max_size=20), st.integers(0, 5))
def test_many_values_at_once_are_each_of_them(values: list[float], happened: int) -> None:
    one, many = Evidence(), Evidence()
    for value in values:
        one.add("latency", 5.0, Arm.CANARY, value, 3.0)
    many.count("latency", 5.0, Arm.CANARY, Sums.of(values), 3.0)
    assert one == many
    assert Sums.of_events(5, happened) == Sums.of([1.0] * happened + [0.0] * (5 - happened))


@given(st.lists(SEEN, max_size=30), st.lists(SEEN, max_size=30))
def test_merging_in_place_is_merging(first: list[Seen], second: list[Seen]) -> None:
    (_, one), (_, other) = both(first, looked_at=True), both(second, looked_at=True)
    whole = one.merged(other)
    one.merge(other)
    assert one == whole == from_rows([list(row) for row in as_rows(one)], one.width)


@pytest.mark.parametrize(
    ("row", "width"),
    [
        (("errors", 5.0, 1, "other", 1, 0, 0), 1),
        (("errors", 5.0, 1, "canary", 0, 0, 0), 1),
        (("errors", 5.0, 1, "canary", 1, 2 * UNIT, 0), 1),
        (("errors", 5.0, 1, "canary", 1, 1, 2 * UNIT), 1),
        (("errors", 5.0, 1, "canary", 1), 1),
        (("errors", 5.0, 1.5, "canary", 1, 0, 0), 1),
        (("errors", 5.0, 1, "canary", 1, 0, 0), 3),
        (("errors", 5.0, 1, "canary", 1, 0, 0), 0),
    ],
)
def test_rows_that_no_evidence_gave_are_refused(row: tuple[object, ...], width: int) -> None:
    with pytest.raises(ValueError, match=r"expected|not a valid Arm"):
        from_rows([row], width)
