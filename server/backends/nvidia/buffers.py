"""Memory of one model's tensors: for each a place on the device and one in pinned host memory, as large as the largest run needs.

What is known at open is taken then, so that a run never meets a full device; the rest is taken by the first run that needs it, which
warm-up is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from server.backends.nvidia.cuda import Gpu
from server.errors import BackendFailure, DeviceMemory
from server.tensors import Tensor, TensorSpec, elements

ALIGNMENT = 256
"""What cudaMalloc aligns to; also the least size, for TensorRT wants an address for an empty tensor too."""


class Buffers:
    """The places of all tensors on one GPU. Not safe for two runs at once."""

    def __init__(self, gpu: Gpu, sizes: Mapping[str, int]) -> None:
        """`sizes` are bytes by tensor. Raises DeviceMemory that says how much was wanted and is free; nothing stays taken then."""
        self._gpu = gpu
        self._sizes = {name: max(size, ALIGNMENT) for name, size in sizes.items()}
        self.device: dict[str, int] = {}
        self._pinned: dict[str, int] = {}
        try:
            for name, size in self._sizes.items():
                self.device[name] = gpu.allocate(size)
                self._pinned[name] = gpu.allocate_pinned(size)
        except DeviceMemory as error:
            self.close()
            wanted, free = sum(self._sizes.values()) >> 20, gpu.free_memory() >> 20
            raise DeviceMemory(f"{error}: the tensors of the largest run take {wanted} MiB, and {free} MiB are free") from error

    def hold(self, name: str, size: int) -> int:
        """The place of a tensor on the device, made as large as `size` bytes where it was smaller. Nothing may be under way in it."""
        wanted = max(size, ALIGNMENT)
        if wanted > self._sizes.get(name, 0):
            self._drop(self.device.pop(name, 0), self._pinned.pop(name, 0))
            self._sizes[name] = 0
            self.device[name] = self._gpu.allocate(wanted)
            self._pinned[name] = self._gpu.allocate_pinned(wanted)
            self._sizes[name] = wanted
        return self.device[name]

    def send(self, spec: TensorSpec, array: Tensor, stream: int) -> None:
        """Begin to copy an input to the device; `array` may be any view, in any byte order, and is free again at once."""
        np.copyto(self._view(spec.name, spec.dtype.numpy, array.shape), array)
        self._gpu.to_device(self.device[spec.name], self._pinned[spec.name], array.nbytes, stream)

    def fetch(self, spec: TensorSpec, shape: tuple[int, ...], stream: int, address: int = 0) -> Tensor:
        """Begin to copy an output back, from `address` where it isn't in its place. The array is filled when the stream is done, and
        overwritten by the next run."""
        array = self._view(spec.name, spec.dtype.numpy, shape)
        self._gpu.to_host(self._pinned[spec.name], address or self.device[spec.name], array.nbytes, stream)
        return array

    def close(self) -> None:
        """Give all of it back; what a broken context can't free goes with the process."""
        for name in {*self.device, *self._pinned}:
            self._drop(self.device.get(name, 0), self._pinned.get(name, 0))
        self.device, self._pinned = {}, {}

    def _drop(self, device: int, pinned: int) -> None:
        with suppress(BackendFailure):
            if device:
                self._gpu.free(device)
        with suppress(BackendFailure):
            if pinned:
                self._gpu.free_pinned(pinned)

    def _view(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
        """The pinned memory of a tensor as an array."""
        size = elements(shape) * dtype.itemsize
        if size > self._sizes[name]:
            raise BackendFailure(f"tensor {name!r} of {list(shape)} takes {size} bytes; its memory has {self._sizes[name]}")
        return np.ndarray(shape, dtype, memoryview((ctypes.c_char * size).from_address(self._pinned[name])).cast("B"))
