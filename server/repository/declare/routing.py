"""model.yaml's `routing`: how a model's requests are shared out among its versions. What is wrong with shares and with where a key stands
is said here, for whoever sets them. No I/O.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

from server.messages import Scalar
from server.repository.model_values import VERSION_PATTERN
from server.validation import nearest

WHOLE = 100.0
"""What weights add up to: they're percentages."""
CLOSE = 1e-6
MOST_TARGETS = 16
MOST_DIGITS = 18  # of a version's number
MOST_NAME = 128
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class StickyKind(StrEnum):
    """Where a sticky key stands."""

    HEADER = "header"
    PARAMETER = "parameter"
    ID = "id"


@dataclass(frozen=True, slots=True)
class Sticky:
    """Where a request's sticky key is read: a header, a request parameter, or its id (which has no name)."""

    kind: StickyKind
    name: str = ""

    def key(self, request_id: str, parameters: Mapping[str, Scalar], header: str) -> str:
        """A request's key, empty where it has none; `header` is what it says in the header of this name."""
        match self.kind:
            case StickyKind.HEADER:
                return header
            case StickyKind.PARAMETER:
                value = parameters.get(self.name)
                return "" if value is None else str(value)
            case StickyKind.ID:
                return request_id

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind.value


def read_sticky(text: str) -> Sticky:
    """`header:NAME`, `parameter:NAME` or `id`, read; a header in small letters. Raises ValueError."""
    kind, _, name = text.partition(":")
    expected = f"expected header:NAME, parameter:NAME or id, got {text[:80]!r}"
    if kind not in tuple(StickyKind):
        raise ValueError(expected + nearest(kind, tuple(StickyKind)))
    if bool(name) == (kind == StickyKind.ID) or len(name) > MOST_NAME:
        raise ValueError(expected)
    if kind != StickyKind.HEADER:
        return Sticky(StickyKind(kind), name)
    if not _HEADER.fullmatch(name) or name.lower().startswith(":"):
        raise ValueError(f"{expected}: no header can be called so")
    return Sticky(StickyKind.HEADER, name.lower())


def weights_fault(weights: Mapping[str, float]) -> str:
    """What is wrong with percentages by version: what was expected and what was got; "" for nothing."""
    if not 0 < len(weights) <= MOST_TARGETS:
        return f"expected 1 to {MOST_TARGETS} versions, got {len(weights)}"
    for version, weight in weights.items():
        if not (version.isascii() and version.isdecimal() and len(version) <= MOST_DIGITS):
            return f"expected versions that are decimal numbers, got {version[:80]!r}"
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= WHOLE:
            return f"version {version}: expected a percentage from 0 to 100, got {str(weight)[:80]}"
    total = math.fsum(weights.values())
    if abs(total - WHOLE) > CLOSE:
        said = " + ".join(f"{weight:g}" for weight in weights.values())
        return f"expected percentages that add up to 100, got {said} = {total:g}"
    return ""


def _weights(value: object) -> object:
    """Percentages by version, which people write as numbers and the protocol as text."""
    if not isinstance(value, Mapping):
        raise ValueError(f'expected percentages by version such as {{"1": 95, "2": 5}}, got {str(value)[:80]}')
    weights = {str(version): weight for version, weight in value.items()}
    fault = weights_fault(weights)
    if not fault and any(not re.fullmatch(VERSION_PATTERN, version) for version in weights):
        fault = f"a version is a whole number from 1 without leading zeros, got {', '.join(map(repr, weights))}"
    if fault:
        raise ValueError(fault)
    return weights


def _version(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Weights = Annotated[
    dict[str, float],
    BeforeValidator(_weights),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 100}, "minProperties": 1}),
]


class Routing(BaseModel):
    """Which version answers a request that names none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Weights | None = Field(
        default=None, description='Percentages by version, such as `{"1": 95, "2": 5}`, that add up to 100; default: all to the highest.'
    )
    sticky: str | None = Field(
        default=None,
        max_length=MOST_NAME + 16,
        description="Where the key stands by which a client stays with its version: header:NAME, parameter:NAME or id (the request's).",
    )

    shadow: Annotated[
        str | None, BeforeValidator(_version), WithJsonSchema({"type": ["integer", "string"], "minimum": 1, "pattern": VERSION_PATTERN})
    ] = Field(
        default=None, pattern=VERSION_PATTERN, description="A version that gets copies of requests, whose answers are compared and dropped."
    )

    @field_validator("sticky")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        return None if text is None else str(read_sticky(text))

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that it sends requests to."""
        shadow = () if self.shadow is None else (self.shadow,)
        return tuple(dict.fromkeys((*(one for one, weight in (self.weights or {}).items() if weight > 0), *shadow)))
