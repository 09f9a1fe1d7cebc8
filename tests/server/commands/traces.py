"""Small traces for tests: arrivals as a recording or an incident has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = {"event": "recording", "schema": 1, "server": "1.0", "at": "2026-01-01T00:00:00+00:00"}
START = 1_700_000_000.0


def arrival(t: float, **changes: Any) -> dict[str, Any]:
    fields = {"model": "m", "version": "1", "rows": 1, "length": 1, "priority": 0, "tenant": "", "deadline": None}
    return {"t": START + t, "event": "arrival", **fields, **changes}


def batch(t: float, rows: int, seconds: float, length: int = 1) -> dict[str, Any]:
    return {"t": START + t, "event": "batch", "model": "m", "version": "1", "rows": rows, "length": length, "compute_s": seconds}


def write(path: Path, events: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path
