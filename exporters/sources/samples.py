"""Parity inputs made from an example: its own rows first, then perturbed ones whose values stay in the example's range.

Rows are made jointly over all inputs. Floats get seeded noise and are clipped to the range that the example's array has. Integers
and booleans are taken from the example's rows at the same position of axis 1 (a categorical column keeps its own range), or at any
position where that axis is dynamic; alike in every input of that length, so that a token and its mask move together. Numpy only:
this is a part of trace_child's process, which imports nothing of tidegate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Axes = dict[str, dict[int, int | None]]
"""For an input, its axes whose length varies, with the greatest length where one is known."""

NOISE = 0.1
"""Standard deviation of the noise, as a share of the array's own."""


class RowStream:
    """An endless stream of rows for a model whose inputs all count rows on axis 0.

    `exchangeable` names the inputs whose values on axis 1 may change places.
    """

    def __init__(self, example: Mapping[str, NDArray[Any]], seed: int, exchangeable: Collection[str] = (), perturb: bool = True) -> None:
        self._example = example
        self._rng = np.random.default_rng(seed)
        self._exchangeable = exchangeable
        self._perturb = perturb
        self._rows = len(next(iter(example.values())))
        self._next = 0

    def skip_example(self) -> None:
        """From here on only rows that were made."""
        self._next = max(self._next, self._rows)

    def take(self, rows: int) -> Arrays:
        """The next `rows` rows of every input."""
        index = np.arange(self._next, self._next + rows)
        self._next += rows
        batch = {name: array[index % self._rows] for name, array in self._example.items()}
        fresh = np.flatnonzero(index >= self._rows)
        if self._perturb and len(fresh):
            self._shake(batch, fresh)
        return batch

    def _shake(self, batch: Arrays, fresh: NDArray[np.intp]) -> None:
        picks: dict[tuple[int, bool], tuple[NDArray[Any], NDArray[Any]]] = {}
        for name, array in batch.items():
            whole = self._example[name]
            if np.issubdtype(array.dtype, np.floating):
                array[fresh] = _noisy(array[fresh], whole, self._rng)
            else:
                columns = whole.reshape(self._rows, 1) if whole.ndim == 1 else whole
                key = (columns.shape[1], name in self._exchangeable)
                if key not in picks:
                    picks[key] = self._pick(len(fresh), *key)
                array[fresh] = columns[picks[key]].reshape(len(fresh), *whole.shape[1:])

    def _pick(self, rows: int, length: int, exchange: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """For each value of [rows, length]: which row of the example it comes from, and which position."""
        positions = np.tile(np.arange(length), (rows, 1))
        sources = self._rng.integers(self._rows, size=(rows, 1) if exchange else (rows, length))
        return np.broadcast_to(sources, (rows, length)), self._rng.permuted(positions, axis=1) if exchange else positions


def shaken(example: Mapping[str, NDArray[Any]], seed: int) -> Arrays:
    """The example as a whole with noise on its floats, for a model that isn't batched; seed 0 gives it as it is.

    Every second pair of seeds moves what lies along the first axis, too: what a tracer took from a value at one place is seen there only.
    """
    rng = np.random.default_rng(seed)
    orders: dict[int, NDArray[np.intp]] = {}
    made: Arrays = {}
    for name, array in example.items():
        made[name] = array.copy()
        if seed and np.issubdtype(array.dtype, np.floating):
            if seed % 4 >= 2 and array.ndim:
                made[name] = array[orders.setdefault(len(array), rng.permutation(len(array)))]
            made[name] = _noisy(made[name], array, rng)
    return made


class Lengths:
    """The axes, other than the batch's, whose length varies. Axes of one index, length and maximum share a symbol: they vary together."""

    def __init__(self, example: Mapping[str, NDArray[Any]], axes: Axes, batched: bool) -> None:
        self._members: dict[str, list[tuple[str, int]]] = {}
        self._lengths: dict[str, int] = {}
        self._most: dict[str, int | None] = {}
        symbols: dict[tuple[int, int, int | None], str] = {}
        for name, array in example.items():
            for axis, most in axes.get(name, {}).items():
                if axis == 0 and batched:
                    continue
                symbol = symbols.setdefault((axis, array.shape[axis], most), f"{name}_dim{axis}")
                self._members.setdefault(symbol, []).append((name, axis))
                self._lengths[symbol] = array.shape[axis]
                self._most[symbol] = most

    def by_input(self) -> dict[str, dict[int, str]]:
        """For each input that has any: its varying axes with their symbols."""
        found: dict[str, dict[int, str]] = {}
        for symbol, members in self._members.items():
            for name, axis in members:
                found.setdefault(name, {})[axis] = symbol
        return found

    def exchangeable(self) -> set[str]:
        """Inputs whose axis 1 is a sequence."""
        return {name for name, axes in self.by_input().items() if 1 in axes}

    def max_shape(self, name: str, axes: int) -> list[int] | None:
        """The greatest length of each axis of an input, -1 where there's no bound; None where there's none at all."""
        bounds = {axis: self._most[symbol] for axis, symbol in self.by_input().get(name, {}).items()}
        shape = [bounds.get(axis) or -1 for axis in range(axes)]
        return shape if any(bounds.values()) else None

    def trials(self) -> list[dict[str, int]]:
        """Lengths other than the example's that the model must take: the other one, and the greatest."""
        most = {symbol: self._most[symbol] or length for symbol, length in self._lengths.items()}
        return [lengths for lengths in (self._other(), most) if lengths != self._lengths]

    def cycle(self) -> Iterator[dict[str, int]]:
        """The example's lengths and the other ones in turn, for ever."""
        while True:
            yield self._lengths
            yield self._other()

    def apply(self, arrays: Mapping[str, NDArray[Any]], lengths: Mapping[str, int]) -> Arrays:
        """The arrays with their varying axes cut or repeated to `lengths`."""
        changed = dict(arrays)
        for symbol, members in self._members.items():
            for name, axis in members:
                changed[name] = _with_length(changed[name], axis, lengths[symbol])
        return changed

    def symbol_of(self, seen: list[int], inputs: list[Arrays]) -> str | None:
        """The symbol whose lengths in `inputs`, run by run, are `seen`."""
        for symbol, members in self._members.items():
            name, axis = members[0]
            if [arrays[name].shape[axis] for arrays in inputs] == seen:
                return symbol
        return None

    def _other(self) -> dict[str, int]:
        return {symbol: (length + 1) // 2 if length > 1 else 2 for symbol, length in self._lengths.items()}


def _with_length(array: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    return array if array.shape[axis] == length else np.take(array, np.arange(length) % array.shape[axis], axis=axis)


def _noisy(array: NDArray[Any], whole: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    finite = whole[np.isfinite(whole)].astype(np.float64)
    if not len(finite):
        return array
    noise = rng.standard_normal(array.shape) * NOISE * float(finite.std())
    return np.clip(array + noise, finite.min(), finite.max()).astype(array.dtype)
