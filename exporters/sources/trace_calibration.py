"""The rows that precisions are calibrated on: the module's own, the example's that were held back, or made ones; a part of
trace_child's process. None of them is a row of the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .samples import Arrays, RowStream, shaken
from .trace_state import RefusedError
from .trace_study import WHOLE_RUNS, Study

ROWS = 128
BATCH = 8
MOST_BYTES = 64 * 2**20
DECLARED, HELD, MADE = "calibration() beside the factory", "held out from the example", "made from the example"


def save_calibration(found: Study, declared: Arrays | None, seed: int, path: Path) -> tuple[int, str]:
    """Write them, an npz of `BATCH.in.INPUT` by index. Returns how many batches, and in words where they came from."""
    arrays: Arrays = {}
    batches = 0
    held = found.held_rows()
    origin = DECLARED if declared is not None else HELD if held else MADE
    whose = "the example" if declared is None else "calibration()"
    for batch in _rows(found, declared if declared is not None else held, seed, whose):
        arrays |= {f"{batches}.in.{index}": array for index, array in enumerate(batch.values())}
        batches += 1
        if sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
            break
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return batches, origin


def _rows(found: Study, given: Arrays | None, seed: int, whose: str) -> Iterator[Arrays]:
    example = found.call.example
    if given is not None:
        yield from _given_batches(found, given, whose)
    elif found.unbatched is not None:
        for run in range(WHOLE_RUNS, 2 * WHOLE_RUNS):
            yield shaken(example, seed + run)
    else:
        stream = RowStream(example, seed, found.lengths.exchangeable())
        stream.skip_example()
        for _ in range(ROWS // BATCH):
            yield stream.take(BATCH)


def _given_batches(found: Study, given: Arrays, whose: str) -> Iterator[Arrays]:
    example = found.call.example
    for name, array in example.items():
        rows = given.get(name)
        if rows is None or rows.dtype != array.dtype or rows.ndim != array.ndim:
            has = "nothing" if rows is None else f"{rows.dtype} {list(rows.shape)}"
            raise RefusedError(f"{whose} gives {has} for {name!r}; the example has {array.dtype} {list(array.shape)}")
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise RefusedError(f"{whose} gives NaN or infinities for {name!r}")
    if found.unbatched is not None:
        yield {name: given[name] for name in example}
        return
    for start in range(0, len(next(iter(given.values()))), BATCH):
        yield {name: given[name][start : start + BATCH] for name in example}
