"""Latency tables: how long a device takes for a run of so many rows, as somebody published it. Emulation and simulation read them.

A table is YAML of one form (docs/emulated.md): `models.NAME.PRECISION` has `fit` (T(b) = alpha + beta * b), `latency_ms` by rows, or
both; where there's a fit it's used, else the points are joined by lines. The file has milliseconds, here are seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.documents import Document, read_yaml
from server.errors import ConfigError, TidegateError
from server.validation import complaints, nearest

BUILT_IN: Mapping[str, Path] = {"t4": Path(__file__).with_name("t4_latency.yaml")}
"""Tables that come with the server, by name."""

_ABOUT_MODEL = frozenset(("source", "sequence_length"))
_MS = 1e-3

M = TypeVar("M", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Part):
    """What was measured. Only the name is used here; the rest is for people."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1, max_length=128)


class Noise(_Part):
    """How service time varies: a half-normal of `service_sigma` of it on top and, now and then, a run that takes `spike_factor` as long."""

    service_sigma: float = Field(default=0.0, ge=0, le=1)
    spike_probability: float = Field(default=0.0, ge=0, le=1)
    spike_factor: float = Field(default=1.0, ge=1, le=1000)


class Fit(_Part):
    """T(b) = alpha + beta * b, in ms; `max_rel_err` says how far it is from the points at worst."""

    alpha: float = Field(ge=0)
    beta: float = Field(ge=0)
    max_rel_err: float | None = None

    @model_validator(mode="after")
    def _takes_time(self) -> Fit:
        if self.alpha + self.beta <= 0:
            raise ValueError("alpha and beta are both 0: a run must take some time")
        return self


class Figures(_Part):
    """One precision of one model."""

    latency_ms: dict[int, float] = {}
    fit: Fit | None = None
    source: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Figures:
        if self.fit is None and not self.latency_ms:
            raise ValueError("expected fit: {alpha: …, beta: …} or latency_ms: {1: …, 8: …}")
        rows = sorted(self.latency_ms)
        if rows and (rows[0] < 1 or min(self.latency_ms.values()) <= 0):
            raise ValueError("latency_ms: rows are whole numbers from 1, and times above 0 ms")
        return self


@dataclass(frozen=True, slots=True)
class Curve:
    """T(rows) of one model at one precision, in seconds, and how it varies. `fit` is (alpha, beta); without it `points` are joined."""

    device: str
    model: str
    precision: str
    fit: tuple[float, float] | None
    points: tuple[tuple[int, float], ...]
    noise: Noise

    def seconds(self, rows: int) -> float:
        """Service time of a run of `rows` rows, without noise."""
        if self.fit is not None:
            return self.fit[0] + self.fit[1] * rows
        return _between(self.points, rows)

    def noisy_seconds(self, rows: int, random: np.random.Generator) -> float:
        """Service time of one run, as the noise has it."""
        noise = self.noise
        seconds = self.seconds(rows) * (1.0 + abs(random.normal(0.0, noise.service_sigma)))
        return seconds * noise.spike_factor if random.random() < noise.spike_probability else seconds


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """A table as read. Names are looked up by `curve`."""

    document: Document
    device: Device
    noise: Noise

    def curve(self, model: str, precision: str) -> Curve:
        """The figures of a model and precision. Raises the reader's kind of error: the key with its line, and the nearest right name."""
        models = self._section(("models",))
        if model not in models:
            raise self.document.error(("models",), f"no model {model!r}{nearest(model, models)}")
        about = self._section(("models", model))
        precisions = [name for name in about if name not in _ABOUT_MODEL]
        if precision not in precisions:
            raise self.document.error(("models", model), f"no precision {precision!r}{nearest(precision, precisions)}")
        figures = _read(self.document, ("models", model, precision), Figures)
        fit = (figures.fit.alpha * _MS, figures.fit.beta * _MS) if figures.fit is not None else None
        points = tuple((rows, ms * _MS) for rows, ms in sorted(figures.latency_ms.items()))
        return Curve(self.device.name, model, precision, fit, points, self.noise)

    def _section(self, key: tuple[str, ...]) -> dict[str, Any]:
        found: Any = self.document.data
        for part in key:
            found = found.get(part)
        if not isinstance(found, dict):
            raise self.document.error(key, f"expected names and their figures, got {str(found)[:64]!r}")
        return found


def read_table(path: Path, raising: type[TidegateError] = ConfigError) -> LatencyTable:
    """The table in a file. Raises `raising` that names the file, the line and what is wrong there."""
    document = read_yaml(path, raising)
    if "device" not in document.data or "models" not in document.data:
        raise document.error((), "not a latency table: expected `device: {name: …}` and `models: {…}`")
    return LatencyTable(document, _read(document, ("device",), Device), _read(document, ("noise",), Noise))


def table_path(table: str, folder: Path) -> Path:
    """The file that `table` names: one of BUILT_IN, else a file in `folder`. Raises ValueError for what is neither."""
    if table in BUILT_IN:
        return BUILT_IN[table]
    if "/" in table or table.startswith(".") or not table.endswith((".yaml", ".yml")):
        raise ValueError(f"expected {', '.join(BUILT_IN)} or the name of a .yaml file beside model.yaml, got {table!r}")
    return folder / table


def _read(document: Document, key: tuple[str, ...], model: type[M]) -> M:
    """The section at `key` as `model`, all defaults where there's none."""
    found: Any = document.data
    for part in key:
        found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, dict | None):
        raise document.error(key, f"expected keys and values, got {str(found)[:64]!r}")
    try:
        return model.model_validate(found or {})
    except ValidationError as error:
        wrong = [str(document.error((*key, *inner), text)) for inner, text in complaints(model, error)]
        raise document.raising("; ".join(wrong)) from error


def _between(points: tuple[tuple[int, float], ...], rows: int) -> float:
    """On the lines that join the points; beyond the last, along the last line. One point alone is taken as proportional to rows."""
    if len(points) == 1:
        return points[0][1] * rows / points[0][0]
    at = min(max(bisect_left(points, (rows, 0.0)), 1), len(points) - 1)
    (low, least), (high, most) = points[at - 1 : at + 1]
    return max(least + (most - least) * (rows - low) / (high - low), 0.1 * points[0][1])
