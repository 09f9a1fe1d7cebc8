"""The rows of the proof that stay with an entry, so that it can be proved again where it's served: inputs, and the reference's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from exporters.plan import ExportError
from exporters.sources.pytorch import Sample

NAME = "reference.npz"
MOST_ROWS = 64
MOST_BYTES = 4 << 20


def keep(samples: Iterable[Sample], path: Path) -> int:
    """Write the first samples, as many as fit the bounds (one at least), as `SAMPLE.rows|in|out.NAME`. Returns how many rows."""
    arrays: dict[str, np.ndarray] = {}
    rows = size = 0
    for number, sample in enumerate(samples):
        parts = {f"{number}.in.{name}": array for name, array in sample.inputs.items()}
        parts |= {f"{number}.out.{name}": array for name, array in sample.outputs.items()}
        size += sum(array.nbytes for array in parts.values())
        if number and (size > MOST_BYTES or rows + sample.rows > MOST_ROWS):
            break
        arrays |= parts | {f"{number}.rows": np.array(sample.rows)}
        rows += sample.rows
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return rows


def kept(path: Path) -> Iterator[Sample]:
    """The samples of such a file. Raises ExportError where it isn't one."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
            for number in range(sum(name.endswith(".rows") for name in arrays)):
                yield Sample(int(arrays[f"{number}.rows"]), _part(arrays, f"{number}.in."), _part(arrays, f"{number}.out."))
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ExportError(f"{path}: its reference rows can't be read: {error}") from error


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
