"""A Prometheus server that answers PromQL. Where it doesn't answer, nothing is known: that resolves no alert, and is one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import httpx
import orjson

from monitor.alerts import Vector, labels_of
from monitor.rules.settings import Sources
from monitor.series.window import Reading
from monitor.sources.scrape import Unanswered, bearer

JOB = "prometheus"
AT_ONCE = 8


class Prometheus:
    """Asks instant queries. `answers` are those of the last `read`; what failed isn't in it."""

    def __init__(self, settings: Sources, queries: Iterable[str]) -> None:
        self._settings = settings
        self._url = (settings.prometheus or "").rstrip("/")
        self._queries = tuple(dict.fromkeys(queries))
        self._client = httpx.AsyncClient(timeout=settings.timeout, follow_redirects=False, trust_env=False)
        self.answers: Mapping[str, Vector] = {}
        self.errors: Mapping[str, str] = {}

    async def read(self) -> Sequence[Reading]:
        began, gate = monotonic(), asyncio.Semaphore(AT_ONCE)

        async def ask(query: str) -> Vector | str:
            async with gate:
                return await self._ask(query)

        answers = dict(zip(self._queries, await asyncio.gather(*(ask(query) for query in self._queries)), strict=True))
        self.answers = {query: answer for query, answer in answers.items() if not isinstance(answer, str)}
        self.errors = {query: answer for query, answer in answers.items() if isinstance(answer, str)}
        error = next(iter(self.errors.values())) if self.errors and not self.answers else ""
        return [Reading(JOB, self._url, error=error, seconds=monotonic() - began)]

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, query: str) -> Vector | str:
        """The answer, or what was wrong."""
        try:
            body = await self._fetch(query)
            if body.get("status") != "success":
                return f"{self._url}: {str(body.get('error', 'no success'))[:300]}"
            return _vector(body["data"])
        except (Unanswered, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{self._url}: {str(error) or type(error).__name__}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{self._url} answered what isn't Prometheus' API: {error!r:.200}"

    async def _fetch(self, query: str) -> Any:
        headers = {"accept-encoding": "identity", **bearer(self._settings.token)}
        async with self._client.stream("POST", f"{self._url}/api/v1/query", data={"query": query}, headers=headers) as answer:
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > self._settings.max_bytes:
                    raise Unanswered(f"sent more than {self._settings.max_bytes} bytes (sources.max_bytes)")
            if answer.status_code not in (200, 400, 422, 503):
                raise Unanswered(f"answered {answer.status_code}")
            return orjson.loads(body)


def _vector(data: Mapping[str, Any]) -> Vector:
    if data["resultType"] == "scalar":
        return {(): float(data["result"][1])}
    if data["resultType"] != "vector":
        raise ValueError(f"a query must give a vector, not a {data['resultType']}")
    return {
        labels_of({name: value for name, value in item["metric"].items() if name != "__name__"}): float(item["value"][1])
        for item in data["result"]
    }
