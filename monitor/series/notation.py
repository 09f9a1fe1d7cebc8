"""Series as rule tests write them, in promtool's notation: `0+10x5 _x3 stale 7` are 0 10 20 30 40 50, three gaps, the end, and 7."""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeAlias

MAX_VALUES = 100_000
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|Inf|NaN)"
_ITEM = re.compile(rf"({_NUMBER})(?:([+-][0-9.]+(?:[eE][+-]?[0-9]+)?)?x([0-9]+))?")


class Mark(Enum):
    """What stands where there is no value."""

    MISSING = "_"
    STALE = "stale"


Value: TypeAlias = float | Mark


def values(text: str) -> list[Value]:
    """The values of `text`, one an interval. Raises ValueError that shows the item that can't be read."""
    found: list[Value] = []
    for item in text.split():
        found += _item(item)
        if len(found) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
    return found


def _item(item: str) -> list[Value]:
    if item == "stale":
        return [Mark.STALE]
    if gap := re.fullmatch(r"_(?:x([0-9]+))?", item):
        return [Mark.MISSING] * min(int(gap[1] or 1), MAX_VALUES + 1)
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(f"expected a value such as 5, 0+10x6, _ or stale, got {item[:40]!r}")
    start, times = float(match[1]), min(int(match[3] or 0), MAX_VALUES)
    step = float(match[2] or 0)
    return [start + step * index for index in range(times + 1)]
