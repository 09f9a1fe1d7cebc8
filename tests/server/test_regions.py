"""Clients' regions as files: what may be registered, and what is said of a region that isn't what it was."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from server.errors import Denied, InvalidRequest, NotFound, Overloaded
from server.messages import RegionSlice
from server.regions import FOLDER, RegionLimits, RegionRow, Regions


def made(folder: Path, name: str = "r", content: bytes = bytes(range(64))) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def row(key: str = "/r", offset: int = 0, size: int = 64, name: str = "region") -> RegionRow:
    return RegionRow(name, key, offset, size)


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    made(tmp_path)
    return Regions(allowed=True, folder=tmp_path)


def read(regions: Regions, offset: int = 0, size: int = 4, name: str = "region") -> bytes:
    block = bytearray(size)
    regions.extent(RegionSlice(name, offset, size)).read(memoryview(block))
    return bytes(block)


def test_a_region_is_read_and_written_from_its_offset(regions: Regions, tmp_path: Path) -> None:
    regions.register(row(offset=16, size=48))
    assert regions.status() == regions.status("region") == (row(offset=16, size=48),)
    assert read(regions, 4, 3) == bytes((20, 21, 22))
    regions.extent(RegionSlice("region", 44, 4)).write(b"last")
    assert (tmp_path / "r").read_bytes() == bytes(range(60)) + b"last"


def test_the_folder_is_shared_memorys() -> None:
    assert Path("/dev/shm") == FOLDER


@pytest.mark.parametrize(
    ("key", "offset", "size", "text"),
    [
        ("", 0, 1, "the name of a file in /dev/shm"),
        ("/", 0, 1, "the name of a file in /dev/shm"),
        ("..", 0, 1, "the name of a file in /dev/shm"),
        ("/.", 0, 1, "the name of a file in /dev/shm"),
        ("../r", 0, 1, "the name of a file in /dev/shm"),
        ("/sub/r", 0, 1, "the name of a file in /dev/shm"),
        ("//r", 0, 1, "the name of a file in /dev/shm"),
        ("a\0b", 0, 1, "the name of a file in /dev/shm"),
        ("n" * 300, 0, 1, "the name of a file in /dev/shm"),
        ("\ud800", 0, 1, "Unable to open shared memory region"),
        ("/nothing", 0, 1, "Unable to open shared memory region: '/nothing' (No such file or directory)"),
        ("/link", 0, 1, "Unable to open shared memory region: '/link'"),
        ("/sub", 0, 1, "Unable to open shared memory region: '/sub'"),
        ("/pipe", 0, 1, "isn't a regular file"),
        ("/r", -1, 1, "offset from 0 and bytes from 1, got -1 and 1"),
        ("/r", 0, 0, "offset from 0 and bytes from 1, got 0 and 0"),
        ("/r", 0, 65, "has 64 bytes, fewer than the offset 0 and the 65 bytes"),
        ("/r", 60, 8, "has 64 bytes, fewer than the offset 60 and the 8 bytes"),
        ("/r", 2**70, 8, "has 64 bytes"),
    ],
)
def test_what_is_no_region(regions: Regions, tmp_path: Path, key: str, offset: int, size: int, text: str) -> None:
    (tmp_path / "sub").mkdir()
    made(tmp_path / "sub")
    (tmp_path / "link").symlink_to(tmp_path / "r")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest) as caught:
        regions.register(row(key, offset, size))
    assert text in str(caught.value)
    assert regions.status() == ()


def test_names(regions: Regions) -> None:
    regions.register(row())
    with pytest.raises(InvalidRequest, match="shared memory region 'region' already in manager"):
        regions.register(row())
    for name in ("", "n" * 300):
        with pytest.raises(InvalidRequest, match="name has 1 to 256 characters"):
            regions.register(row(name=name))
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'other'"):
        regions.status("other")
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'other'"):
        read(regions, name="other")


def test_stretches_lie_within_their_region(regions: Regions) -> None:
    regions.register(row(size=32))
    assert read(regions, 28, 4) == bytes((28, 29, 30, 31))
    with pytest.raises(InvalidRequest, match=r"Invalid offset \+ byte size for shared memory region: 'region' has 32 bytes, got 28 \+ 5"):
        read(regions, 28, 5)
    with pytest.raises(InvalidRequest, match="Invalid offset for shared memory region: 'region' has 32 bytes, got offset 33"):
        read(regions, 33, 0)


def test_off_unless_it_is_allowed(tmp_path: Path) -> None:
    made(tmp_path)
    regions = Regions(folder=tmp_path)
    with pytest.raises(Denied, match="--allow shared-memory"):
        regions.register(row())
    regions.unregister()
    assert regions.status() == ()


def test_regions_are_bounded(tmp_path: Path) -> None:
    made(tmp_path)
    regions = Regions(allowed=True, folder=tmp_path, limits=RegionLimits(2, 100))
    regions.register(row(name="a"))
    with pytest.raises(Overloaded, match=r"limits\.region_bytes"):
        regions.register(row(name="b"))
    regions.register(row(name="b", size=36))
    with pytest.raises(Overloaded, match=r"limits\.regions"):
        regions.register(row(name="c", size=1))
    regions.unregister("a")
    regions.register(row(name="c", size=1))


def test_a_region_that_shrinks(regions: Regions, tmp_path: Path) -> None:
    regions.register(row())
    os.truncate(tmp_path / "r", 10)
    assert read(regions, 4, 6) == bytes(range(4, 10))
    with pytest.raises(InvalidRequest, match=r"shared memory region 'region' \(key '/r'\) ends after 10 bytes; bytes 8 to 12 of it were"):
        read(regions, 8, 4)
    with pytest.raises(InvalidRequest, match="ends after 10 bytes"):
        regions.extent(RegionSlice("region", 8, 4)).write(b"abcd")
    assert (tmp_path / "r").stat().st_size == 10  # writing didn't make it longer


def test_a_region_whose_name_is_gone_is_still_the_one_that_was_registered(regions: Regions, tmp_path: Path) -> None:
    regions.register(row())
    (tmp_path / "r").unlink()
    made(tmp_path, content=bytes(64))
    assert read(regions, 1, 2) == b"\x01\x02"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_region_that_may_only_be_read(regions: Regions, tmp_path: Path) -> None:
    (tmp_path / "r").chmod(0o400)
    regions.register(row())
    assert read(regions) == bytes(range(4))
    with pytest.raises(InvalidRequest, match="was opened for reading only"):
        regions.extent(RegionSlice("region", 0, 1)).write(b"x")


def test_descriptors_are_closed_with_their_last_user(regions: Regions) -> None:
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for number in range(20):
        regions.register(row(name=f"r{number}"))
    assert count() == before + 20
    extent = regions.extent(RegionSlice("r7", 0, 4))
    regions.unregister()
    assert count() == before + 1
    block = bytearray(4)
    extent.read(memoryview(block))
    assert block == bytes(range(4))
    del extent
    assert count() == before
    for key in ("/nothing", "..", "/r"):
        with pytest.raises(InvalidRequest):
            regions.register(row(key, size=1000))
    assert count() == before
