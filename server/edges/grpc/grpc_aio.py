"""The methods on grpc.aio: messages as bytes in and out, by generic handlers, so that nothing is parsed or copied on the way.

All that grpc.aio is needed for is here and in listener: another transport would replace these two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

import grpc

from server.edges.grpc.call import Call, admitted
from server.edges.grpc.gathering import Gathering
from server.edges.grpc.health import Health
from server.edges.grpc.inference import GrpcEdge, Inference
from server.edges.grpc.reflection import ALPHA, reflect
from server.edges.grpc.servicer import METHODS, Servicer
from server.edges.grpc.status import code_of, text_of, trailers_of
from server.edges.grpc.stream import InferStream
from server.errors import TidegateError
from server.gate import Operation
from server.protocol.proto.messages import HEALTH, INFERENCE, REFLECTION

Context: TypeAlias = Any  # grpc.aio.ServicerContext[bytes, bytes], whose stubs leave out half of what it has
Unary: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]

HEALTH_POLL = 0.2  # seconds between two looks at the readiness, for those who watch it
MAX_SUBJECT = 256


class AioCall:
    """The seam Call over a context of grpc.aio. `mutual`: clients show certificates."""

    __slots__ = ("_context", "_mutual", "_pairs")

    def __init__(self, context: Context, mutual: bool) -> None:
        self._context = context
        self._mutual = mutual
        self._pairs: tuple[tuple[str, str | bytes], ...] = context.invocation_metadata() or ()

    def metadata(self, name: str) -> str | None:
        """The first value of a header."""
        for key, value in self._pairs:
            if key == name:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None

    @property
    def certificate(self) -> str | None:
        """The common name, else the first alternative name, of the certificate that the client showed."""
        if not self._mutual:
            return None
        facts: Mapping[str, list[bytes]] = self._context.auth_context()
        names = [*facts.get("x509_common_name", ()), *facts.get("x509_subject_alternative_name", ())]
        return names[0].decode("utf-8", "replace")[:MAX_SUBJECT] if names else None

    @property
    def deadline(self) -> float | None:
        remaining: float | None = self._context.time_remaining()
        return None if remaining is None else monotonic() + remaining


class AioDuplex:
    """The seam Duplex over a context of grpc.aio."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        await self._context.write(message)


@dataclass(frozen=True, slots=True)
class Methods:
    """The parts behind the methods. `draining` is set when the server goes down; `mutual` says that clients show certificates."""

    edge: GrpcEdge
    servicer: Servicer
    health: Health
    gathering: Gathering
    draining: asyncio.Event
    mutual: bool

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """All services, for grpc.aio's server."""
        inference: dict[str, Any] = {name: _unary(self._cold(name)) for name in METHODS}
        inference["ModelInfer"] = _unary(self.infer)
        inference["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self.stream_infer)
        watch: Any = grpc.unary_stream_rpc_method_handler(self.watch)
        reflecting: dict[str, Any] = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self.reflect)}
        services = {INFERENCE: inference, HEALTH: {"Check": _unary(self.check), "Watch": watch}, REFLECTION: reflecting, ALPHA: reflecting}
        return tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())

    def call(self, context: Context) -> Call:
        """The seam over a context."""
        return AioCall(context, self.mutual)

    async def infer(self, body: bytes, context: Context) -> bytes:
        """ModelInfer. A client that cancels, or whose deadline passes, ends the task that this runs in."""
        waiting: asyncio.Future[bytes | TidegateError] = self.edge.shared.loop.create_future()

        def answered(answer: bytes | TidegateError, final: bool) -> None:
            if not waiting.done():
                waiting.set_result(answer)

        inference = Inference(self.edge, self.call(context), answered)
        try:
            self.gathering.add(partial(inference.begin, body))
            answer = await waiting
        finally:
            inference.abandon()
        if isinstance(answer, TidegateError):
            await refuse(context, answer)
            raise answer
        return answer

    async def stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """ModelStreamInfer."""
        try:
            call = self.call(context)
            admitted(self.edge.shared.gate, call, Operation.INFER)
            await InferStream(self.edge, call, AioDuplex(context), self.draining).run()
        except TidegateError as error:
            await refuse(context, error)

    def _cold(self, method: str) -> Unary:
        async def handle(body: bytes, context: Context) -> bytes:
            try:
                return await self.servicer.call(method, body, self.call(context))
            except TidegateError as error:
                await refuse(context, error)
                raise

        return handle

    async def check(self, body: bytes, context: Context) -> bytes:
        """Health's Check."""
        try:
            return self.health.check(body, self.call(context))
        except TidegateError as error:
            await refuse(context, error)
            raise

    async def watch(self, body: bytes, context: Context) -> None:
        """Health's Watch: what changes, until the client or the server ends."""
        try:
            now = self.health.watched(body, self.call(context))
        except TidegateError as error:
            await refuse(context, error)
            return
        sent = None
        while True:
            ending = self.draining.is_set()
            if (status := now()) != sent:
                await context.write(status)
                sent = status
            if ending:
                return
            await asyncio.sleep(HEALTH_POLL)

    async def reflect(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Reflection's only method."""
        try:
            admitted(self.edge.shared.gate, self.call(context), Operation.API_DOCUMENT)
            async for body in requests:
                await context.write(reflect(body))
        except TidegateError as error:
            await refuse(context, error)


async def refuse(context: Context, error: TidegateError) -> None:
    """End a call with an error's status. Raises grpc's own AbortError, so that nothing after it runs."""
    await context.abort(grpc.StatusCode[code_of(error)], text_of(error), trailers_of(error))


def _unary(handle: Unary) -> Any:
    return grpc.unary_unary_rpc_method_handler(handle)
