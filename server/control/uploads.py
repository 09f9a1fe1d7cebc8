"""Models that come with a request: their files are written to a folder of the server's own, never into the repository.

A file's name is relative and leads nowhere else; a model is there whole or not at all; and all of it ends with the server.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from server.errors import InvalidRequest, Unavailable
from server.repository.store import is_model_name

MAX_NAME = 512
MAX_PARTS = 8
PREFIX = "tidegate-uploads-"
PLACE = re.compile(rf"[^\s'\"]*/{PREFIX}[^/\s]+/\d+/")
"""What a path to an uploaded file begins with, which is nobody else's business."""
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")


def check_name(name: str) -> None:
    """Raises InvalidRequest unless a file's name leads to a place below its model's folder."""
    parts = name.split("/")
    if len(name) > MAX_NAME or len(parts) > MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidRequest(
            f"file:{name[:80]}: expected a relative path such as 1/model.onnx, of at most {MAX_PARTS} names of letters, digits, "
            "'_', '-' and '.', none of which begins with '.'"
        )


class Uploads:
    """The folder. Made when the first model comes. Everything here blocks: call it off the loop."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._numbers = count()

    def keep(self, model: str, files: Mapping[str, bytes]) -> Path:
        """Write a model's files; the folder in which it lies, alone. Raises InvalidRequest, Unavailable where the disk is full."""
        if not is_model_name(model):
            raise InvalidRequest(f"{model[:80]!r} can't be a model's name: letters, digits, '_', '-' and '.', not first '.'")
        try:
            self._folder = self._folder or Path(tempfile.mkdtemp(prefix=PREFIX))
        except OSError as error:
            raise Unavailable(f"no folder for the model's files: {error.strerror or error}") from error
        place = self._folder / str(next(self._numbers))
        staged = place.with_name(f".{place.name}")
        try:
            _write(staged / model, files)
            return staged.rename(place)
        except (FileExistsError, NotADirectoryError) as error:
            self.drop(staged)
            raise InvalidRequest("of two files one has the other's name for a folder's") from error
        except OSError as error:
            self.drop(staged)
            raise Unavailable(f"the model's files can't be kept: {error.strerror or error}") from error

    def drop(self, place: Path) -> None:
        """Forget a model's files."""
        shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        """Remove the whole folder."""
        if self._folder is not None:
            self.drop(self._folder)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as opened:
            opened.write(content)
