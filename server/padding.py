"""Which axes of a model's tensors may be padded, and how rows of unlike length become one array and are cut apart again. Pure.

A *dim* is what axes of one length share: the name that the ONNX file gives them, else "axis N". A run is as long in each padded axis
as its longest request; what the others lack is filled, and outputs that have a padded dim are cut back to each request's own length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from server.tensors import Tensor

Shape: TypeAlias = tuple[int, ...]


class PadAxis(NamedTuple):
    """An axis that may be padded, counted over the whole shape, and its dim."""

    position: int
    dim: str


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Padding:
    """What may be padded. `inputs` and `outputs` hold only the tensors that are, each with its axes in rising order; `values` are what
    fills, by input. Axes of a dim in `named` must have one length in a request: the model's file says so."""

    inputs: Mapping[str, tuple[PadAxis, ...]] = field(default_factory=_nothing)
    outputs: Mapping[str, tuple[PadAxis, ...]] = field(default_factory=_nothing)
    values: Mapping[str, Any] = field(default_factory=_nothing)
    named: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.inputs)

    def sources(self, dim: str) -> list[tuple[str, int]]:
        """The inputs, and their axes, that have this dim."""
        return [(name, position) for name, axes in self.inputs.items() for position, own in axes if own == dim]

    def unpadded(self, name: str, shape: Shape) -> Shape:
        """`shape` of input `name` without its padded axes: what must be alike to share a run."""
        axes = self.inputs.get(name)
        return shape if axes is None else tuple(size for index, size in enumerate(shape) if all(index != axis.position for axis in axes))

    def lengths(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """How long a request of these shapes is, by dim; the longest where inputs differ."""
        found: dict[str, int] = {}
        for name, axes in self.inputs.items():
            if name in shapes:
                for index, dim in axes:
                    found[dim] = max(found.get(dim, 0), shapes[name][index])
        return found

    def disagreement(self, shapes: Mapping[str, Shape]) -> tuple[str, str, int, str, int] | None:
        """A named dim in which two inputs of a request differ: (dim, input, its length, other input, its length)."""
        first: dict[str, tuple[str, int]] = {}
        for name, axes in self.inputs.items():
            for index, dim in axes if name in shapes else ():
                known, length = first.setdefault(dim, (name, shapes[name][index]))
                if dim in self.named and length != shapes[name][index]:
                    return dim, known, length, name, shapes[name][index]
        return None

    def cells(self, shapes: Mapping[str, Shape]) -> int:
        """The cells that a row of these shapes has along the padded dims, at least 1."""
        return max(1, prod(self.lengths(shapes).values()))


NO_PADDING = Padding()


def longest(shapes: Sequence[Shape], axis: int, rows: int, axes: Sequence[PadAxis]) -> Shape:
    """The shape of a run of `rows` rows on `axis` that takes arrays of all `shapes`, which differ in `axis` and `axes` only."""
    shape = list(shapes[0])
    shape[axis] = rows
    for index, _ in axes:
        shape[index] = max([each[index] for each in shapes])
    return tuple(shape)


def join(arrays: Sequence[Tensor], axis: int, axes: Sequence[PadAxis], value: Any, out: Tensor) -> Tensor:
    """Write `arrays` one after the other along `axis` into `out`, and `value` where they are shorter than it in one of `axes`.

    Only what lies beyond the shortest array is filled beforehand, in one stroke an axis: that beats filling each tail by itself.
    """
    for index, _ in axes:
        shortest = min([array.shape[index] for array in arrays])
        if shortest < out.shape[index]:
            out[(slice(None),) * index + (slice(shortest, None),)] = value
    start = 0
    if axis == 0 and len(axes) == 1 and axes[0].position == 1:  # rows of tokens: what most models with padding take
        for array in arrays:
            stop = start + array.shape[0]
            out[start:stop, : array.shape[1]] = array
            start = stop
        return out
    for array in arrays:
        stop = start + array.shape[axis]
        place = [slice(None)] * out.ndim
        place[axis] = slice(start, stop)
        for index, _ in axes:
            place[index] = slice(array.shape[index])
        out[tuple(place)] = array
        start = stop
    return out


def cut(array: Tensor, axis: int, rows: tuple[int, int], own: Mapping[int, int]) -> Tensor:
    """The rows from `rows[0]` to `rows[1]` on `axis`, as long on each other axis as `own` says of it. A view."""
    place = [slice(None)] * (max((axis, *own)) + 1)
    place[axis] = slice(*rows)
    for index, length in own.items():
        place[index] = slice(length)
    return array[tuple(place)]


def filling(value: Any, dtype: np.dtype[Any]) -> Any:
    """`value` as an element of `dtype`. Raises ValueError where it can't be one."""
    if dtype.hasobject:
        if not isinstance(value, str):
            raise ValueError(f"expected text, got {value!r}")
        return value.encode()
    if dtype.kind == "b":
        if value not in (False, True):
            raise ValueError(f"expected true or false, got {value!r}")
        return dtype.type(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max or value != int(value):
            raise ValueError(f"expected a whole number from {limits.min} to {limits.max}, got {value!r}")
        return dtype.type(int(value))
    with np.errstate(over="ignore"):
        element = dtype.type(value)
    if not np.isfinite(np.float64(element)):
        raise ValueError(f"{value!r} is beyond what {dtype.name} holds")
    return element
