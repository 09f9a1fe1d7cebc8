"""The lane seam: where a batch runs. A lane holds one opened backend and runs one batch at a time.

This file doesn't know how batches are chosen (engine) or what a request is. A lane is opened and closed off the loop; `submit` is
called in the event loop, and so is the callback that ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from server.errors import TidegateError
from server.tensors import Tensor, TensorSpec


class LossReason(StrEnum):
    """How a lane was lost; also the label of tidegate_lane_restarts_total."""

    DIED = "died"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Loss:
    """A lane is no more: why, and in words what became of it."""

    reason: LossReason
    text: str


@dataclass(slots=True)
class RunResult:
    """One finished run: outputs by name, or the error. `started` and `finished` are time.monotonic around the backend's run.
    `loss` says that the lane was lost in it, beside an error that says so too: the batch may be tried in another. Only a decoupled model's
    lane gives results that aren't `final`."""

    outputs: dict[str, Tensor]
    started: float
    finished: float
    error: TidegateError | None = None
    loss: Loss | None = None
    final: bool = True


OnResult: TypeAlias = Callable[[RunResult], None]
OnLoss: TypeAlias = Callable[[Loss], None]


class Lane(Protocol):
    """`kind` is inline, thread or process. `inputs` and `outputs` are the opened backend's specs. `depth` is how many batches may be
    submitted before the first one's result: 2 where the device would else stand still between two runs."""

    kind: str
    name: str
    depth: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The memory that input `name` of the next batch is gathered into: an array of `shape`, valid until that batch's result."""
        ...

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        """Run `rows` rows. `on_result` is called in the loop exactly once; an inline lane calls it before submit returns."""
        ...

    def successor(self) -> Lane | None:
        """The lane that takes this one's place from now on, None while it does well. Asked after each run."""
        ...

    def watch(self, on_loss: OnLoss) -> None:
        """Have `on_loss` called in the loop, once, should the lane be lost while it's idle. Only a process lane can be."""
        ...

    def renew(self, wanted: Callable[[], bool]) -> Lane:
        """A lane in place of this one, which was lost; itself where it can't be. Blocks, until it's open or not `wanted`: call it off the
        loop. Raises ModelDefect."""
        ...

    def close(self) -> None:
        """Wait for the run in hand and give the backend back."""
        ...
