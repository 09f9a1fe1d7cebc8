"""What becomes of a variant: from nothing to serving and back, as a table; and who gives up its memory for whom. Pure.

A variant is one precision of a model. Its owner tells what happened (`step`), the table says what it is now, and what can't happen raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, TypeVar

from server.precision.ladder import Cost, Rung, Skip

FIRST_PIN = 300.0  # seconds that a variant is pinned out for; each time it's twice as long
LONGEST_PIN = 86400.0  # and after as long without another pin it's the first time again

EXACTNESS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4")

K = TypeVar("K")


class State(StrEnum):
    """What a variant is now."""

    ABSENT = "absent"
    LOADING = "loading"
    WARM = "warm"
    ACTIVE = "active"
    DRAINING = "draining"
    EVICTED = "evicted"
    PINNED_OUT = "pinned_out"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to it."""

    LOAD = "its load begins"
    READY = "loaded, every batch size warmed"
    FAIL = "can't be loaded or warmed, or its lanes are lost"
    ACTIVATE = "put in the place of the one that answered"
    REPLACE = "another took its place"
    DRAINED = "its last batch is answered"
    EVICT = "its memory is needed"
    PIN = "it drifted, or an operator took it out"
    UNPIN = "its time is over, or an operator said so"
    WITHDRAW = "it's unloaded"


LOADED = frozenset((State.WARM, State.ACTIVE, State.DRAINING))
"""States in which it can answer."""
RESIDENT = frozenset((State.LOADING, State.WARM, State.ACTIVE, State.DRAINING))
"""States in which it holds memory. What is pinned out gives it back once its last batch is answered."""

TABLE: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.ABSENT, Event.LOAD): State.LOADING,
        (State.ABSENT, Event.PIN): State.PINNED_OUT,
        (State.LOADING, Event.READY): State.WARM,
        (State.LOADING, Event.FAIL): State.FAILED,
        (State.LOADING, Event.PIN): State.PINNED_OUT,
        (State.WARM, Event.ACTIVATE): State.ACTIVE,
        (State.WARM, Event.EVICT): State.EVICTED,
        (State.WARM, Event.FAIL): State.FAILED,
        (State.WARM, Event.PIN): State.PINNED_OUT,
        (State.ACTIVE, Event.REPLACE): State.DRAINING,
        (State.ACTIVE, Event.FAIL): State.FAILED,
        (State.ACTIVE, Event.PIN): State.PINNED_OUT,
        (State.DRAINING, Event.DRAINED): State.WARM,
        (State.DRAINING, Event.ACTIVATE): State.ACTIVE,
        (State.DRAINING, Event.FAIL): State.FAILED,
        (State.DRAINING, Event.PIN): State.PINNED_OUT,
        (State.EVICTED, Event.LOAD): State.LOADING,
        (State.EVICTED, Event.PIN): State.PINNED_OUT,
        (State.PINNED_OUT, Event.READY): State.PINNED_OUT,  # a load that was under way: its result is thrown away
        (State.PINNED_OUT, Event.FAIL): State.PINNED_OUT,
        (State.PINNED_OUT, Event.DRAINED): State.PINNED_OUT,
        (State.PINNED_OUT, Event.PIN): State.PINNED_OUT,
        (State.PINNED_OUT, Event.UNPIN): State.ABSENT,
        (State.FAILED, Event.LOAD): State.LOADING,
        (State.FAILED, Event.PIN): State.PINNED_OUT,
    }
    | {(state, Event.WITHDRAW): State.ABSENT for state in State if state is not State.ABSENT}
)
"""(what it is, what happens) → what it is then. What isn't here can't happen."""


@dataclass(slots=True, eq=False)
class Variant:
    """One precision of a version. `memory` is in bytes, measured at warm-up and what its file takes before; `proven`: it has parity figures
    for this device, or was admitted; `why` is the reason of its state, `used` the last time it answered."""

    precision: str
    memory: int = 0
    proven: bool = False
    cost: Cost | None = None
    state: State = State.ABSENT
    why: str = ""
    used: float = 0.0
    pins: int = 0
    pinned_until: float = 0.0

    def step(self, event: Event, now: float, why: str = "") -> State:
        """Something happened to it; what it is now. Raises ValueError, changing nothing, for what can't happen."""
        state = TABLE.get((self.state, event))
        if state is None:
            can = ", ".join(repr(possible.value) for before, possible in TABLE if before is self.state)
            raise ValueError(f"variant {self.precision} is {self.state}: {event.value!r} can't happen to it, only {can}")
        if event is Event.PIN:
            self._pin(now)
        if State.ACTIVE in (state, self.state):
            self.used = now
        self.state, self.why = state, why
        return state

    def _pin(self, now: float) -> None:
        """From now on; one that is pinned out already stays so for longer."""
        self.pins = 1 if now - self.pinned_until > LONGEST_PIN else self.pins + 1
        self.pinned_until = now + min(LONGEST_PIN, FIRST_PIN * 2.0 ** min(self.pins - 1, 16))

    def pin_over(self, now: float) -> bool:
        """Whether it's pinned out and its time is over."""
        return self.state is State.PINNED_OUT and now >= self.pinned_until

    @property
    def rung(self) -> Rung:
        """As the ladder sees it."""
        barred = {State.FAILED: Skip.FAILED, State.PINNED_OUT: Skip.PINNED_OUT}.get(self.state)
        return Rung(self.precision, self.cost, barred or (None if self.proven else Skip.UNPROVEN))


@dataclass(frozen=True, slots=True)
class Holding(Generic[K]):
    """What one variant takes of a device's memory. `spared`: never evicted, as a reference that must be at hand isn't."""

    key: K
    memory: int
    used: float
    state: State
    spared: bool = False


@dataclass(frozen=True, slots=True)
class Room(Generic[K]):
    """What must be evicted for something to fit, in that order; `short` bytes are lacking even so, and then nothing is evicted."""

    evict: tuple[K, ...] = ()
    short: int = 0


def make_room(holdings: Iterable[Holding[K]], need: int, budget: int) -> Room[K]:
    """Room for `need` more bytes on a device that has `budget`: what is warm and was used longest ago goes first. What answers, drains,
    loads or is spared stays. Raises ValueError for negative sizes."""
    if need < 0 or budget < 0:
        raise ValueError(f"expected sizes of 0 or more bytes, got need {need} and budget {budget}")
    held = [holding for holding in holdings if holding.state in RESIDENT]
    over = sum(holding.memory for holding in held) + need - budget
    evict: list[K] = []
    for holding in sorted(held, key=lambda holding: holding.used):
        if over <= 0:
            break
        if holding.state is State.WARM and not holding.spared and holding.memory > 0:
            evict.append(holding.key)
            over -= holding.memory
    return Room(short=over) if over > 0 else Room(tuple(evict))


def most_exact_first(names: Iterable[str]) -> list[str]:
    """The precisions in the order of what they keep; those that aren't known last, as they came."""
    return sorted(names, key=lambda name: EXACTNESS.index(name) if name in EXACTNESS else len(EXACTNESS))


def diagram() -> str:
    """The table as a Mermaid state diagram, for the docs; what holds for all states is one line."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.ABSENT}"]
    lines += [f"    {state} --> {then}: {event.value}" for (state, event), then in TABLE.items() if event is not Event.WITHDRAW]
    return "\n".join(lines)
