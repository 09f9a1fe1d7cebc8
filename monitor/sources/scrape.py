"""Pages in Prometheus' text format, fetched within bounds: a time, a size, no redirect, no compression that could burst."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from time import monotonic

import httpx

from monitor.rules.secrets import reveal
from monitor.rules.settings import Secret, Sources
from monitor.series.text import Exposition, Unreadable
from monitor.series.window import Reading
from monitor.sources.addresses import Place, Refused, places
from server.errors import ConfigError

ACCEPT = "text/plain;version=0.0.4"


class Unanswered(Exception):
    """A target that gave no page, and why."""


class Scraper:
    """The targets of one job. `wanted` are the names that are read from their pages; None reads all."""

    def __init__(self, job: str, targets: Sequence[str], settings: Sources, wanted: Collection[str] | None = None) -> None:
        self._job = job
        self._targets = tuple(targets)
        self._settings = settings
        self._wanted = None if wanted is None else frozenset(wanted)
        self._readers: dict[str, Exposition] = {}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=settings.timeout, limits=limits)

    async def read(self) -> Sequence[Reading]:
        found = await asyncio.gather(*(self._read_target(target) for target in self._targets))
        readings = [reading for several in found for reading in several]
        self._readers = {reading.instance: self._readers[reading.instance] for reading in readings if reading.instance in self._readers}
        return readings

    async def close(self) -> None:
        await self._client.aclose()

    async def _read_target(self, target: str) -> list[Reading]:
        try:
            found = await places(target, allow_link_local=self._settings.allow_link_local)
        except Refused as error:
            return [Reading(self._job, target, error=str(error))]
        return list(await asyncio.gather(*(self._read_place(place) for place in found)))

    async def _read_place(self, place: Place) -> Reading:
        began = monotonic()
        reader = self._readers.get(place.instance)
        if reader is None:
            reader = self._readers[place.instance] = Exposition({"job": self._job, "instance": place.instance}, self._wanted)
        try:
            async with asyncio.timeout(self._settings.timeout):
                page = await self._page(place)
            samples = reader.read(page.decode("utf-8", "replace"))
        except TimeoutError:
            return Reading(self._job, place.instance, error=f"no answer within {self._settings.timeout:g}s")
        except (Unanswered, Unreadable, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Reading(self._job, place.instance, error=str(error) or type(error).__name__)
        return Reading(self._job, place.instance, samples, seconds=monotonic() - began)

    async def _page(self, place: Place) -> bytes:
        headers = {"accept": ACCEPT, "accept-encoding": "identity", "host": place.host, **bearer(self._settings.token)}
        request = self._client.build_request("GET", place.url, headers=headers, extensions={"sni_hostname": place.name})
        answer = await self._client.send(request, stream=True)
        try:
            if answer.status_code != 200:
                raise Unanswered(f"answered {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise Unanswered("sent a compressed page, which wasn't asked for")
            page = bytearray()
            async for chunk in answer.aiter_raw():
                page += chunk
                if len(page) > self._settings.max_bytes:
                    raise Unanswered(f"sent more than {self._settings.max_bytes} bytes (sources.max_bytes)")
            return bytes(page)
        finally:
            await answer.aclose()


def bearer(token: Secret | None) -> dict[str, str]:
    """The header that carries a token. Raises Unanswered where the token isn't there."""
    if token is None:
        return {}
    try:
        return {"authorization": f"Bearer {reveal(token)}"}
    except ConfigError as error:
        raise Unanswered(str(error)) from error
