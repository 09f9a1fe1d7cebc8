"""What the batcher answers and is told: a cut with its reasons, and the policy that cuts follow. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from server.engine.decide.turns import Tenant
from server.engine.request_queue import PATIENCE, Ticket


class CloseReason(StrEnum):
    """Why a batch was closed; also the label of tidegate_batches_total."""

    IDLE = "idle"  # all that waited
    FULL = "full"  # reached max_rows, or the next request would not fit
    DEADLINE = "deadline"  # more rows would have made the most urgent one late
    HOLD = "hold"  # was held for more until holding had no more use
    SHAPE = "shape"  # what waits further has another shape or length
    PLANNED = "planned"  # not all could be answered in time: this run serves most
    PREFERRED = "preferred"  # reached a size that is asked for, or beyond which rows/s gain nothing


class DropReason(StrEnum):
    """Why a request is answered without a run."""

    EXPIRED = "expired"  # its deadline is past
    HOPELESS = "hopeless"  # it can't be answered in time any more
    GIVEN_UP = "given_up"  # serving others in its place serves more


@dataclass(slots=True)
class Cut:
    """One batch to run: its requests in order, their rows, the length they're padded to, and why it was closed. `dropped` are to be
    answered now; with `wake`, nothing is to run before that moment unless more comes."""

    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0
    length: int = 1
    reason: CloseReason = CloseReason.IDLE
    dropped: list[tuple[Ticket, DropReason]] = field(default_factory=list)
    wake: float | None = None


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What model.yaml asks for. Times in seconds. `lanes` run at the same time; `on_late` is serve or reject; `preferred_rows` are sizes
    that a compiled engine likes; `length_buckets` the longest length of each bucket, geometric without."""

    max_rows: int = 64
    latency_objective: float | None = None
    on_late: str = "serve"
    max_wait: float | None = None
    preferred_rows: tuple[int, ...] = ()
    length_buckets: tuple[int, ...] = ()
    priorities: int = 1
    tenants: Mapping[str, Tenant] = field(default_factory=lambda: MappingProxyType({}))
    lanes: int = 1

    @property
    def patience(self) -> float:
        """Seconds after which a request without a deadline is as urgent as one at its deadline."""
        return self.latency_objective or PATIENCE


@dataclass(slots=True)
class Size:
    """How large a run may be. It ends by `finish`, and who is due before isn't in it. `hold`: not before that moment."""

    rows: int
    reason: CloseReason
    finish: float = 0.0
    hold: float | None = None
