"""Answers with NaN or Inf: kept back, computed again in FP32, and only then sent, with whose doing it was.

A run is one affair: where the input of one request is to blame, what it did to its neighbours (a dynamic quantization takes its scale from
all rows of a run) is evidence against nobody. So a client that sends NaN, or numbers that overflow in FP32 too, takes no variant away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from server.engine.engine import Engine, Shares
from server.engine.request_queue import Ticket
from server.messages import BatchFacts, InferResponse
from server.precision.drift import Finite, finite
from server.precision.guard.asking import Reference, answers
from server.precision.guard.record import Blame, Record, is_finite
from server.tensors import Tensor

PATIENCE = 10.0  # seconds that an answer is kept back for FP32's


@dataclass(frozen=True, slots=True)
class Held:
    """A ticket whose answer isn't finite."""

    ticket: Ticket
    outputs: dict[str, Tensor]


class Recomputing:
    """`blamed` is called for each answer that was kept back, in the loop, before it's sent."""

    def __init__(self, reference: Reference, blamed: Callable[[Record, Blame], None]) -> None:
        self._reference = reference
        self._blamed = blamed
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def sift(self, engine: Engine, record: Record, answered: tuple[list[Ticket], Shares], facts: BatchFacts) -> tuple[list[Ticket], Shares]:
        """Keep back what isn't finite of a run's answers; the others, with their tickets."""
        sent: tuple[list[Ticket], Shares] = [], []
        held: list[Held] = []
        for ticket, share in zip(*answered, strict=True):
            if is_finite(share):
                sent[0].append(ticket)
                sent[1].append(share)
            else:
                held.append(Held(ticket, {name: np.array(array) for name, array in share.items()}))
        if held:
            guilty = any(not is_finite(ticket.request.inputs) for ticket in answered[0])
            task = asyncio.ensure_future(self._settle(engine, record, held, facts, guilty=guilty))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return sent

    async def _settle(self, engine: Engine, record: Record, held: list[Held], facts: BatchFacts, *, guilty: bool) -> None:
        """Send what was kept back. `guilty`: an input of that run isn't finite."""
        found: list[InferResponse | None] = [None] * len(held)
        try:
            found = await self._again(held)
        finally:
            blames = [_blame(each, answer) for each, answer in zip(held, found, strict=True)]
            guilty = guilty or Blame.INPUT in blames
            for each, answer, blame in zip(held, found, blames, strict=True):
                self._blamed(record, Blame.NEIGHBOUR if guilty and blame is Blame.VARIANT else blame)
                outputs, made = _sent(each, answer)
                engine.deliver(each.ticket, outputs, facts if made is None else made)

    async def _again(self, held: list[Held]) -> list[InferResponse | None]:
        """FP32's answers to those whose inputs are finite; None where there's none."""
        asked = [each for each in held if is_finite(each.ticket.request.inputs)]
        engine = None
        if asked:
            try:
                async with asyncio.timeout(PATIENCE):
                    engine = await self._reference.summon(urgent=True)
            except TimeoutError:
                engine = None
        if engine is None:
            return [None] * len(held)
        requests = [replace(each.ticket.request, deadline=None, tenant="") for each in asked]
        come = dict(zip(map(id, asked), await answers(engine, requests, PATIENCE), strict=True))
        return [come.get(id(each)) for each in held]


def _blame(held: Held, answer: InferResponse | None) -> Blame:
    if not is_finite(held.ticket.request.inputs):
        return Blame.INPUT
    if answer is None:
        return Blame.UNKNOWN
    return Blame.VARIANT if is_finite(answer.outputs) else Blame.INPUT


def _sent(held: Held, answer: InferResponse | None) -> tuple[dict[str, Tensor], BatchFacts | None]:
    """FP32's answer where it's finite and the variant's isn't, else the variant's as it is."""
    if answer is None:
        return held.outputs, None
    inputs: Mapping[str, Tensor] = held.ticket.request.inputs
    better = finite(held.outputs, answer.outputs, inputs) is Finite.VARIANT
    return (answer.outputs, answer.batch) if better else (held.outputs, None)
