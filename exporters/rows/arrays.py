"""Rows of inputs from an .npz: read as plain arrays, checked against what the model takes, and cut into batches."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.plan import ExportError
from server.tensors import TensorSpec

BATCH_ROWS = 8

Arrays = dict[str, NDArray[Any]]


def read_arrays(file: Path, option: str) -> Arrays:
    """The arrays of an .npz by name. Raises ExportError, which names the option that the file was given to."""
    try:
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ExportError(f"{option} {file.name} is one array without a name; expected an .npz with an array for each input")
            return dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"{option} {file.name} can't be read as plain arrays: {error}") from error


def checked(arrays: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec], batched: bool, where: str) -> Arrays:
    """Only what `inputs` name, each of its dtype and shape, free of NaN, and all of as many rows. Raises ExportError."""
    for spec in inputs:
        _check(where, spec, arrays, batched)
    given = {spec.name: arrays[spec.name] for spec in inputs}
    rows = {name: len(array) for name, array in given.items()}
    if batched and len(set(rows.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise ExportError(f"{where}: the inputs differ in their number of rows: {said}")
    return given


def batches(arrays: Arrays, most: int) -> Iterator[Arrays]:
    """The first `most` rows, some at a time."""
    rows = min(most, count(arrays))
    for start in range(0, rows, BATCH_ROWS):
        yield {name: array[start : min(start + BATCH_ROWS, rows)] for name, array in arrays.items()}


def count(batch: Mapping[str, NDArray[Any]]) -> int:
    """How many rows a batch has, 1 for scalars."""
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1


def digest(found: Sequence[Mapping[str, NDArray[Any]]]) -> str:
    """SHA-256 over batches: names, dtypes, shapes and values."""
    made = hashlib.sha256()
    for batch in found:
        for name, array in batch.items():
            made.update(f"{name}{array.dtype}{array.shape}".encode())
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


def row_keys(batch: Mapping[str, NDArray[Any]], batched: bool) -> list[bytes]:
    """A key for each row, alike for rows that are alike in every input; one for the whole of a model that isn't batched."""
    rows = [{name: array[row] for name, array in batch.items()} for row in range(count(batch))] if batched else [batch]
    return [bytes.fromhex(digest([row])) for row in rows]


def _check(where: str, spec: TensorSpec, arrays: Mapping[str, NDArray[Any]], batched: bool) -> None:
    """One input's array must be there, of its dtype and shape, with at least a row, and free of NaN and infinities."""
    if spec.name not in arrays:
        raise ExportError(f"{where} has no {spec.name!r}; it has {', '.join(arrays) or 'nothing'}")
    array = arrays[spec.name]
    if array.dtype != spec.dtype.numpy:
        raise ExportError(f"{where}: {spec.name!r} is {array.dtype}; expected {spec.dtype.numpy}")
    fits = array.ndim == len(spec.shape) and all(wanted in (-1, found) for wanted, found in zip(spec.shape, array.shape, strict=True))
    if not fits or not array.size:
        expected = [*(["rows"] if batched else spec.shape[:1]), *spec.shape[1:]]
        raise ExportError(f"{where}: {spec.name!r} has the shape {list(array.shape)}; expected [{', '.join(map(str, expected))}]")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise ExportError(f"{where}: {spec.name!r} has NaN or infinities, first in row {row}; a range can't be taken from them")
