"""What counts as a change of a model's folder, and when it's acted on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.repository.marks import Mark, Watcher, mark_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1/model.onnx", "2/model.onnx", "2/data/weights", "model.yaml", "labels.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "versions"),
    [
        ("1/model.onnx", {"1"}),
        ("2/data/weights", {"2"}),
        ("2/more", {"2"}),
        ("model.yaml", {"1", "2"}),
        ("code.py", {"1", "2"}),
        ("1/.new", set()),
    ],
)
def test_what_each_version_is_made_of(folder: Path, changed: str, versions: set[str]) -> None:
    before = {version: mark_of(folder, version) for version in ("1", "2")}
    whole = mark_of(folder)
    (folder / changed).write_text("something else")
    assert {version for version in before if mark_of(folder, version) != before[version]} == versions
    assert (mark_of(folder) != whole) == bool(versions)


def test_a_file_renamed_into_place_is_a_change_whatever_its_size_and_time(folder: Path) -> None:
    file = folder / "1" / "model.onnx"
    before, status = mark_of(folder), file.stat()
    other = folder / ".new"
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)
    assert mark_of(folder) != before


def test_what_is_not_there_or_leads_nowhere(folder: Path) -> None:
    assert mark_of(folder / "nobody") == ()
    before = mark_of(folder)
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    assert len(mark_of(folder)) >= len(before)


Marks = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2).map(lambda number: (("f", number, 0, 0),)), max_size=3)


@given(start=Marks, looks=st.lists(Marks, max_size=8))
def test_each_change_is_named_once_and_only_at_rest(start: dict[str, Mark], looks: list[dict[str, Mark]]) -> None:
    watcher, acted, last = Watcher(start), dict(start), dict(start)
    for marks in looks:
        named = watcher.changed(marks)
        for name in named:
            assert marks.get(name) == last.get(name), "it had come to rest"
            assert marks.get(name) != acted.get(name), "it's another than the one that was acted on"
            acted.pop(name, None)
            if name in marks:
                acted[name] = marks[name]
        last = marks
    settled = watcher.changed(last)
    acted = {name: last[name] for name in last}
    assert watcher.changed(last) == []
    assert set(settled) <= set("abc")
    assert acted == last
