"""What a user's model prints, as lines of the log on stderr: JSON as the server's own are, plain text on a terminal."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime

MAX_LINE = 2048


class Printed(io.TextIOBase):
    """Stands in for sys.stdout in a lane's process. Each line is written at once, whole, with the model's name."""

    def __init__(self, model: str, version: str) -> None:
        self._facts = {"model": model, "version": version}
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write the lines that `text` ends; keep what follows them for the next."""
        *lines, self._rest = (self._rest + text).split("\n")
        while len(self._rest) > MAX_LINE:
            lines.append(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]
        if lines:
            sys.stderr.write("".join(self._rendered(line[:MAX_LINE]) for line in lines if line))
            sys.stderr.flush()
        return len(text)

    def _rendered(self, line: str) -> str:
        if sys.stderr.isatty():
            return f"{self._facts['model']}/{self._facts['version']}: {line}\n"
        event = {"level": "info", "event": "model_printed", **self._facts, "text": line}
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"timestamp": stamp, **event}) + "\n"
