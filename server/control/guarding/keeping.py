"""The folder of the worst samples: below recording.dir, so that nothing is kept where nothing is recorded. Blocks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from server.precision.guard.worst import Worst
from server.repository.declare.precision import Guard as Settings
from server.router.table import ServedVersion

WORST = "worst"


class Keeping:
    """`folder` is recording.dir, None where there's none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def worst_of(self, served: ServedVersion, settings: Settings) -> Worst | None:
        """Where a version's are kept; None where they mayn't be."""
        if self._folder is None or not settings.keep_worst:
            return None
        return Worst(self._of(served.model) / served.version, settings.keep_worst, settings.keep_for, settings.redact)

    def purge(self, name: str) -> int:
        """Remove those of all versions of a model, also of some that are gone; how many there were. Raises OSError."""
        if self._folder is None or not self._of(name).is_dir():
            return 0
        return sum(Worst(each, 0, 0.0).purge() for each in sorted(self._of(name).iterdir()))

    def expire(self, several: Iterable[Worst]) -> None:
        """Remove those that are too old."""
        for worst in several:
            with suppress(OSError):  # said when one is written
                worst.expire()

    def _of(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / WORST / quote(name, safe="")
