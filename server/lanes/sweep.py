"""How many lanes, of how many threads each: measured, because no rule holds (on 2 cores 2 x 1 thread runs MiniLM twice as fast as 1 x 2).

What may be tried and what wins are pure functions. The trial itself opens each candidate's sessions beside each other and lets its lanes
run at once, in turns, so that a slow spell of the machine hits all alike. It is bounded: large models are tried less, or not at all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import psutil

from server.backends.base import Backend
from server.lanes.run import timed_run
from server.lanes.warmup import WarmUp, made_up
from server.tensors import Tensor

BUDGET = 2.0  # seconds a model, opening the candidates' sessions included
SLICE = 0.08  # seconds that a candidate runs one size in one turn
TURNS = 3  # of which the best counts: the machine's other work only ever slows one down
LEAST_RUNS = 2  # a lane makes in its turn, however long they take
TINY = 200e-6  # seconds: all sizes under this are no work for several lanes
LONGEST = 0.06  # seconds: larger sizes aren't tried
LONGEST_ROW = 0.25  # seconds: a model whose single rows take longer isn't
WORTH_IT = 1.03  # times the rate: below this, more lanes aren't worth their memory and a lone request's longer run
MOST_LANES = 8
MEMORY_SHARE = 0.25  # of what is free, for the sessions that a sweep opens

OpenBackend: TypeAlias = Callable[[int], Backend]
"""A new backend with that many threads."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """`count` lanes of `threads` threads."""

    count: int
    threads: int

    def __str__(self) -> str:
        return f"{self.count} x {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve with: the open backends, one a lane, and why so many."""

    shape: Shape
    backends: tuple[Backend, ...]
    why: str


@dataclass(slots=True)
class _Candidate:
    shape: Shape
    backends: list[Backend]
    rates: dict[int, list[float]] = field(default_factory=dict)

    def best(self) -> dict[int, float]:
        return {rows: max(rates) for rows, rates in self.rates.items()}


def candidates(cores: int, count: int = 0, threads: int = 0) -> list[Shape]:
    """What may be tried on `cores` cores; `count` and `threads` are what the settings demand, 0 where they don't. The first is the
    one that is opened without a trial; then from most lanes to fewest."""
    if count:
        return [Shape(count, threads or max(1, cores // count))]
    if threads:
        most = min(MOST_LANES, max(1, cores // threads))
        return [Shape(1, threads), *(Shape(lanes, threads) for lanes in _halves(most))]
    counts = [lanes for lanes in _halves(min(MOST_LANES, cores)) if cores // lanes]
    return [Shape(1, cores), *(Shape(lanes, cores // lanes) for lanes in counts)]


def _halves(most: int) -> list[int]:
    """most, most / 2, … down to 2."""
    found = []
    while most > 1:
        found.append(most)
        most //= 2
    return found


def best_of(rates: Mapping[Shape, Mapping[int, float]]) -> Shape:
    """The shape with the best rows/s over all sizes (geometric mean of its shares of the best); of those close to it, the one of fewest
    lanes. `rates` are rows/s by rows, of the same sizes for each shape."""
    sizes = next(iter(rates.values())).keys()
    most = {rows: max(found[rows] for found in rates.values()) for rows in sizes}
    score = {shape: math.prod(found[rows] / most[rows] for rows in sizes) ** (1 / len(sizes)) for shape, found in rates.items()}
    return min(shape for shape in score if score[shape] * WORTH_IT >= max(score.values()))


def file_size(path: Path) -> int:
    """Bytes of a model's file and of the weights that an export leaves beside it, 0 where there's none: about what another session of it
    takes.
    """
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.is_file())


def sizes_that_matter(latency: Mapping[int, float]) -> tuple[int, ...]:
    """A lone row, and the size with the best rows/s of those that don't take too long; none for a model that takes no time."""
    if max(latency.values(), default=0.0) <= TINY or latency[min(latency)] > LONGEST_ROW:
        return ()
    short = {rows: seconds for rows, seconds in latency.items() if 0 < seconds <= LONGEST}
    best = max(short, key=lambda rows: rows / short[rows], default=min(latency))
    return tuple(sorted({min(latency), best}))


def affordable(shapes: Sequence[Shape], sizes: Sequence[int], latency: Mapping[int, float], open_seconds: float) -> list[Shape]:
    """The first shape and those after it whose sessions can be opened and tried within BUDGET, judged by the first one's times."""
    turn = TURNS * sum(max(SLICE, LEAST_RUNS * latency[rows]) for rows in sizes)
    spent, chosen = turn, [shapes[0]]
    for shape in shapes[1:]:
        cost = turn + shape.count * open_seconds
        if spent + cost <= BUDGET:
            spent += cost
            chosen.append(shape)
    return chosen


def sweep(first: Backend, shapes: Sequence[Shape], warmup: WarmUp, opening: tuple[float, int], open_backend: OpenBackend) -> Choice:
    """Try `shapes`, of which `first` is the first one's backend, warmed up. `opening` is the seconds and bytes that it took to open.

    Raises what `open_backend` raises; nothing but `first` stays open then.
    """
    sizes = sizes_that_matter(warmup.latency)
    open_seconds, size = opening
    tried = affordable(shapes, sizes, warmup.latency, open_seconds) if sizes else list(shapes[:1])
    if size:
        room = MEMORY_SHARE * psutil.virtual_memory().available // size
        tried = [tried[0], *(shape for shape in tried[1:] if sum(each.count for each in tried[1:]) <= room)]
    if len(tried) == 1:
        return Choice(shapes[0], (first,), _untried(shapes, sizes, open_seconds))
    opened = [_Candidate(tried[0], [first])]
    try:
        for shape in tried[1:]:
            opened.append(_Candidate(shape, []))
            for _ in range(shape.count):
                opened[-1].backends.append(open_backend(shape.threads))
        inputs = {rows: made_up(first.inputs, rows, warmup.free_axis) for rows in sizes}
        _try(opened, inputs)
    except BaseException:
        _close(opened[1:])
        raise
    chosen = best_of({candidate.shape: candidate.best() for candidate in opened})
    _close([candidate for candidate in opened if candidate.shape != chosen])
    kept = next(candidate for candidate in opened if candidate.shape == chosen)
    return Choice(chosen, tuple(kept.backends), _measured(opened))


def _try(opened: Sequence[_Candidate], inputs: Mapping[int, Mapping[str, Tensor]]) -> None:
    for candidate in opened[1:]:
        for backend in candidate.backends:
            timed_run(backend, inputs[min(inputs)], min(inputs))
    for _ in range(TURNS):
        for rows, batch in inputs.items():
            for candidate in opened:
                candidate.rates.setdefault(rows, []).append(_rate(candidate.backends, batch, rows))


def _rate(backends: Sequence[Backend], inputs: Mapping[str, Tensor], rows: int) -> float:
    """Rows/s of all backends at once, each in a thread of its own: each one's own pace, so that a late starter costs nothing."""
    rates = [0.0] * len(backends)

    def work(position: int) -> None:
        begun, runs = monotonic(), 0
        while runs < LEAST_RUNS or monotonic() - begun < SLICE:
            timed_run(backends[position], inputs, rows)
            runs += 1
        rates[position] = runs * rows / (monotonic() - begun)

    threads = [threading.Thread(target=work, args=(position,), name="sweep") for position in range(len(backends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def _close(opened: Sequence[_Candidate]) -> None:
    for candidate in opened:
        for backend in candidate.backends:
            backend.close()


def _untried(shapes: Sequence[Shape], sizes: Sequence[int], open_seconds: float) -> str:
    if len(shapes) == 1:
        return ""
    return f"more weren't tried: opening one took {open_seconds:.1f} s" if sizes else "its runs are too short for more"


def _measured(opened: Sequence[_Candidate]) -> str:
    """What was found, for people: rows/s by size."""
    texts = []
    for candidate in opened:
        rates = ", ".join(f"{rate:.0f} in runs of {rows}" for rows, rate in candidate.best().items())
        texts.append(f"{candidate.shape}: {rates}")
    return f"rows/s measured at warm-up: {'; '.join(texts)}"
