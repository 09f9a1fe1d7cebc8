"""The protocol over HTTP, binary tensors or JSON, by aiohttp: one connection a request in flight, kept alive."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from loadtests.asking import ModelFacts, Question, facts_of
from loadtests.clients.base import MOST_WHY, Answer, run_facts
from loadtests.clients.encoding import HEAD_LENGTH, HttpPrepared, http_prepared
from loadtests.samples import Outcome
from loadtests.scenario import Target
from server.errors import ConfigError, InvalidRequest
from server.protocol.client_codec import decode_response


class HttpClient:
    """`url` is the server's base address, `token` a bearer token."""

    def __init__(self, url: str, target: Target, token: str = "") -> None:
        self._binary = target.format == "binary"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = aiohttp.ClientSession(
            url.rstrip("/") + "/",
            connector=aiohttp.TCPConnector(limit=target.connections),
            timeout=aiohttp.ClientTimeout(total=target.timeout),
            headers=headers,
            skip_auto_headers=("Accept-Encoding",),  # no compression: neither side's time for it is what is measured
        )

    async def facts(self, model: str, version: str) -> ModelFacts:
        place = f"v2/models/{model}" + (f"/versions/{version}" if version else "")
        return facts_of(await self._get(place), await self._get(f"{place}/config"))

    async def _get(self, path: str) -> Mapping[str, Any]:
        try:
            async with self._session.get(path) as response:
                body = await response.read()
                if response.status != 200:
                    raise ConfigError(f"GET /{path} answers {response.status}: {_told(body)}")
                found: Mapping[str, Any] = orjson.loads(body)
                return found
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise ConfigError(f"no server of the Open Inference Protocol at {self._session._base_url}: {error or 'no answer'}") from error

    def prepare(self, question: Question, explain: bool, headers: Mapping[str, str]) -> HttpPrepared:
        return http_prepared(question, explain, headers, self._binary)

    async def ask(self, prepared: HttpPrepared, headers: Mapping[str, str]) -> Answer:
        try:
            told = {**prepared.headers, **headers} if headers else prepared.headers
            async with self._session.post(prepared.path, data=prepared.body, headers=told) as response:
                body = await response.read()
                if response.status == 200:
                    return answer_of(body, response.headers.get(HEAD_LENGTH)) if prepared.explain else Answer(Outcome.ANSWERED)
                outcome = Outcome.REFUSED if response.status == 503 else Outcome.FAILED
                return Answer(outcome, why=f"{response.status}: {_told(body)}")
        except TimeoutError:
            return Answer(Outcome.TIMED_OUT, why="no answer within target.timeout")
        except aiohttp.ClientError as error:
            return Answer(Outcome.FAILED, why=f"{type(error).__name__}: {error}"[:MOST_WHY])

    async def close(self) -> None:
        await self._session.close()
        await asyncio.sleep(0)  # aiohttp closes transports in the next turn


def answer_of(body: bytes, head_length: str | None) -> Answer:
    try:
        response = decode_response(body, int(head_length) if head_length else None)
    except (InvalidRequest, ValueError) as error:
        return Answer(Outcome.FAILED, why=str(error)[:MOST_WHY])
    return Answer(Outcome.ANSWERED, run_facts(response.parameters))


def _told(body: bytes) -> str:
    """The message of an error's body."""
    try:
        return str(orjson.loads(body)["error"])[:MOST_WHY]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:MOST_WHY].decode(errors="replace")
