"""Shared memory between a process lane and its child: memfds that both map. They have no name, so nothing is left to sweep.

The parent makes a segment for each input and tells the child of it once; the child makes the blocks that outputs come in. A block is
the child's again when the last view of the answers in it has died. Sizes are sealed: neither side can cut the other's memory short.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from server.lanes.buffers import KNOWN_SHAPES
from server.protocol.binary_codec import read_strings, write_strings
from server.tensors import DTYPES, Tensor, TensorSpec, dtype_of

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SMALLEST = 1 << 16
ALIGN = 64  # bytes: kernels read whole vectors
FREE_BLOCKS = 4  # that the child keeps for the next answers

Opened: TypeAlias = list[tuple[int, int]]
"""Number and size of each segment whose descriptor goes with the message, in the same order."""


class Part(NamedTuple):
    """A tensor in a segment: which one, where it starts, how many bytes. BYTES travel as they do on the wire."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    segment: int
    start: int
    size: int


def new_segment(size: int) -> int:
    """A memfd of `size` bytes, sealed against another size."""
    fd = os.memfd_create("tidegate-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_segment(fd: int, size: int, *, write: bool = False) -> mmap.mmap:
    """The memory of a segment, and its descriptor closed. Raises OSError unless it's sealed at `size`: a shrinking one would kill us."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS or os.fstat(fd).st_size != size:
            raise OSError(f"expected a segment sealed at {size} bytes, got one of {os.fstat(fd).st_size}")
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
    finally:
        os.close(fd)


def rounded(size: int) -> int:
    """The size of the segment that is made for `size` bytes: pages cost nothing until they're written."""
    return 1 << max(SMALLEST - 1, size - 1).bit_length()


def tensor_in(memory: Any, part: Part) -> Tensor:
    """The tensor at a part's place: a view, or a copy where BYTES must be unpacked."""
    kind = DTYPES[part.datatype]
    if not kind.size:
        count = math.prod(part.shape)
        return read_strings(part.name, part.shape, count, memoryview(memory)[part.start : part.start + part.size])
    if not part.size:
        return np.empty(part.shape, kind.numpy)
    return np.ndarray(part.shape, kind.numpy, memory, part.start)


class InputSegments:
    """The parent's side: a segment for each input, grown to the largest batch seen. `view` is the lane's `buffer`."""

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self._dtypes: dict[str, np.dtype[Any]] = {spec.name: spec.dtype.numpy for spec in inputs}
        self._memory: dict[str, tuple[int, mmap.mmap]] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._numbers = 0
        self.opened: Opened = []
        self.closed: list[int] = []
        self.fds: list[int] = []

    def view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An array of `shape` in the segment of input `name`. Raises MemoryError."""
        known = self._views.get((name, shape))
        if known is not None:
            return known
        dtype = self._dtypes[name]
        memory = self._room(name, math.prod(shape) * dtype.itemsize)[1]
        if len(self._views) >= KNOWN_SHAPES:
            self._views.clear()
        view = self._views[name, shape] = np.ndarray(shape, dtype, memory)
        return view

    def place(self, inputs: Mapping[str, Tensor]) -> list[Part]:
        """Where each input lies: those that aren't views of ours are copied in. Raises MemoryError."""
        return [self._place(name, array) for name, array in inputs.items()]

    def _place(self, name: str, array: Tensor) -> Part:
        if array.dtype == object:
            raw = write_strings(array)
            number, memory = self._room(name, len(raw))
            memory[: len(raw)] = raw
            return Part(name, "BYTES", array.shape, number, 0, len(raw))
        if name not in self._dtypes or array.dtype.newbyteorder("=") != self._dtypes[name]:
            return self._place_unlike(name, array)
        view = self.view(name, array.shape)
        if view is not array:
            view[...] = array
        return Part(name, dtype_of(view).name, array.shape, self._memory[name][0], 0, array.nbytes)

    def _place_unlike(self, name: str, array: Tensor) -> Part:
        """An input that the model doesn't declare so: sent as it is, for the backend to refuse in its own words."""
        native = array.astype(array.dtype.newbyteorder("="))
        number, memory = self._room(name, native.nbytes)
        memory[: native.nbytes] = native.tobytes()
        return Part(name, dtype_of(native).name, array.shape, number, 0, native.nbytes)

    def _room(self, name: str, size: int) -> tuple[int, mmap.mmap]:
        found = self._memory.get(name)
        if found is not None and len(found[1]) >= size:
            return found
        length = rounded(size)
        try:
            fd = new_segment(length)
            memory = mmap.mmap(fd, length, mmap.MAP_SHARED)
        except OSError as error:
            raise MemoryError(f"no shared memory of {length} bytes for input {name!r}: {error.strerror}") from error
        self._views = {key: view for key, view in self._views.items() if key[0] != name}
        if found is not None:
            self.closed.append(found[0])
        self._numbers += 1
        self.opened.append((self._numbers, length))
        self.fds.append(fd)
        made = self._memory[name] = (self._numbers, memory)
        return made

    def clear(self) -> None:
        """The child is gone: give the memory back, and the descriptor that Python keeps of each mapping."""
        self.sent()
        self._memory.clear()
        self._views.clear()

    def sent(self) -> None:
        """The child has been told of `opened` and `closed`: its copies of the descriptors are enough."""
        for fd in self.fds:
            os.close(fd)
        self.opened, self.closed, self.fds = [], [], []


class AnswerBlocks:
    """The parent's side of the child's output blocks. `returned` holds the numbers of those whose views have all died."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}
        self._leases: dict[int, weakref.ref[Tensor]] = {}
        self.returned: deque[int] = deque()

    def open(self, opened: Sequence[Sequence[int]], fds: Sequence[int]) -> None:
        """Map the blocks that are new. Raises OSError for one that isn't what the child says."""
        for (number, size), fd in zip(opened, fds, strict=True):
            self._memory[number] = map_segment(fd, size)

    def close(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._memory.pop(number, None)

    def clear(self) -> None:
        """The child is gone: a block's memory is given back with its last view."""
        self._memory.clear()

    def tensors(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The outputs, as views that hold the block. Any thread may drop the last one."""
        if not parts:
            return {}
        number, returned, leases = parts[0].segment, self.returned, self._leases
        # Every view made of `whole`, and of those, keeps `whole` alive: numpy stops at the first array over foreign memory.
        whole = np.frombuffer(self._memory[number], np.uint8)

        def died(_: object) -> None:
            leases.pop(number, None)
            returned.append(number)

        leases[number] = weakref.ref(whole, died)
        return {part.name: tensor_in(whole, part) for part in parts}


class OutputBlocks:
    """The child's side: blocks for outputs, lent to the parent with each answer."""

    def __init__(self) -> None:
        self._blocks: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._numbers = 0
        self.opened: Opened = []
        self.closed: list[int] = []
        self.fds: list[int] = []

    def give(self, numbers: Sequence[int]) -> None:
        """The parent has no view of these any more. Only FREE_BLOCKS are kept, the largest."""
        self._free += numbers
        self._free.sort(key=lambda number: len(self._blocks[number]))
        while len(self._free) > FREE_BLOCKS:
            self._drop(self._free.pop(0))

    def write(self, outputs: Mapping[str, Tensor]) -> list[Part]:
        """Copy the outputs into a block that is free or new. Raises KeyError for an array that the protocol has no datatype for."""
        raw = {name: write_strings(array) for name, array in outputs.items() if array.dtype == object}
        parts: list[Part] = []
        start = 0
        for name, array in outputs.items():
            size = len(raw[name]) if name in raw else array.nbytes
            parts.append(Part(name, dtype_of(array).name, array.shape, 0, start, size))
            start += -(-size // ALIGN) * ALIGN
        number, memory = self._take(max(start, 1))
        for part in parts:
            if part.name in raw:
                memory[part.start : part.start + part.size] = raw[part.name]
            elif part.size:
                array = outputs[part.name]
                np.ndarray(part.shape, array.dtype, memory, part.start)[...] = array
        return [part._replace(segment=number) for part in parts]

    def _take(self, size: int) -> tuple[int, mmap.mmap]:
        for index, number in enumerate(self._free):
            if len(self._blocks[number]) >= size:
                del self._free[index]
                return number, self._blocks[number]
        if self._free:  # all too small
            self._drop(self._free.pop(0))
        length = rounded(size)
        fd = new_segment(length)
        self._numbers += 1
        memory = self._blocks[self._numbers] = mmap.mmap(fd, length, mmap.MAP_SHARED)
        self.opened.append((self._numbers, length))
        self.fds.append(fd)
        return self._numbers, memory

    def _drop(self, number: int) -> None:
        self._blocks.pop(number).close()
        self.closed.append(number)

    def sent(self) -> None:
        """The parent has the descriptors of `opened`, and knows of `closed`."""
        for fd in self.fds:
            os.close(fd)
        self.opened, self.closed, self.fds = [], [], []
