"""A running Prometheus, and what tests ask it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from monitor.render.prometheus_rule import dump
from tests.tools import tool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def prometheus(folder: Path, target: str, rule_text: str, *more: str) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes `target`, and `more` of them, four times a second and judges the rules as often."""
    every = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    jobs = [{"job_name": "tidegate", "static_configs": [{"targets": [target, *more]}]}]
    (folder / "prometheus.yaml").write_text(dump({"global": every, "rule_files": ["rendered.yaml"], "scrape_configs": jobs}))
    (folder / "rendered.yaml").write_text(rule_text)
    port = free_port()
    flags = ("--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error")
    process = await asyncio.create_subprocess_exec(tool("prometheus"), *flags, cwd=folder)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            await until(lambda: answers(client))
            yield client
    finally:
        process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def until(holds: Callable[[], Any]) -> None:
    """Ask again and again; the test's own time limit ends it."""
    while not await holds():
        await asyncio.sleep(0.1)


async def scraped(client: httpx.AsyncClient) -> bool:
    return bool(await asked(client, "count_over_time(up[1m]) > 4"))


async def asked(client: httpx.AsyncClient, query: str) -> list[Any]:
    answer = (await client.get("/api/v1/query", params={"query": query})).json()
    assert answer["status"] == "success", (query, answer)
    result: list[Any] = answer["data"]["result"]
    return result
