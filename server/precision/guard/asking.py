"""Asks an engine on the guard's own behalf: no edge waits for these answers, and what becomes of them is no client's affair."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from server.engine.engine import Engine
from server.errors import TidegateError
from server.messages import CancelHandle, InferRequest, InferResponse, Layout, OnResponse, RequestedOutput
from server.tensors import Tensor

KNOWN_LAYOUTS = 256


class Reference(Protocol):
    """Where FP32 lives."""

    @property
    def why(self) -> str:
        """Why it isn't there, where it isn't."""
        ...

    @property
    def engine(self) -> Engine | None:
        """What runs it, None while it isn't there."""
        ...

    def due(self, waiting: int) -> bool:
        """Whether so many samples are worth asking it now."""
        ...

    async def summon(self, *, urgent: bool) -> Engine | None:
        """Have it there, if that can be; at once where it is. `urgent`: a client waits for its answer."""
        ...

    def dismiss(self) -> None:
        """It isn't needed now."""
        ...


class Layouts:
    """One Layout for all requests whose inputs are alike, so that an engine examines it once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str, tuple[int, ...]], ...], Layout] = {}

    def of(self, request: InferRequest, inputs: Mapping[str, Tensor]) -> Layout:
        """The layout of a request with these inputs in place of its own, of the same datatypes."""
        tensors = tuple((name, datatype, inputs[name].shape) for name, datatype, _ in request.layout.tensors)
        known = self._known.get(tensors)
        if known is None:
            if len(self._known) >= KNOWN_LAYOUTS:
                self._known.clear()
            known = self._known[tensors] = Layout(tensors)
        return known


def copy_of(engine: Engine, inputs: Mapping[str, Tensor], layout: Layout, outputs: Sequence[str]) -> InferRequest:
    """A request of the guard's own: no deadline, nobody's tenant, of the lowest priority."""
    key = engine.key
    wanted = tuple(RequestedOutput(name) for name in outputs)
    return InferRequest(key.name, dict(inputs), layout, key.version, outputs=wanted)


async def answers(engine: Engine, requests: Sequence[InferRequest], patience: float) -> list[InferResponse | None]:
    """The answers within `patience` seconds, in order; None for each that failed or didn't come."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[InferResponse]] = [loop.create_future() for _ in requests]
    handles: list[CancelHandle] = []
    for request, future in zip(requests, futures, strict=True):
        try:
            handles.append(engine.submit(request, _into(future)))
        except TidegateError as error:
            future.set_result(InferResponse(request.model, request.version, error=error))
    try:
        await asyncio.wait(futures, timeout=patience)
    finally:
        for handle in handles:
            handle.cancel()
    done = [future.result() if future.done() else None for future in futures]
    return [each if each is not None and each.error is None else None for each in done]


def _into(future: asyncio.Future[InferResponse]) -> OnResponse:
    def answered(response: InferResponse, final: bool) -> None:
        if not future.done():
            future.set_result(response)

    return answered
