"""The memory that batches are gathered into: one block an input, grown to the largest batch seen and used again for each next one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from server.tensors import Tensor, TensorSpec

KNOWN_SHAPES = 256  # views that are kept; making one costs more than looking it up


class Buffers:
    """Blocks by input name. A view handed out is valid until the next one of the same name is asked for."""

    __slots__ = ("_blocks", "_dtypes", "_views")

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self._dtypes: dict[str, np.dtype[Any]] = {spec.name: spec.dtype.numpy for spec in inputs}
        self._blocks: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An array of `shape` in the block of input `name`."""
        known = self._views.get((name, shape))
        return known if known is not None else self._new_view(name, shape)

    def _new_view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        block = self._blocks.get(name)
        if block is None or block.size < size or len(self._views) >= KNOWN_SHAPES:
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
            if block is None or block.size < size:
                block = self._blocks[name] = np.empty(size, self._dtypes[name])
        view = self._views[name, shape] = block[:size].reshape(shape)
        return view
