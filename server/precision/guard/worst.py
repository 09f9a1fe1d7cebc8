"""The worst samples of a version in files, for people to look at: only where the operator asks for it, bounded, and gone after a while.

A file is npz (see server.recording): the inputs that aren't redacted, the variant's outputs and FP32's. It's ours alone (0600 in a folder
of 0700): tensors are what clients sent. The folder is all the state there is. Everything here blocks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from io import FileIO
from pathlib import Path
from time import time

from server.precision.guard.record import Comparison
from server.precision.guard.sampling import Sample
from server.recording import write_npz
from server.tensors import Tensor

MOST_BYTES = 256 << 20  # of all files of a version
MOST_SCORE = 1e6
PATTERN = re.compile(r"[0-9]{7}\.[0-9]{6}-[A-Za-z0-9_]{1,32}-[0-9]+\.npz")


class Worst:
    """At most `most` files in `folder`, none older than `keep_for` seconds; inputs named in `redact` are never in them."""

    def __init__(self, folder: Path, most: int, keep_for: float, redact: Collection[str] = ()) -> None:
        self.folder = folder
        self._most = most
        self._keep_for = keep_for
        self._redact = frozenset(redact)

    def keep(self, sample: Sample, reference: Mapping[str, Tensor], found: Comparison) -> Path | None:
        """Write a sample, unless as many worse ones are there. Raises OSError."""
        score = found.max_relative if found.divergence is None else found.divergence
        name = f"{min(score, MOST_SCORE):014.6f}-{sample.precision}-{time():.0f}.npz"
        kept = self._kept()
        if len(kept) >= self._most and name <= kept[0].name:
            return None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / name
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # as bad, in the same second
            return None
        inputs = {f"input:{key}": array for key, array in sample.inputs.items() if key not in self._redact}
        outputs = {f"answer:{key}": array for key, array in sample.outputs.items()}
        with FileIO(file, "wb") as stream:
            write_npz(stream, {**inputs, **outputs, **{f"fp32:{key}": reference[key] for key in sample.outputs}})
        self._bound([*kept, path])
        return path if path.exists() else None

    def expire(self) -> None:
        """Remove what is too old. Raises OSError."""
        self._kept()

    def purge(self) -> int:
        """Remove all; how many there were. Raises OSError."""
        found = self._files()
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _kept(self) -> list[Path]:
        """What isn't too old, the least bad first."""
        kept = []
        for path in self._files():
            if path.stat().st_mtime < time() - self._keep_for:
                path.unlink(missing_ok=True)
            else:
                kept.append(path)
        return kept

    def _bound(self, kept: list[Path]) -> None:
        """Remove the least bad beyond the bounds."""
        kept.sort(key=lambda path: path.name)
        sizes = [path.stat().st_size for path in kept]
        while kept and (len(kept) > self._most or sum(sizes) > MOST_BYTES):
            kept.pop(0).unlink(missing_ok=True)
            del sizes[0]

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if PATTERN.fullmatch(path.name))
