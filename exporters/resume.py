"""Finished steps, kept by the hash of all that went into them, so that an export which is run again doesn't do them again.

Only files are kept, never a proof: what's used again is admitted and proved like what was just made. A folder outside of any
repository holds them, the least used go first, and a disk that's full costs the keeping, not the export.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from exporters.disk.onnx_files import data_of, place
from server.repository.manifest import file_sha256

MOST_BYTES = 4 << 30


def finished_folder() -> Path:
    """Where they lie: tidegate's folder of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate" / "export"


@dataclass(frozen=True, slots=True)
class Finished:
    """`home` None: nothing is kept, nothing used again."""

    home: Path | None

    def file(self, target: Path, source: Path, made_by: Iterable[object], make: Callable[[], None]) -> bool:
        """Have `make` write `target` from `source`, unless that was done before by the same means. Returns whether it was used again."""
        if self.home is None:
            make()
            return False
        parts = [file_sha256(part) for part in (source, data_of(source)) if part.is_file()]
        means = json.dumps([*parts, target.suffix, *map(str, made_by)])
        key = hashlib.sha256(means.encode()).hexdigest()
        before = self.home / key / "file"
        if before.is_file():
            place(before, target)
            with contextlib.suppress(OSError):
                os.utime(before.parent)
            return True
        make()
        self.keep(key, {"file": target, "file.data": data_of(target)})
        return False

    def keep(self, key: str, files: dict[str, Path]) -> None:
        """Keep files under a key, whole or not at all, and let go of the least used."""
        if self.home is None or not key or (self.home / key).exists():
            return
        staging = self.home / f".{secrets.token_hex(6)}.partial"
        try:
            staging.mkdir(parents=True)
            for name, source in files.items():
                if source.is_file():
                    shutil.copyfile(source, staging / name)
            staging.rename(self.home / key)
            _let_go(self.home)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _let_go(home: Path) -> None:
    entries = sorted((entry for entry in home.iterdir() if not entry.name.startswith(".")), key=lambda entry: -entry.stat().st_mtime)
    size = 0
    for entry in entries:
        size += sum(file.stat().st_size for file in entry.iterdir())
        if size > MOST_BYTES:
            shutil.rmtree(entry, ignore_errors=True)
