"""Against a running Prometheus with the rendered rules: it and the monitor watch one target and agree, and the monitor asks it PromQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from monitor.alerts import State
from monitor.app import Monitor
from monitor.render.prometheus_rule import rule_yaml
from tests.monitor.files import rules
from tests.monitor.pages_served import Request, reply, serving
from tests.monitor.real_prometheus import prometheus, scraped, until

# Two seconds of samples are a window here, so that an alert ends while a test waits.
SETTINGS = 'pack: false\nwatchdog: false\ninterval: 250ms\nsources: {targets: ["TARGET"], nvml: "off", host: false}\nstate: STATE\n'

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
