"""Results of the helper in this process's memory: read as they are, and given back off the loop."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from server.edges.offload.json_child import SEALS, new_memfd, write_all
from server.edges.offload.mappings import LEAST, Mappings

CONTENT = bytes(range(256)) * (LEAST // 128)


@pytest.fixture
def mappings() -> Iterator[Mappings]:
    made = Mappings()
    yield made
    made.close()


def sealed(content: bytes) -> int:
    fd = new_memfd()
    write_all(fd, (content,))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def mapped() -> int:
    return sum("tidegate-json" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("content", [CONTENT[:1000], CONTENT], ids=["small", "large"])
def test_a_result_lives_as_long_as_its_last_view(mappings: Mappings, content: bytes) -> None:
    before = mapped()
    fd = sealed(content)
    part = mappings.view(fd, len(content))[100:900]
    os.close(fd)
    assert part == content[100:900]
    assert part.readonly
    assert mapped() == before + 1
    del part
    end = monotonic() + 20
    while mapped() > before:
        assert monotonic() < end
        sleep(0.001)


def test_it_is_not_the_last_views_thread_that_unmaps(mappings: Mappings) -> None:
    fd = sealed(CONTENT)
    views = [mappings.view(fd, len(CONTENT)) for _ in range(3)]
    os.close(fd)
    assert [thread.name for thread in threading.enumerate()].count("unmap") == 1
    views.clear()
    mappings.close()
    assert "unmap" not in [thread.name for thread in threading.enumerate()]


def test_after_the_end_views_are_still_right(mappings: Mappings) -> None:
    fd = sealed(CONTENT)
    before = mapped()
    one = mappings.view(fd, len(CONTENT))
    mappings.close()
    other = mappings.view(fd, len(CONTENT))
    os.close(fd)
    assert one == other == CONTENT
    del one, other
    assert mapped() == before


@pytest.mark.parametrize("claimed", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_result_of_another_size_is_refused(mappings: Mappings, claimed: int) -> None:
    fd = sealed(CONTENT)
    with pytest.raises(OSError, match=f"expected {claimed} sealed bytes, got {len(CONTENT)}"):
        mappings.view(fd, claimed)
    os.close(fd)


def test_one_that_can_be_changed_is_refused(mappings: Mappings) -> None:
    fd = new_memfd()
    write_all(fd, (CONTENT,))
    with pytest.raises(OSError, match="sealed"):
        mappings.view(fd, len(CONTENT))
    os.close(fd)
