"""Against a running Prometheus with the rendered rules: it and the monitor watch the same target and agree, the monitor asks it PromQL,
and every query of the dashboard gives data from a real tidegate server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from monitor.alerts import State
from monitor.app import Monitor
from monitor.render.grafana import dashboard
from monitor.render.prometheus_rule import dump, rule_yaml
from tests.monitor.files import EXAMPLE, rules
from tests.monitor.pages_served import Request, reply, serving
from tests.server.models import identity_model
from tests.server.running import in_thread, infer_json, wire
from tests.tools import tool

# Two seconds of samples are a window here, so that an alert ends while a test waits.
SETTINGS = 'pack: false\nwatchdog: false\ninterval: 250ms\nsources: {targets: ["TARGET"], nvml: "off", host: false}\nstate: STATE\n'
ELSEWHERE = {"MonitorConfigBroken", "LaneRestarts"}
"""Panels of what the monitor itself exports, and of series that are there only once something has happened."""

Page = Callable[[bool, int], str]
CASES: Mapping[str, tuple[str, Page]] = {
    "a latency": (
        "metrics:\n  - {name: inference_latency, threshold: 200ms, window: 2s}\n",
        lambda slow, count: "".join(
            f'tidegate_request_duration_seconds_bucket{{model="m",le="{bound}"}} {1000 + (count if bound > 0.2 or not slow else 0)}\n'
            for bound in (0.05, 0.2, 2.5, float("inf"))
        ).replace("inf", "+Inf"),
    ),
    "a gauge with hysteresis": (
        "metrics:\n  - {name: queue_rows, threshold: 100, clear: 50, window: 1s}\n",
        lambda slow, count: f'tidegate_queue_rows{{model="m",version="1"}} {150 if slow else 10}\n',
    ),
    "an error rate": (
        "metrics:\n  - {name: error_rate, threshold: 10%, window: 2s}\n",
        lambda slow, count: (
            f'tidegate_requests_total{{model="m",outcome="failed"}} {1000 + (count if slow else 0)}\n'
            f'tidegate_requests_total{{model="m",outcome="success"}} {1000 + count}\n'
        ),
    ),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def prometheus(folder: Path, target: str, rule_text: str) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes `target` four times a second and judges the rules as often."""
    every = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    jobs = [{"job_name": "tidegate", "static_configs": [{"targets": [target]}]}]
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


async def fires(client: httpx.AsyncClient) -> bool:
    alerts = (await client.get("/api/v1/alerts")).json()["data"]["alerts"]
    return any(alert["state"] == "firing" for alert in alerts)


@pytest.mark.parametrize("case", CASES)
async def test_both_fire_and_both_end(tmp_path: Path, case: str) -> None:
    metrics, page = CASES[case]
    slow, count = False, 0

    def answer(request: Request) -> bytes:
        nonlocal count
        count += 10
        return reply(page(slow, count))

    async with serving(answer) as served:
        target = f"127.0.0.1:{served.port}"
        ruleset = rules(tmp_path, metrics + SETTINGS.replace("TARGET", target).replace("STATE", str(tmp_path / "state.db")))
        monitor = Monitor(tmp_path / "rules.yaml", lambda text: None)
        await monitor.start()
        stop = asyncio.Event()
        ticking = asyncio.create_task(monitor.run(stop, asyncio.Event()))

        async def both(state: bool) -> None:
            ours = [alert.state is State.FIRING for alert in monitor.loop.evaluator.active()]
            while any(ours) != state or await fires(client) != state:
                await asyncio.sleep(0.1)
                ours = [alert.state is State.FIRING for alert in monitor.loop.evaluator.active()]

        async with prometheus(tmp_path, target, rule_yaml(ruleset)) as client:
            await until(lambda: scraped(client))
            for slow in (True, False):
                await both(slow)
        stop.set()
        await ticking
        await monitor.stop()


async def scraped(client: httpx.AsyncClient) -> bool:
    return bool(await asked(client, "count_over_time(up[1m]) > 4"))


async def asked(client: httpx.AsyncClient, query: str) -> list[Any]:
    answer = (await client.get("/api/v1/query", params={"query": query})).json()
    assert answer["status"] == "success", (query, answer)
    result: list[Any] = answer["data"]["result"]
    return result


async def test_every_query_of_the_dashboard_gives_data_from_a_real_server(tmp_path: Path) -> None:
    identity_model(tmp_path / "models" / "m" / "1" / "model.onnx")
    ruleset = rules(tmp_path, EXAMPLE)
    with in_thread(tmp_path / "models") as app:
        async with prometheus(tmp_path, f"127.0.0.1:{app.metrics.port}", rule_yaml(ruleset)) as client, wire(app) as connection:
            await until(lambda: scraped(client))
            for _ in range(20):
                assert (await connection.ask(infer_json("m", np.ones((1, 16), np.float32)))).status == 200
            panels = dashboard(ruleset)["panels"]
            while panels:  # a rate needs two samples; what stays empty ends at the test's time limit
                panels = [panel for panel in panels if await has_no_data(client, panel)]


async def has_no_data(client: httpx.AsyncClient, panel: dict[str, Any]) -> bool:
    """Whether a panel that should have data has none. One whose family isn't exported says so in its description."""
    empty = False
    for target in panel.get("targets", ()):
        expr = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*").replace("$version", ".*")
        found = await asked(client, expr.replace("$precision", ".*").replace("$instance", ".*"))
        own = "description" not in panel and panel["title"] not in ELSEWHERE
        empty = empty or (own and not found)
    return empty


async def test_the_monitor_asks_a_prometheus_and_holds_still_while_it_is_away(tmp_path: Path) -> None:
    async with serving(reply("x 5\n")) as served, prometheus(tmp_path, f"127.0.0.1:{served.port}", "groups: []\n") as client:
        await until(lambda: scraped(client))
        text = (
            "pack: false\nwatchdog: false\ninterval: 100ms\n"
            "metrics:\n  - {expr: x, alert: TooMuch, threshold: 4}\n  - {name: target_up, alert: TargetDown}\n"
            f'sources: {{prometheus: "{client.base_url}"}}\nstate: {tmp_path}/state.db\n'
        )
        (tmp_path / "rules.yaml").write_text(text)
        monitor = Monitor(tmp_path / "rules.yaml", lambda text: None)
        await monitor.start()
        (move,) = await monitor.loop.tick()
        assert (move.alert.name, dict(move.alert.labels)["instance"]) == ("TooMuch", f"127.0.0.1:{served.port}")
    (gone,) = await monitor.loop.tick()
    assert (gone.alert.name, dict(gone.alert.labels)["job"]) == ("TargetDown", "prometheus")
    assert {alert.name for alert in monitor.loop.evaluator.active()} == {"TooMuch", "TargetDown"}
    await monitor.stop()
