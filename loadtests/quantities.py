"""Quantities of a scenario as people write them: 30s, 200/s, 5%, and distributions of whole numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from server import units

Integers = NDArray[np.int64]


def rate_of(value: object) -> float:
    """Requests a second of `200/s`, or of a number. Raises ValueError."""
    text = value.strip().removesuffix("/s") if isinstance(value, str) else value
    try:
        rate = float(text) if isinstance(text, str | int | float) and not isinstance(text, bool) else float("nan")
    except ValueError:
        rate = float("nan")
    if not 0 <= rate <= 1e6:
        raise ValueError(f"expected requests a second such as 200/s, at most 1000000/s, got {value!r}")
    return rate


_QUANTITY = WithJsonSchema({"type": ["number", "string"]})
Seconds = Annotated[float, BeforeValidator(units.duration), _QUANTITY]
Ratio = Annotated[float, BeforeValidator(units.ratio), _QUANTITY]
Rate = Annotated[float, BeforeValidator(rate_of), _QUANTITY]


class Section(BaseModel):
    """A part of a scenario: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _shorter(schema: dict[str, Any]) -> None:
    """The forms that `Distribution` is written in besides its own."""
    whole = {key: schema.pop(key) for key in ("type", "properties", "additionalProperties") if key in schema}
    pair = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
    schema["anyOf"] = [{"type": "integer", "minimum": 1}, pair, whole]


class Distribution(Section):
    """Whole numbers, drawn. `lognormal` by its median and sigma; all are cut to `min` … `max`."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_shorter)

    kind: Literal["fixed", "uniform", "lognormal"] = Field(default="fixed", description="Shape of the distribution.")
    value: int = Field(default=1, ge=1, le=1 << 20, description="With fixed: the number itself.")
    median: float = Field(default=1.0, gt=0, description="With lognormal.")
    sigma: float = Field(default=0.5, gt=0, le=5, description="With lognormal: standard deviation of the logarithm.")
    min: int = Field(default=1, ge=1, le=1 << 20)
    max: int = Field(default=1 << 20, ge=1, le=1 << 20)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """`4` is `{kind: fixed, value: 4}`, `[1, 8]` is `{kind: uniform, min: 1, max: 8}`."""
        if isinstance(value, int) and not isinstance(value, bool):
            return {"kind": "fixed", "value": value}
        if isinstance(value, list) and len(value) == 2:
            return {"kind": "uniform", "min": value[0], "max": value[1]}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Distribution:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    def draw(self, random: np.random.Generator, count: int) -> Integers:
        """`count` numbers of at least 1."""
        if self.kind == "fixed":
            return np.full(count, self.value, np.int64)
        if self.kind == "uniform":
            return random.integers(self.min, self.max, count, dtype=np.int64, endpoint=True)
        drawn = random.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(np.round(drawn), self.min, self.max).astype(np.int64)
