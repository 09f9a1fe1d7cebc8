"""The kinds of value that model.yaml holds, and in words what is wrong with one that isn't of its kind."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from server.config import VERSION
from server.tensors import DTYPES
from server.validation import nearest

MAX_RANK = 16
VERSION_PATTERN = r"^[1-9][0-9]{0,17}$"


def _count(value: object) -> object:
    return 0 if value == "auto" else value


def _versions(value: object) -> object:
    """latest, all, or version numbers, which people write as numbers and the protocol as text."""
    if value in ("latest", "all"):
        return value
    if not isinstance(value, list | tuple) or not value:
        given = f"; got {value!r}"[:80] + (nearest(value, ("latest", "all")) if isinstance(value, str) else "")
        raise ValueError(f"expected latest, all or a list of versions such as [1, 3]{given}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | str) or not str(item).isdecimal() or str(item).startswith("0"):
            raise ValueError(f"a version is a whole number from 1, got {item!r}")
    return tuple(str(item) for item in value)


def _dtype(value: object) -> object:
    if isinstance(value, str) and value not in DTYPES:
        raise ValueError(f"unknown datatype {value!r}{nearest(value.upper(), DTYPES)}")
    return value


def _batch_axis(value: object) -> object:
    if value is not None and (isinstance(value, bool) or value != 0):
        raise ValueError(
            f"expected 0, or null where the tensor isn't per row, got {value!r}; other axes aren't built yet in tidegate {VERSION}"
        )
    return value


def _pad_axis(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ValueError(f"axis {value} can't be padded: axis 0 counts rows, and axes are counted from it")
    return value


def _pad_axes(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of axes such as [1], got {value!r}"[:120])
    return value


def _pad_value(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"expected a number, true, false or text, got {value!r}"[:120])
    return value


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(one >= other for one, other in itertools.pairwise(values)):
        raise ValueError(f"expected rising numbers, each once, got {list(values)}")
    return values


def _buckets(value: object) -> object:
    if value in ("auto", "geometric"):
        return value
    if not isinstance(value, list | tuple) or not value:
        given = f"; got {value!r}"[:80] + (nearest(value, ("auto", "geometric")) if isinstance(value, str) else "")
        raise ValueError(f"expected auto, geometric or a list of lengths such as [16, 32, 64]{given}")
    if any(isinstance(length, bool) or not isinstance(length, int) or length < 1 for length in value):
        raise ValueError(f"expected lengths from 1, got {list(value)}"[:120])
    return _rising(tuple(value))


_AUTO = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 1024}, {"const": "auto"}]})
_POLICY = WithJsonSchema(
    {
        "anyOf": [
            {"enum": ["latest", "all"]},
            {"type": "array", "minItems": 1, "items": {"type": ["integer", "string"], "minimum": 1, "pattern": VERSION_PATTERN}},
        ]
    }
)
Rows: TypeAlias = Annotated[int, Field(ge=1, le=65536)]
Count: TypeAlias = Annotated[int, BeforeValidator(_count), Field(ge=0, le=1024), _AUTO]
Policy: TypeAlias = Annotated[Literal["latest", "all"] | tuple[str, ...], BeforeValidator(_versions), _POLICY]
Datatype: TypeAlias = Annotated[str, BeforeValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]
BatchAxis: TypeAlias = Annotated[Literal[0] | None, BeforeValidator(_batch_axis)]
Shape: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(max_length=MAX_RANK)]
Rising: TypeAlias = Annotated[tuple[Rows, ...], Field(max_length=64), AfterValidator(_rising)]
PadAxes: TypeAlias = Annotated[
    tuple[Annotated[int, BeforeValidator(_pad_axis), Field(ge=1, lt=MAX_RANK)], ...],
    BeforeValidator(_pad_axes),
    Field(max_length=MAX_RANK),
    AfterValidator(_rising),
]
PadValue: TypeAlias = Annotated[bool | int | float | str, BeforeValidator(_pad_value)]
Buckets: TypeAlias = Annotated[
    Literal["auto", "geometric"] | tuple[int, ...],
    BeforeValidator(_buckets),
    WithJsonSchema(
        {"anyOf": [{"enum": ["auto", "geometric"]}, {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}}]}
    ),
]
