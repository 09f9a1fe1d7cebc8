"""Does a model bear padding? Rows of unlike length, padded into one run, must be answered as they are alone.

A model without a mask may not: its mean over the tokens counts the padding in. It is then served by exact length, and says why. The lane
is asked as the engine will ask it, so that every kind of lane and backend is proved the same way; it must not be in use yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from server.lanes.base import Lane, RunResult
from server.numerics import distance
from server.padding import Padding, cut, join, longest
from server.tensors import Tensor, TensorSpec

LENGTHS = ((5, 9), (16, 32), (40, 64), (192, 224), (1, 2))
"""Pairs of lengths tried until the model takes both: a short one and the one that it is padded to."""
ROWS = (2, 1)  # of the short part and the long one
TRIALS = 3  # with other values each time: padding may go unnoticed once
TOLERANCE = 1e-3  # of the largest value, as at warm-up; halves hold less
TOLERANCE_OF_HALVES = 2e-2


class _Refused(Exception):
    """The model didn't take an input."""


async def pad_fault(lane: Lane, padding: Padding, seed: int = 0) -> str:
    """Why the model behind `lane` can't be padded, "" where it can. Called in the event loop, before the lane serves."""
    random = np.random.default_rng(seed)
    refused = ""
    for lengths in LENGTHS:
        try:
            for _ in range(TRIALS):
                fault = await _trial(lane, padding, lengths, random)
                if fault:
                    return fault
        except _Refused as error:
            refused = refused or str(error)
        else:
            return ""
    return f"no two lengths were found that the model takes: {refused}"


async def _trial(lane: Lane, padding: Padding, lengths: tuple[int, int], random: np.random.Generator) -> str:
    short, long = (_samples(lane.inputs, padding, rows, length, random) for rows, length in zip(ROWS, lengths, strict=True))
    for spec in lane.inputs:
        if spec.batch_axis is None and spec.name not in padding.inputs:  # one for all rows
            short[spec.name] = long[spec.name]
    own = [padding.lengths({name: array.shape for name, array in part.items()}) for part in (short, long)]
    if own[0] == own[1]:
        raise _Refused(f"max_shape lets no input be {lengths[1]} long")
    alone = [await _run(lane, part, rows) for part, rows in zip((short, long), ROWS, strict=True)]
    total = sum(ROWS)
    try:
        together = await _run(lane, {spec.name: _joined(spec, short, long, padding) for spec in lane.inputs}, total)
    except _Refused as error:
        return f"a run with padding failed: {error}"
    for spec in lane.outputs:
        if spec.batch_axis is None:
            continue
        start = 0
        for part, rows, dims in zip(alone, ROWS, own, strict=True):
            axes = padding.outputs.get(spec.name, ())
            if together[spec.name].ndim != part[spec.name].ndim:
                return f"output {spec.name!r} has {part[spec.name].ndim} axes alone and {together[spec.name].ndim} padded"
            found = cut(together[spec.name], spec.batch_axis, (start, start + rows), {position: dims[dim] for position, dim in axes})
            if fault := _difference(part[spec.name], found):
                return f"output {spec.name!r} of the same rows alone and padded {fault}"
            start += rows
    return ""


def _joined(spec: TensorSpec, short: Mapping[str, Tensor], long: Mapping[str, Tensor], padding: Padding) -> Tensor:
    if spec.batch_axis is None:
        return long[spec.name]
    arrays, axes = [short[spec.name], long[spec.name]], padding.inputs.get(spec.name, ())
    shape = longest([array.shape for array in arrays], spec.batch_axis, sum(ROWS), axes)
    return join(arrays, spec.batch_axis, axes, padding.values.get(spec.name), np.empty(shape, arrays[0].dtype))


async def _run(lane: Lane, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    done: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
    lane.submit(dict(inputs), rows, done.set_result)
    result = await done
    if result.error is not None:
        raise _Refused(str(result.error))
    return result.outputs


def _samples(specs: Sequence[TensorSpec], padding: Padding, rows: int, length: int, random: np.random.Generator) -> dict[str, Tensor]:
    """Inputs of `rows` rows, `length` long on each padded axis. Whole numbers are 0 and 1, which ids and masks both take, and each row
    begins with 1, so that no mask leaves nothing."""
    return {spec.name: _sample(spec, {axis.position for axis in padding.inputs.get(spec.name, ())}, rows, length, random) for spec in specs}


def _sample(spec: TensorSpec, padded: set[int], rows: int, length: int, random: np.random.Generator) -> Tensor:
    limits = spec.max_shape or (-1,) * len(spec.shape)
    shape: list[int] = []
    for index, (size, limit) in enumerate(zip(spec.shape, limits, strict=True)):
        free = length if index in padded else LENGTHS[0][1]
        shape.append(rows if index == spec.batch_axis else size if size != -1 else min(free, limit) if limit > 0 else free)
    if spec.datatype == "BYTES":
        return np.full(shape, b"a", object)
    kind = spec.dtype.numpy
    if kind.kind not in "biu":
        return random.standard_normal(shape, np.float32).astype(kind)
    values: Tensor = random.integers(0, 2, shape).astype(kind)
    values[(..., *(slice(1) if index in padded else slice(None) for index in range(len(shape))))] = 1
    return values


def _difference(alone: Tensor, padded: Tensor) -> str:
    """How far an answer out of a padded run is from the same alone, "" where it's within what the datatype can hold."""
    if alone.shape != padded.shape:
        return f"have the shapes {list(alone.shape)} and {list(padded.shape)}; outputs.NAME.pad_axes says which axes are padded"
    if alone.dtype.hasobject or alone.dtype.kind in "biu":
        unlike = int(np.count_nonzero(alone != padded))
        return f"differ in {unlike} of {alone.size} values" if unlike else ""
    found = distance(alone, padded)
    tolerance = TOLERANCE if alone.dtype.itemsize >= 4 else TOLERANCE_OF_HALVES
    if found.max_abs <= tolerance * found.scale:
        return ""
    return f"differ by up to {found.max_abs:.3g} (values reach {found.scale:.3g}): the model counts the padding in"
