"""Durations, sizes and ratios as people write them (5ms, 64MiB, 1%), as plain numbers.

Errors are ValueError, so that pydantic validators can use these functions as they are; whoever reads a file adds where it stands.
"""

from __future__ import annotations

import math
import re

DURATIONS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {
    **{"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40},
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-zµ%]*)\s*")


def duration(value: object) -> float:
    """Seconds of `5ms`, `1.5s`, `2m`, or of a number, which is seconds. Raises ValueError for anything else."""
    number, unit = _quantity(value, "a duration such as 5ms, 30s or 2m")
    if unit and unit not in DURATIONS:
        raise ValueError(f"expected a duration with one of {', '.join(DURATIONS)}, got {value!r}")
    return number * DURATIONS.get(unit, 1.0)


def size(value: object) -> int:
    """Bytes of `64MiB`, `1.5GiB`, `10MB`, or of a whole number, which is bytes. Raises ValueError for anything else."""
    number, unit = _quantity(value, "a size such as 256KiB, 64MiB or 1GiB")
    if unit and unit not in SIZES:
        raise ValueError(f"expected a size with one of {', '.join(SIZES)}, got {value!r}")
    bytes_ = number * SIZES.get(unit, 1)
    if bytes_ != int(bytes_):
        raise ValueError(f"expected a whole number of bytes, got {value!r}")
    return int(bytes_)


def ratio(value: object) -> float:
    """A share between 0 and 1, from `5%`, `0.05` or a number. Raises ValueError for anything else."""
    number, unit = _quantity(value, "a share such as 5% or 0.05")
    if unit not in ("", "%"):
        raise ValueError(f"expected a share such as 5% or 0.05, got {value!r}")
    share = number / 100 if unit else number
    if share > 1:
        raise ValueError(f"expected a share between 0 and 1 (or 0% and 100%), got {value!r}")
    return share


def _quantity(value: object, expected: str) -> tuple[float, str]:
    """Number and unit of `value`; whole numbers stay exact."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected {expected}, got {value!r}")
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value) if len(value) <= 64 else None
        if match is None:
            raise ValueError(f"expected {expected}, got {value[:64]!r}")
        digits, unit = match.groups()
        return (int(digits) if digits.isdecimal() else float(digits)), unit
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"expected {expected}, got {value!r}")
    return value, ""
