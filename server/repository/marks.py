"""Has a model's folder changed? A Mark is what its files look like from outside; a Watcher says which models' files are new and at rest.

Contents aren't read: a file that is written over with the same size, time and inode looks unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

Mark: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Of each file its path below the model's folder, size, time of change in ns, inode."""
MAX_FILES = 10_000
MAX_DEPTH = 8


def mark_of(folder: Path, version: str | None = None) -> Mark:
    """The mark of a model's folder; with `version` only of what that version is made of: its own files and those beside the versions."""
    files = _files(folder, "", MAX_DEPTH)
    kept = (file for file in files if version is None or _belongs(file[0].partition("/")[0], version))
    return tuple(sorted(file for _, file in zip(range(MAX_FILES), kept, strict=False)))


def _belongs(top: str, version: str) -> bool:
    return top == version or not top.isdecimal()


def _files(folder: Path | str, above: str, depth: int) -> Iterator[tuple[str, int, int, int]]:
    """What can't be looked at is left out: it may be gone by now."""
    try:
        found = list(os.scandir(folder))
    except OSError:
        return
    for item in found:
        if item.name.startswith("."):
            continue
        try:
            if item.is_dir():
                if depth:
                    yield from _files(item.path, f"{above}{item.name}/", depth - 1)
                continue
            status = item.stat()
        except OSError:
            continue
        yield f"{above}{item.name}", status.st_size, status.st_mtime_ns, status.st_ino


class Watcher:
    """Which models must be loaded again or are gone, from one look at their marks to the next.

    A model counts as changed once it looks the same twice, so that one that is still being written is left alone.
    """

    def __init__(self, known: Mapping[str, Mark]) -> None:
        """`known` are the models as they were loaded."""
        self._known = dict(known)
        self._last = dict(known)

    def changed(self, marks: Mapping[str, Mark]) -> list[str]:
        """The models that changed since they were last named here and are at rest; those that are gone too."""
        names = sorted(marks.keys() | self._last.keys() | self._known.keys())
        resting = [name for name in names if marks.get(name) == self._last.get(name)]
        due = [name for name in resting if marks.get(name) != self._known.get(name)]
        for name in due:
            if name in marks:
                self._known[name] = marks[name]
            else:
                del self._known[name]
        self._last = dict(marks)
        return due
