"""The protocol over gRPC, by grpc.aio: a call a request, or requests over long-lived streams, whose answers are told apart by their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count
from typing import Any

import grpc

from loadtests.asking import ModelFacts, Question, facts_of
from loadtests.clients.base import MOST_WHY, Answer
from loadtests.clients.encoding import METHODS, GrpcPrepared, as_metadata, explained_by, grpc_prepared
from loadtests.samples import Outcome
from loadtests.scenario import Target
from server.errors import ConfigError
from server.protocol.proto.messages import INFERENCE, Message

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcClient:
    """Unary calls to `address` (host:port). At most `target.connections` are in flight."""

    def __init__(self, address: str, target: Target, token: str = "") -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._address = address
        self._timeout = target.timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._infer: Any = self._channel.unary_unary(f"/{INFERENCE}/ModelInfer")
        self._room = asyncio.Semaphore(target.connections)

    async def facts(self, model: str, version: str) -> ModelFacts:
        metadata = await self._call("ModelMetadata", model, version)
        config = await self._call("ModelConfig", model, version)
        inputs = [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in metadata.inputs]
        return facts_of({"name": model, "inputs": inputs}, {"max_batch_size": config.config.max_batch_size})

    async def _call(self, name: str, model: str, version: str) -> Message:
        method = METHODS[name]
        call: Any = self._channel.unary_unary(
            f"/{INFERENCE}/{name}", request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        try:
            return await call(method.request(name=model, version=version), metadata=self._metadata, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"{self._address}: {name} of '{model}': {error.code().name}: {error.details()}") from error

    def prepare(self, question: Question, explain: bool, headers: Mapping[str, str]) -> GrpcPrepared:
        return grpc_prepared(question, explain, (*self._metadata, *as_metadata(headers)))

    async def ask(self, prepared: GrpcPrepared, headers: Mapping[str, str]) -> Answer:
        async with self._room:
            try:
                metadata = (*prepared.metadata, *as_metadata(headers))
                body = await self._infer(prepared.head + prepared.tail, metadata=metadata, timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                return _failure(error)
        if not prepared.explain:
            return Answer(Outcome.ANSWERED)
        return Answer(Outcome.ANSWERED, explained_by(METHODS["ModelInfer"].response.FromString(body)))

    async def close(self) -> None:
        await self._channel.close()


class _Stream:
    """One ModelStreamInfer call: requests out as they come, answers to whom they belong."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        method = METHODS["ModelStreamInfer"]
        open_call: Any = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer", response_deserializer=method.response.FromString)
        self._call = open_call(metadata=metadata)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.ensure_future(self._read())

    async def ask(self, body: bytes, request_id: str) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            async with self._writing:
                await self._call.write(body)
            return await answer
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        except asyncio.InvalidStateError:  # the call has ended
            return Answer(Outcome.FAILED, why="the stream was closed")
        finally:
            self._waiting.pop(request_id, None)

    async def _read(self) -> None:
        try:
            async for message in self._call:
                response = message.infer_response
                answer = self._waiting.get(response.id)
                if answer is None or answer.done():
                    continue
                if message.error_message:
                    answer.set_result(Answer(Outcome.FAILED, why=message.error_message[:MOST_WHY]))
                else:
                    answer.set_result(Answer(Outcome.ANSWERED, explained_by(response)))
            failure = Answer(Outcome.FAILED, why="the server closed the stream")
        except grpc.aio.AioRpcError as error:
            failure = _failure(error)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(failure)

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


class StreamClient(GrpcClient):
    """Requests over `target.connections` streams in turn."""

    def __init__(self, address: str, target: Target, token: str = "") -> None:
        super().__init__(address, target, token)
        self._count = target.connections
        self._streams: list[_Stream] = []
        self._numbers = count()

    async def ask(self, prepared: GrpcPrepared, headers: Mapping[str, str]) -> Answer:
        number = next(self._numbers)
        if len(self._streams) < self._count:
            self._streams.append(_Stream(self._channel, prepared.metadata))
        request_id = str(number)
        body = prepared.head + METHODS["ModelInfer"].request(id=request_id).SerializeToString() + prepared.tail
        try:
            async with asyncio.timeout(self._timeout):
                return await self._streams[number % len(self._streams)].ask(body, request_id)
        except TimeoutError:
            return Answer(Outcome.TIMED_OUT, why="no answer within target.timeout")

    async def close(self) -> None:
        await asyncio.gather(*(stream.close() for stream in self._streams))
        await super().close()


def _failure(error: grpc.aio.AioRpcError) -> Answer:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Answer(Outcome.TIMED_OUT, why="no answer within target.timeout")
    refused = code is grpc.StatusCode.UNAVAILABLE and "connect" not in details.lower()  # else it's grpc's own word for no server
    return Answer(Outcome.REFUSED if refused else Outcome.FAILED, why=f"{code.name}: {details}"[:MOST_WHY])
