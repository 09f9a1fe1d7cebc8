"""Recording: arrivals as JSON lines, and sampled tensors as npz, in a folder that never grows beyond its bound.

A thread of its own writes; the event loop pays for a queue's put. When the disk is slower than the requests, records are dropped and
counted, never requests. Files are the server's alone (0600 in a folder of 0700): tensors are what clients sent. docs/recording.md.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from queue import Empty, SimpleQueue
from random import random
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from server import config, ring
from server.errors import ConfigError
from server.messages import InferRequest
from server.ring import Event
from server.tensors import Tensor

QUEUED = 65_536  # arrivals that wait for the disk; beyond them they are dropped
QUEUED_BYTES = 64 << 20  # of tensors that wait with them
WRITTEN_AT_ONCE = 1024
SEGMENTS = 16  # a file of arrivals is closed at this part of max_bytes, so that little is lost when the oldest goes
CLOSE_TIMEOUT = 5.0
PATTERN = re.compile(r"(arrivals-([0-9]{8})\.jsonl|tensors-([0-9]{8})\.npz)")

log = logging.getLogger(__name__)


class Arrival(BaseModel):
    """One line of a recording: a request that reached a version, answered or refused. Its JSON Schema is docs/schemas/arrival.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    t: float = Field(ge=0, allow_inf_nan=False, description="Unix time at which its last byte came, by a clock that never goes back.")
    event: Literal["arrival"]
    model: str = Field(max_length=ring.MAX_TEXT)
    version: str = Field(default="", max_length=ring.MAX_TEXT, description="The version that it was routed to.")
    rows: int = Field(ge=1, le=65536)
    length: int = Field(default=1, ge=1, description="Cells that a row has along padded axes; 1 where nothing is padded.")
    priority: int = Field(default=0, ge=0, le=2**31, description="1 is the highest; 0 the lowest that the model has.")
    tenant: str = Field(default="", max_length=ring.MAX_TEXT)
    deadline: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Seconds from `t`; null where it has none.")
    tensors: str | None = Field(default=None, description="File beside this one that has its tensors, if they were sampled.")
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...] | None = Field(default=None, description="Name, datatype and shape of each.")


class _Job(NamedTuple):
    """One arrival; `request` is there where its tensors are wanted."""

    event: Event
    request: InferRequest | None
    size: int


class Recording:
    """`arrived` notes a request, in the event loop; `dropped` counts records that weren't written."""

    def __init__(self, folder: Folder, *, sample: float, tensors: bool, draw: Callable[[], float] = random) -> None:
        self.folder = folder
        self._sample = sample if tensors else 0.0
        self._draw = draw
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        # Each counter is written by one thread only: what waits is given - done.
        self._given = self._done = 0
        self._refused = self._lost = 0
        self._failing = False
        self._offset = ring.unix_offset()
        self._thread = threading.Thread(target=self._work, name="recording", daemon=True)
        self._thread.start()

    @classmethod
    def from_settings(cls, settings: config.Recording) -> Recording | None:
        """None where nothing is recorded. Raises ConfigError for a folder that can't be used."""
        if settings.dir is None:
            return None
        return cls(Folder(settings.dir, settings.max_bytes), sample=settings.sample, tensors=settings.tensors)

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def arrived(self, event: Event, request: InferRequest) -> None:
        """Note an arrival (an event of ring.FIELDS); its tensors too, for the share that is sampled."""
        if self._queue.qsize() >= QUEUED:
            self._refused += 1
            return
        if not self._sample or self._draw() >= self._sample:
            self._queue.put(_Job(event, None, 0))
            return
        size = sum(array.nbytes for array in request.inputs.values())
        if self._given - self._done + size > QUEUED_BYTES:
            self._refused += 1
            size, kept = 0, None
        else:
            kept = request
        self._given += size
        self._queue.put(_Job(event, kept, size))

    def close(self) -> None:
        """Write what waits, for at most CLOSE_TIMEOUT seconds."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        going = True
        while going:
            jobs = list(self._take())
            going = None not in jobs
            arrived = [job for job in jobs if job is not None]
            try:
                if arrived:
                    self.folder.append(b"".join(self._line(job) for job in arrived))
                self._failing = False
            except OSError as error:
                self._fail(error, len(arrived))
            self._done += sum(job.size for job in arrived)
            del jobs, arrived  # hold no request's memory while waiting for the next
        self.folder.close()

    def _take(self) -> Iterator[_Job | None]:
        """What waits, at most WRITTEN_AT_ONCE; one at least."""
        yield self._queue.get()
        try:
            for _ in range(WRITTEN_AT_ONCE - 1):
                yield self._queue.get_nowait()
        except Empty:
            return

    def _line(self, job: _Job) -> bytes:
        more: dict[str, Any] = {}
        if job.request is not None:
            try:
                more = {"tensors": self.folder.save(job.request.inputs), "inputs": job.request.layout.tensors}
            except OSError as error:
                self._fail(error, 1)
        return ring.line("arrival", job.event, self._offset, **more)

    def _fail(self, error: OSError, count: int) -> None:
        self._lost += count
        if not self._failing:
            self._failing = True
            log.warning("recording: %s: can't write: %s; records are dropped until it can", self.folder.path, error.strerror or error)


class Folder:
    """The files of recordings, oldest first; the oldest are deleted before `max_bytes` in all are passed. One thread uses it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Make the folder, or take one that's ours alone, with what it holds. Raises ConfigError."""
        self.path = path
        self.max_bytes = max_bytes
        try:
            self._lock = _own(path)
            found = sorted((int(match[2] or match[3]), match[1]) for name in os.listdir(path) if (match := PATTERN.fullmatch(name)))
            self._sizes = {name: (path / name).lstat().st_size for _, name in found}
        except OSError as error:
            raise ConfigError(f"recording.dir: {path}: can't be used: {error.strerror or error}") from error
        self._next = found[-1][0] + 1 if found else 1
        self._open: FileIO | None = None
        self._name = ""
        self.used = sum(self._sizes.values())

    def append(self, lines: bytes) -> None:
        """Add whole lines to the open file of arrivals, or to a new one. Raises OSError."""
        if self._open is not None and self._sizes[self._name] + len(lines) > self.max_bytes // SEGMENTS:
            self._close_segment()
        if self._open is None:
            self._name, self._open = self._create("arrivals", "jsonl")
            lines = ring.head("recording", config.VERSION) + lines
        self._make_room(len(lines))
        try:
            _write_all(self._open, lines)
        except OSError:
            self._close_segment()  # a line may be cut short: the next one begins a file
            raise
        self._grow(self._name, len(lines))

    def save(self, inputs: Mapping[str, Tensor]) -> str:
        """Write one request's tensors; the file's name. Raises OSError."""
        self._make_room(sum(array.nbytes for array in inputs.values()) + 1024 * (len(inputs) + 1))
        name, file = self._create("tensors", "npz")
        with file:
            write_npz(file, inputs)
            size = file.tell()
        self._grow(name, size)
        return name

    def close(self) -> None:
        """Close the open file and let another server have the folder."""
        self._close_segment()
        os.close(self._lock)

    def _create(self, kind: str, suffix: str) -> tuple[str, FileIO]:
        name = f"{kind}-{self._next:08d}.{suffix}"
        file = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._next += 1
        self._sizes[name] = 0
        return name, FileIO(file, "wb")

    def _grow(self, name: str, size: int) -> None:
        self._sizes[name] += size
        self.used += size

    def _make_room(self, size: int) -> None:
        """Delete the oldest files, but for the one that is open, until `size` more bytes fit."""
        for name in list(self._sizes):
            if self.used + size <= self.max_bytes:
                return
            if name != self._name or self._open is None:
                (self.path / name).unlink(missing_ok=True)
                self.used -= self._sizes.pop(name)
        if self.used + size > self.max_bytes:
            raise OSError(f"{size} bytes don't fit into recording.max_bytes ({self.max_bytes})")

    def _close_segment(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def write_npz(file: FileIO, inputs: Mapping[str, Tensor]) -> None:
    """Arrays by quoted name, as numpy.load reads them without pickle: BYTES as in the protocol's binary form (UINT8: for each element four
    bytes of length, little-endian, and its bytes), BF16 as UINT16."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in inputs.items():
            with archive.open(f"{quote(name, safe='')}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(array), allow_pickle=False)


def _plain(array: Tensor) -> Tensor:
    if array.dtype == object:
        return np.frombuffer(b"".join(len(item).to_bytes(4, "little") + item for item in array.flat), np.uint8)
    plain = np.ascontiguousarray(array)
    return plain.view(np.uint16) if plain.dtype == ml_dtypes.bfloat16 else plain


def _own(path: Path) -> int:
    """A descriptor of the folder, made if there's none, that holds it against other servers. Raises ConfigError, OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    mode = stat.S_IMODE(os.fstat(folder).st_mode)
    try:
        if mode & 0o077:
            raise ConfigError(f"recording.dir: {path}: mode {mode:04o} lets others at it; expected 0700: chmod 700 {path}")
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ConfigError(f"recording.dir: {path}: another server records there; give each server a folder of its own") from None
    except ConfigError:
        os.close(folder)
        raise
    return folder


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
