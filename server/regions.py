"""Shared memory of clients: registered by name, held as file descriptors, read and written as files.

Nothing is mapped: a client that cuts its region short would end the server (SIGBUS), a read of it comes up short. Nor is anything done by
multiprocessing.shared_memory, whose tracker removes the client's region. What is opened is a regular file right in /dev/shm, no link.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from server.errors import Denied, InvalidRequest, NotFound, Overloaded
from server.messages import RegionSlice

FOLDER = Path("/dev/shm")
MAX_REGION_NAME = 256
_KEY = re.compile(r"/?([^/\0]{1,254})")


class RegionRow(NamedTuple):
    """One registered region, as it was registered."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class RegionLimits:
    """How many regions clients may register, and how many bytes in all."""

    regions: int = 512
    bytes: int = 16 << 30


class _Region:
    """An open region. Its descriptor is closed with the last who uses it, so that no other file can take the number meanwhile."""

    __slots__ = ("fd", "row", "writable")

    def __init__(self, row: RegionRow, fd: int, *, writable: bool) -> None:
        self.row = row
        self.fd = fd
        self.writable = writable

    def __del__(self) -> None:
        os.close(self.fd)


class Extent:
    """A stretch of a region that is to be read or written; off the event loop too."""

    __slots__ = ("_at", "_region", "_start")

    def __init__(self, region: _Region, at: RegionSlice) -> None:
        self._region = region
        self._at = at
        self._start = region.row.offset + at.offset

    def read(self, into: memoryview) -> None:
        """Fill `into`. Raises InvalidRequest where the region isn't as long any more, or can't be read."""
        done = 0
        try:
            while done < len(into):
                count = os.preadv(self._region.fd, [into[done:]], self._start + done)
                if not count:
                    raise self._lost(f"ends after {self._start + done} bytes")
                done += count
        except OSError as error:
            raise self._lost(f"can't be read: {error.strerror}") from error

    def write(self, raw: bytes | memoryview) -> None:
        """Write `raw` to its beginning. Raises InvalidRequest where the region isn't as long any more, or can't be written."""
        if not self._region.writable:
            raise self._lost("was opened for reading only: its mode doesn't let this server write")
        try:
            length = os.fstat(self._region.fd).st_size
            if length < self._start + len(raw):  # writing would make it longer again
                raise self._lost(f"ends after {length} bytes")
            view, done = memoryview(raw), 0
            while done < len(view):
                done += os.pwrite(self._region.fd, view[done:], self._start + done)
        except OSError as error:
            raise self._lost(f"can't be written: {error.strerror}") from error

    def _lost(self, what: str) -> InvalidRequest:
        row, at = self._region.row, self._at
        return InvalidRequest(
            f"shared memory region '{row.name}' (key '{row.key}') {what}; bytes {at.offset} to {at.offset + at.size} of it were asked for"
        )


class Regions:
    """The registered regions. `allowed`: the server was started with --allow shared-memory."""

    def __init__(self, *, allowed: bool = False, limits: RegionLimits | None = None, folder: Path = FOLDER) -> None:
        self._allowed = allowed
        self._limits = limits or RegionLimits()
        self._folder = folder
        self._regions: dict[str, _Region] = {}

    def register(self, row: RegionRow) -> None:
        """Open a client's region. Raises Denied where shared memory isn't allowed here, InvalidRequest that says what is wrong with the
        region, and Overloaded where there are too many."""
        if not self._allowed:
            raise Denied("clients' shared memory is off here: start the server with --allow shared-memory")
        if not 0 < len(row.name) <= MAX_REGION_NAME:
            raise InvalidRequest(f"a shared memory region's name has 1 to {MAX_REGION_NAME} characters, got {len(row.name)}")
        if row.name in self._regions:
            raise InvalidRequest(f"shared memory region '{row.name}' already in manager; unregister it first")
        limits = self._limits
        if len(self._regions) >= limits.regions:
            raise Overloaded(f"{limits.regions} shared memory regions are registered", "limits.regions")
        if sum(region.row.byte_size for region in self._regions.values()) + row.byte_size > limits.bytes:
            raise Overloaded(f"shared memory regions take at most {limits.bytes} bytes together", "limits.region_bytes")
        self._regions[row.name] = _opened(row, self._folder)

    def unregister(self, name: str = "") -> None:
        """Forget a region, all of them without a name; one that isn't there is none the less gone. Reads that run end first."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> Sequence[RegionRow]:
        """The regions, or the one of this name. Raises NotFound."""
        if name:
            return (self._named(name).row,)
        return tuple(region.row for region in self._regions.values())

    def extent(self, at: RegionSlice) -> Extent:
        """A stretch of a region. Raises NotFound for an unknown region, InvalidRequest for a stretch that isn't within it."""
        region = self._named(at.region)
        size = region.row.byte_size
        if at.offset > size:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{at.region}' has {size} bytes, got offset {at.offset}")
        if at.offset + at.size > size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: '{at.region}' has {size} bytes, got {at.offset} + {at.size}"
            )
        return Extent(region, at)

    def _named(self, name: str) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name[:MAX_REGION_NAME]}'")
        return region


def _opened(row: RegionRow, folder: Path) -> _Region:
    found = _KEY.fullmatch(row.key)
    if found is None or found[1] in (".", ".."):
        raise InvalidRequest(f"the key of a shared memory region is the name of a file in {FOLDER}, without folders; got {row.key[:300]!r}")
    if row.offset < 0 or row.byte_size < 1:
        raise InvalidRequest(f"a shared memory region has an offset from 0 and bytes from 1, got {row.offset} and {row.byte_size}")
    fd, writable = _open(row, folder / found[1])
    region = _Region(row, fd, writable=writable)
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidRequest(f"shared memory region '{row.name}': key '{row.key}' isn't a regular file")
    if facts.st_size < row.offset + row.byte_size:
        raise InvalidRequest(
            f"shared memory region '{row.name}': key '{row.key}' has {facts.st_size} bytes, "
            f"fewer than the offset {row.offset} and the {row.byte_size} bytes that were given"
        )
    return region


def _open(row: RegionRow, path: Path) -> tuple[int, bool]:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last for what isn't a file: opening it must not wait
    try:
        try:
            return os.open(path, flags | os.O_RDWR), True
        except PermissionError:
            return os.open(path, flags | os.O_RDONLY), False
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"Unable to open shared memory region: '{row.key}' ({why})") from error
