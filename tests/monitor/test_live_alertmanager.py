"""Against a running Alertmanager: what the monitor posts is an alert there, goes where the rendered routes say, and ends there too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from monitor.app import Monitor
from monitor.render.alertmanager import alertmanager_yaml
from tests.monitor.files import rules
from tests.monitor.pages_served import Request, Served, reply, serving
from tests.monitor.real_prometheus import answers, free_port, until
from tests.tools import tool

ALONE = "pack: false\nwatchdog: false\n"
METRICS = "metrics:\n  - {name: queue_rows, threshold: 5, alert_level: WARNING}\n"


@asynccontextmanager
async def alertmanager(folder: Path, hook: Served) -> AsyncIterator[httpx.AsyncClient]:
    """An Alertmanager with the routes of a rules file whose warnings go to `hook`, each group at once."""
    routes = f'notifiers: {{hook: {{type: webhook, url: "{hook.url}"}}}}\nroutes: [{{level: WARNING, to: hook}}]\n'
    ruleset = rules(folder, f"{ALONE}{METRICS}{routes}group: {{by: [alertname, model], wait: 0s, interval: 1s}}\n")
    (folder / "alertmanager.yaml").write_text(alertmanager_yaml(ruleset))
    port = free_port()
    flags = ("--config.file=alertmanager.yaml", "--storage.path=am", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error")
    process = await asyncio.create_subprocess_exec(tool("prometheus-alertmanager"), *flags, "--cluster.listen-address=", cwd=folder)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            await until(lambda: answers(client))
            yield client
    finally:
        process.terminate()
        await process.wait()


async def monitoring(folder: Path, name: str, target: Served, manager: httpx.AsyncClient) -> Monitor:
    """A monitor with a state of its own, which is started and told when to tick."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f'{ALONE}{METRICS}interval: 250ms\nidentity: {name}\nsources: {{targets: ["127.0.0.1:{target.port}"], nvml: "off", host: false}}\n'
        f'state: {folder}/{name}.db\nnotifiers: {{am: {{type: alertmanager, url: "{manager.base_url}"}}}}\ngroup: {{interval: 0s}}\n'
    )
    monitor = Monitor(path, lambda text: None)
    await monitor.start()
    return monitor


async def look(*monitors: Monitor) -> None:
    for monitor in monitors:
        await monitor.loop.tick()
        await monitor.delivery.once()


async def test_an_alert_of_two_monitors_is_one_there_and_ends(tmp_path: Path) -> None:
    queued = 10

    def page(request: Request) -> bytes:
        return reply(f'tidegate_queue_rows{{model="m",version="1"}} {queued}\n')

    async with serving(page) as target, serving(reply()) as hook, alertmanager(tmp_path, hook) as manager:
        both = [await monitoring(tmp_path, name, target, manager) for name in ("first", "second")]
        await look(*both)
        await hook.until(lambda: len(hook.requests) >= 1)
        (there,) = (await manager.get("/api/v2/alerts")).json()
        assert there["labels"] == {"alertname": "QueueRows", "model": "m", "severity": "warning"}
        assert there["annotations"]["runbook_url"] == "docs/runbooks/QueueGrowing.md"
        queued = 0
        await look(*both)
        await hook.until(lambda: hook.requests[-1].json()["status"] == "resolved")
        for monitor in both:
            await monitor.stop()
    told = [request.json() for request in hook.requests]
    assert [(body["status"], body["receiver"], len(body["alerts"])) for body in told] == [("firing", "hook", 1), ("resolved", "hook", 1)]
