"""A GPU in plain memory: the seam server.backends.nvidia.cuda.Gpu for tests. It counts what is taken, and fails where it's told to.

Copies are done when the stream is waited for, so that code which reads before the wait reads nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

from server.backends.nvidia.cuda import DeviceFacts
from server.errors import DeviceMemory

T4 = DeviceFacts("Tesla T4", "7.5", "13.0", 16 << 30)


@dataclass
class FakeGpu:
    """`capacity` is what allocate() gives at most; `on_wait` is called, once, in the next wait."""

    capacity: int = 1 << 30
    device: DeviceFacts = T4
    on_wait: Callable[[], None] | None = None
    held: dict[int, ctypes.Array[ctypes.c_char]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    pending: list[Callable[[], None]] = field(default_factory=list)
    taken: int = 0
    waits: int = 0

    def use(self) -> None: ...

    def facts(self) -> DeviceFacts:
        return self.device

    def free_memory(self) -> int:
        return self.capacity - self.taken

    def allocate(self, size: int) -> int:
        if self.taken + size > self.capacity:
            raise DeviceMemory(f"device cuda:0: cudaErrorMemoryAllocation (out of memory), {size} bytes were asked for")
        self.taken += size
        return self.allocate_pinned(size)

    def free(self, address: int) -> None:
        self.taken -= len(self.held[address])
        self.free_pinned(address)

    def allocate_pinned(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free_pinned(self, address: int) -> None:
        del self.held[address]

    def stream(self) -> int:
        self.streams.add(len(self.streams) + 1)
        return len(self.streams)

    def close_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        self.pending.append(lambda: _copy(target, source, size))

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        self.pending.append(lambda: _copy(target, source, size))

    def wait(self, stream: int) -> None:
        self.waits += 1
        if self.on_wait is not None:
            failing, self.on_wait = self.on_wait, None
            self.pending = []
            failing()
        self.flush()

    def flush(self) -> None:
        """Do what the stream was given."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()


def _copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)
