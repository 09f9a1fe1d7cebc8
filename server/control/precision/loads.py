"""What a model is asked for just now, from counts that its engines keep anyway: a rate, where it's headed, and the batch sizes in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from server.engine.engine import Engine
from server.metrics.catalogue import ROWS
from server.precision.load import Load

RECENT = 10.0  # seconds whose batches show the sizes in use
IN_USE = 0.1  # share of the rows from which a size counts


class Asked:
    """One model's, over all its versions and over changes of engines. `note` at about equal times."""

    def __init__(self) -> None:
        self._load = Load()
        self._rows = 0.0
        self._offered: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()
        self._batches: WeakKeyDictionary[Engine, list[float]] = WeakKeyDictionary()
        self._recent: deque[tuple[float, list[float]]] = deque()

    def note(self, now: float, engines: Iterable[Engine]) -> None:
        """Read the engines of the model."""
        batches = [0.0] * len(ROWS)
        for engine in engines:
            offered, counts = engine.offered_rows, engine.figures.rows[: len(ROWS)]
            self._rows += offered - self._offered.get(engine, 0)
            for size, (count, before) in enumerate(zip(counts, self._batches.get(engine, counts), strict=True)):
                batches[size] += count - before
            self._offered[engine], self._batches[engine] = offered, counts
        self._load.note(now, self._rows)
        self._recent.append((now, batches))
        while self._recent[0][0] < now - RECENT:
            self._recent.popleft()

    @property
    def rate(self) -> float:
        """Rows a second, refused ones too."""
        return self._load.rate

    def ahead(self, seconds: float) -> float:
        """Rows a second that are foreseen in `seconds`."""
        return self._load.ahead(seconds)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the runs that lately took a good part of all rows, as the bounds of a histogram; () where nothing ran."""
        rows = [size * sum(counts[at] for _, counts in self._recent) for at, size in enumerate(ROWS)]
        total = sum(rows)
        return tuple(int(size) for size, part in zip(ROWS, rows, strict=True) if total and part >= IN_USE * total)
