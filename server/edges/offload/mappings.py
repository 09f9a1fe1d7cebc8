"""The helper's results as this process sees them: mapped, not copied, and unmapped in a thread of their own. To unmap 10 MB takes 2 ms,
and the last view of a result dies in the event loop."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import weakref
from queue import SimpleQueue

import numpy as np

from server.edges.offload.json_child import SEALS, map_body
from server.timeslice import LONG, take_turns

LEAST = 512 * 1024  # bytes from which it's worth telling the thread


class Mappings:
    """Maps results. `close` ends the thread; what lives longer is unmapped where its last view dies."""

    def __init__(self) -> None:
        self._dead: SimpleQueue[mmap.mmap | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def view(self, fd: int, size: int) -> memoryview:
        """The result, read-only. Its seals say that nobody can shorten or change it under our feet. Raises OSError."""
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS or os.fstat(fd).st_size != size:
            raise OSError(f"expected {size} sealed bytes, got {os.fstat(fd).st_size}")
        if size < LEAST or self._closed:
            return map_body(fd, size)
        if self._thread is None:
            self._thread = threading.Thread(target=self._unmap, name="unmap", daemon=True)
            self._thread.start()
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        array = np.frombuffer(mapping, np.uint8)  # all views of it hold it; it's told of when the last has died
        weakref.finalize(array, self._died, mapping).atexit = False
        return array.data

    def _died(self, mapping: mmap.mmap) -> None:
        if not self._closed:
            self._dead.put(mapping)

    def close(self) -> None:
        self._closed = True
        self._dead.put(None)
        if self._thread is not None:
            self._thread.join()

    def _unmap(self) -> None:
        take_turns(LONG)
        while (mapping := self._dead.get()) is not None:
            del mapping
