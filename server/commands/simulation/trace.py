"""Traces of arrivals, as the recording and `tidegate incident capture` write them: read line by line, and said where a line is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from server.errors import ConfigError
from server.recording import Arrival
from server.ring import SCHEMA_VERSION
from server.validation import complaints

HEADS = ("recording", "incident")
TOLD = ("arrival", "batch")
"""Events that a trace is made of; others are passed over."""

SEGMENTS = "arrivals-*.jsonl"
MAX_LINE = 1 << 20


class Batch(NamedTuple):
    """A run that the trace tells of."""

    rows: int
    length: int
    seconds: float


@dataclass(slots=True)
class Trace:
    """Arrivals of one model in order of time, the runs that were seen of it, and the end of a file that was cut short, if any."""

    model: str
    arrivals: list[Arrival] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    cut_short: str = ""

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.arrivals[-1].t - self.arrivals[0].t if self.arrivals else 0.0


def read_trace(path: Path, only: str | None = None) -> Trace:
    """The trace in a file, or in a folder of recordings; `only` is NAME or NAME/VERSION. Raises ConfigError with file and line."""
    found = Trace(only or "")
    models: set[str] = set()
    for file in _files(path):
        for number, line, whole in _lines(file):
            values = _parsed(file, number, line, whole)
            if values is None:
                found.cut_short = f"{file}:{number}"
                continue
            if values["event"] == "arrival":
                models.add(str(values.get("model")))
            if values["event"] in TOLD and _is_of(values, only):
                _take(file, number, values, found)
    if not found.arrivals:
        asked = f" of {only!r}; it has {', '.join(sorted(models)) or 'none at all'}" if only else ""
        raise ConfigError(f"{path}: no arrivals{asked}")
    if only is None and len(models) > 1:
        raise ConfigError(f"{path}: has {', '.join(sorted(models))}; choose one: --only NAME")
    found.model = only or next(iter(models))
    found.arrivals.sort(key=lambda arrival: arrival.t)
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob(SEGMENTS))
    if not files:
        raise ConfigError(f"{path}: no {SEGMENTS} in this folder; recording.dir of server.yaml says where recordings are")
    return files


def _lines(file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number, bytes and whether it ends as a line should."""
    try:
        with file.open("rb") as opened:
            number = 0
            while line := opened.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise ConfigError(f"{file}:{number}: a line of more than {MAX_LINE} bytes")
                if line.strip():
                    yield number, line, line.endswith(b"\n")
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror or error}") from error


def _parsed(file: Path, number: int, line: bytes, whole: bool) -> dict[str, Any] | None:
    """The event in a line; None for the last line of a file that was cut short."""
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not whole and number > 1:
            return None
        raise ConfigError(f"{file}:{number}: not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        raise ConfigError(f"{file}:{number}: expected an object with `event`, such as arrival; got {str(values)[:64]!r}")
    if values["event"] in HEADS and values.get("schema") != SCHEMA_VERSION:
        raise ConfigError(f"{file}:{number}: schema {values.get('schema')!r}; this release reads {SCHEMA_VERSION}")
    return values


def _is_of(values: dict[str, Any], only: str | None) -> bool:
    return only is None or only in (values.get("model"), f"{values.get('model')}/{values.get('version')}")


def _take(file: Path, number: int, values: dict[str, Any], found: Trace) -> None:
    try:
        if values["event"] == "arrival":
            found.arrivals.append(Arrival.model_validate(values))
        else:
            rows, length, seconds = int(values["rows"]), int(values["length"]), float(values["compute_s"])
            if min(rows, length) >= 1 and seconds > 0:
                found.batches.append(Batch(rows, length, seconds))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, key))}: {text}" for key, text in complaints(Arrival, error)]
        raise ConfigError(f"{file}:{number}: {'; '.join(wrong)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}:{number}: not a batch of an incident: {error!r}") from error
