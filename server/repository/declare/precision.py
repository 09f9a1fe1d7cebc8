"""`precision` of model.yaml: which precision answers, who chooses it, and what watches that it answers as FP32 does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from server.quantities import Seconds, Share, Timeout
from server.validation import KeyPath

REFERENCE = "fp32"
"""What the guard holds the other precisions to."""
MAX_RUNGS = 8
MAX_TURNS = 48
_TURN = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\s+(\S{1,32})")


class Turn(NamedTuple):
    """From this second of the day on, this precision."""

    start: int
    precision: str


def _turn(value: object) -> object:
    if isinstance(value, Turn):
        return value
    found = _TURN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'expected a time of the day and a precision such as "08:00 fp32", got {value!r}'[:120])
    hours, minutes, precision = found.groups()
    return Turn(3600 * int(hours) + 60 * int(minutes), precision)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        if name == "UTC":  # which needs no table
            return name
        raise ValueError(f"no such time zone on this machine: {name!r}; expected a name such as Europe/Berlin, or UTC") from error
    return name


def _rungs(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"expected each precision once, the most exact one first, got {', '.join(names)}")
    return names


def _rising(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    late = next((later for earlier, later in pairwise(turns) if later.start <= earlier.start), None)
    if late is not None:
        raise ValueError(f"expected rising times of the day, but {_clock(late.start)} comes after one that isn't earlier")
    return turns


def _clock(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}"


_TURN_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^([01][0-9]|2[0-3]):[0-5][0-9]\s+\S{1,32}$"})
Turns = Annotated[tuple[Annotated[Turn, BeforeValidator(_turn), _TURN_SCHEMA], ...], Field(max_length=MAX_TURNS), AfterValidator(_rising)]
Name = Annotated[str, Field(min_length=1, max_length=32)]
Rungs = Annotated[tuple[Name, ...], Field(max_length=MAX_RUNGS), AfterValidator(_rungs)]
Zone = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_zone)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guard(_Section):
    """How answers are compared with FP32's while the model serves."""

    sample: Share = Field(default=0.01, gt=0, description="Most answers that are computed again on the reference, as a share of all.")
    budget: Share = Field(default=0.05, gt=0, description="Most device time that this may take; it wins over `sample`.")
    floor: float = Field(
        default=0.2,
        ge=0,
        le=1000,
        description="Answers a second that are compared also while the device is never idle, within `budget`.",
    )
    tolerate: Share = Field(default=0.05, gt=0, lt=1, description="Share of rows that may differ from FP32's before it falls back.")
    distance: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Of outputs that aren't class scores: relative distance from FP32's answer beyond which a row counts as differing.",
    )
    reference: Literal["resident", "on_demand", "cpu", "off"] = Field(
        default="resident",
        description="Where FP32 lives: resident beside what serves, loaded on_demand, on the cpu, or off: no guard.",
    )
    keep_worst: int = Field(default=0, ge=0, le=1000, description="Worst answers whose tensors are kept in files; 0: none.")
    keep_for: Timeout = Field(default=7 * 86400.0, description="Time after which those files are removed.")
    redact: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = Field(
        default=(), max_length=64, description="Inputs that are never written into them."
    )


class Precision(_Section):
    """Which variant of a version answers."""

    active: str | None = Field(
        default=None, max_length=32, description="A precision of the manifest; default the ladder's first, else fp32, else its first."
    )
    policy: Literal["fixed", "ladder", "schedule"] = Field(
        default="fixed", description="Who chooses: nobody (fixed), the load (ladder), or the time of the day (schedule)."
    )
    ladder: Rungs = Field(default=(), description="Precisions to step through, the most exact one first, such as [fp32, fp16, int8].")
    schedule: Turns = Field(
        default=(), description='With policy schedule: `["08:00 int8", "20:00 fp32"]`, each until the next, the last until the first.'
    )
    time_zone: Zone = Field(default="UTC", description="The schedule's, such as Europe/Berlin.")
    down_at: float = Field(default=0.85, gt=0, le=2, description="Utilization over which the ladder steps down.")
    up_at: float = Field(
        default=0.7, gt=0, le=2, description="Utilization under which a more exact precision must stay to be stepped up to."
    )
    down_cool: Seconds = Field(default=2.0, description="Least time from any step to one down.")
    up_cool: Seconds = Field(default=30.0, description="Least time from any step to one up.")
    calm: Seconds = Field(default=10.0, description="Time for which there must have been room before a step up.")
    guard: Guard | None = Field(default=None, description="Compares answers with FP32's and falls back; none where it's left out.")

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: object) -> object:
        return {} if values is None else values

    @model_validator(mode="after")
    def _fits(self) -> Precision:
        if not self.up_at < self.down_at:
            raise ValueError(f"up_at: {self.up_at:g} must be less than down_at, {self.down_at:g}, or the ladder would swing")
        if self.policy == "ladder" and len(self.ladder) < 2:
            raise ValueError("ladder: policy ladder needs at least two precisions, the most exact one first, such as [fp32, int8]")
        if self.policy == "schedule" and not self.schedule:
            raise ValueError('schedule: policy schedule needs at least one line, such as ["08:00 fp32"]')
        return self

    @property
    def first(self) -> str | None:
        """What serves once the model is loaded; None leaves it to the manifest."""
        return self.active or (self.ladder[0] if self.policy == "ladder" else None)

    @property
    def guarded(self) -> bool:
        return self.guard is not None and self.guard.reference != "off"

    def named(self) -> Iterator[tuple[KeyPath, str]]:
        """Every precision that is spoken of, with its key."""
        if self.active is not None:
            yield ("precision", "active"), self.active
        for index, name in enumerate(self.ladder):
            yield ("precision", "ladder", index), name
        for index, turn in enumerate(self.schedule):
            yield ("precision", "schedule", index), turn.precision
        if self.guarded:
            yield ("precision", "guard"), REFERENCE
