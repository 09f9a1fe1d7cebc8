"""Thresholds as people write them (200ms, 90%, 20GiB, 100/s, 85°C, 70W) ↔ plain numbers of a metric's unit.

A number whose unit would have to be guessed is an error: `threshold: 200` of a latency would be 200 seconds, of a share 20,000 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.units import DURATIONS, SIZES

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([^\s0-9]*)\s*")


class Unit(StrEnum):
    """What a metric counts in."""

    SECONDS = "seconds"
    RATIO = "ratio"
    BYTES = "bytes"
    RATE = "per second"
    CELSIUS = "°C"
    WATTS = "W"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class _Words:
    """A unit's suffixes with what they multiply by, an example, and how large a bare number may be."""

    suffixes: Mapping[str, float]
    example: str
    bare_up_to: float


_WORDS: Mapping[Unit, _Words] = {
    Unit.SECONDS: _Words(DURATIONS, "a duration such as 200ms or 2s", 0.0),
    Unit.RATIO: _Words({"%": 0.01}, "a share such as 90% or 0.9", 1.0),
    Unit.BYTES: _Words(SIZES, "a size such as 14GiB", 0.0),
    Unit.RATE: _Words({"/s": 1.0, "/m": 1 / 60, "/h": 1 / 3600}, "a rate such as 100/s", math.inf),
    Unit.CELSIUS: _Words({"°C": 1.0, "C": 1.0}, "a temperature such as 85°C", math.inf),
    Unit.WATTS: _Words({"W": 1.0, "kW": 1000.0}, "a power such as 70W", math.inf),
    Unit.COUNT: _Words({}, "a number such as 5", math.inf),
}


def parse(value: object, unit: Unit) -> float:
    """The number of `unit` that `value` says. Raises ValueError that shows what would be right."""
    words = _WORDS[unit]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected {words.example}, got {value!r}")
    match = _NUMBER.fullmatch(str(value)) if len(str(value)) <= 64 else None
    if match is None or not math.isfinite(number := float(match[1])):
        raise ValueError(f"expected {words.example}, got {str(value)[:64]!r}")
    suffix = match[2]
    if not suffix:
        if abs(number) > words.bare_up_to:
            raise ValueError(f"expected {words.example}, got {value!r} without a unit")
        return number
    if suffix not in words.suffixes:
        raise ValueError(f"expected {words.example}, got {str(value)[:64]!r}")
    # Divided where that is exact: 99.9 * 0.01 isn't 0.999.
    return number / 100 if suffix == "%" else number * words.suffixes[suffix]


def show(value: float, unit: Unit) -> str:
    """`value` for people, with its unit."""
    if not math.isfinite(value):
        return str(value)
    if unit is Unit.SECONDS:
        return _scaled(value, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)))
    if unit is Unit.BYTES:
        return _scaled(value, (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)))
    scale, suffix = {Unit.RATIO: (100.0, "%"), Unit.RATE: (1.0, "/s"), Unit.COUNT: (1.0, "")}.get(unit, (1.0, unit.value))
    return f"{value * scale:.4g}{suffix}"


def _scaled(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    name, scale = next((step for step in steps if abs(value) >= step[1]), steps[-1])
    return f"{value / scale:.4g}{name}"
