"""The monitor as a whole: against a real tidegate server, through restarts, reloads and notifiers that are down."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from monitor.alerts import State
from monitor.app import Monitor
from tests.monitor.files import EXAMPLE
from tests.monitor.pages_served import Request, reply, serving
from tests.server.models import identity_model
from tests.server.running import in_thread, infer_json, wire

COMMAND = (sys.executable, "-m", "tidegate", "monitor")


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Monitor]:
    """A monitor that was started and isn't ticking: the test does that."""
    said: list[str] = []
    monitor = Monitor(path, said.append)
    await monitor.start()
    try:
        yield monitor
    finally:
        await monitor.stop()


def written(folder: Path, port: int, more: str = "", metrics: str = "") -> Path:
    path = folder / "rules.yaml"
    path.write_text(
        f"{metrics or EXAMPLE}pack: false\nwatchdog: false\ninterval: 100ms\nstate: {folder}/state.db\n"
        f'sources: {{targets: ["127.0.0.1:{port}"], nvml: "off", host: false, timeout: 1}}\n{more}'
    )
    return path


def latency_page(slow: int, fast: int = 0) -> str:
    """A server's page: so many requests of 1 s, and of 10 ms."""
    name = "tidegate_request_duration_seconds"
    counts = {"0.05": fast, "0.2": fast, "2.5": fast + slow, "+Inf": fast + slow}
    return "".join(f'{name}_bucket{{model="m",le="{bound}"}} {count}\n' for bound, count in counts.items())


def hook(url: str) -> str:
    return f'notifiers: {{hook: {{type: webhook, url: "{url}"}}}}\ngroup: {{wait: 0s, interval: 0s}}\n'


class Target:
    """A target whose page the test changes."""

    def __init__(self) -> None:
        self.page = latency_page(0)

    def __call__(self, request: Request) -> bytes:
        return reply(self.page)


async def test_the_example_fires_and_resolves_against_a_real_server(tmp_path: Path) -> None:
    """A server whose every answer is slow by the test's own bucket: latencies below 200 ms don't fire, and the file is the example."""
    identity_model(tmp_path / "models" / "m" / "1" / "model.onnx")
    with in_thread(tmp_path / "models") as app:
        path = written(tmp_path, app.metrics.port, metrics=EXAMPLE.replace("200ms", "1us"))
        async with watching(path) as monitor, wire(app) as connection:
            await monitor.loop.tick()
            assert list(monitor.loop.evaluator.active()) == []
            for _ in range(5):
                assert (await connection.ask(infer_json("m", np.ones((1, 16), np.float32)))).status == 200
            await asyncio.sleep(0.01)
            (move,) = await monitor.loop.tick()
            assert (move.alert.name, move.alert.state) == ("InferenceLatency", State.FIRING)
            assert dict(move.alert.labels) == {"alertname": "InferenceLatency", "model": "m", "severity": "warning"}


async def test_a_latency_over_the_threshold_reaches_the_webhook_and_its_end_too(tmp_path: Path) -> None:
    target = Target()
    async with serving(target) as served, serving(reply()) as receiver:  # noqa: SIM117
        async with watching(written(tmp_path, served.port, hook(receiver.url))) as monitor:
            await _tick(monitor, target, latency_page(0, 1000))
            await _tick(monitor, target, latency_page(100, 1000))
            await monitor.delivery.once()
            monitor._zero += 61  # the slow ones leave the window
            await _tick(monitor, target, latency_page(100, 1000))
            await _tick(monitor, target, latency_page(100, 1050))
            await monitor.delivery.once()
    bodies = [request.json() for request in receiver.requests]
    assert [(body["status"], body["alerts"][0]["alert"], body["alerts"][0]["level"]) for body in bodies] == [
        ("firing", "InferenceLatency", "WARNING"),
        ("resolved", "InferenceLatency", "WARNING"),
    ]
    assert "inference_latency p99 over 1m is" in bodies[0]["alerts"][0]["annotations"]["summary"]


async def _tick(monitor: Monitor, target: Target, page: str) -> None:
    target.page = page
    await asyncio.sleep(0.002)  # samples have times of their own
    await monitor.loop.tick()


async def test_an_alert_survives_a_dead_notifier_and_a_restart(tmp_path: Path) -> None:
    target, up = Target(), False

    def answer(request: Request) -> bytes:
        return reply() if up else reply(status="503 Down")

    async with serving(target) as served, serving(answer) as receiver:
        path = written(tmp_path, served.port, hook(receiver.url))
        async with watching(path) as monitor:
            await _tick(monitor, target, latency_page(0))
            await _tick(monitor, target, latency_page(100))
            await monitor.delivery.once()
        up = True
        async with watching(path) as monitor:
            await _tick(monitor, target, latency_page(100))
            assert [alert.state for alert in monitor.loop.evaluator.active()] == [State.FIRING]
            await monitor.delivery.once()
    keys = [request.headers["idempotency-key"] for request in receiver.requests]
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_a_target_that_does_not_answer_is_an_alert(tmp_path: Path) -> None:
    async with serving(reply()) as served:
        port = served.port
    path = written(tmp_path, port, metrics="metrics:\n  - {name: target_up, alert: TargetDown, alert_level: CRITICAL}\n")
    async with watching(path) as monitor:
        (move,) = await monitor.loop.tick()
    assert dict(move.alert.labels)["instance"] == f"127.0.0.1:{port}"


async def test_a_bad_file_keeps_the_old_one_and_alerts(tmp_path: Path) -> None:
    broken = "metrics:\n  - {name: config_reload_failed, alert: MonitorConfigBroken}\n"
    async with serving(reply("x 1\n")) as served:
        path = written(tmp_path, served.port, metrics=broken)
        good = path.read_text()
        async with watching(path) as monitor:
            path.write_text("metrics:\n  - {name: nonsense}\n")
            await monitor.reload()
            (move,) = await monitor.loop.tick()
            assert (move.alert.name, move.alert.state) == ("MonitorConfigBroken", State.FIRING)
            path.write_text(good)
            await monitor.reload()
            await asyncio.sleep(0.002)
            (move,) = await monitor.loop.tick()
            assert move.alert.state is State.RESOLVED


async def test_a_change_of_the_file_is_noticed_and_alerts_go_on(tmp_path: Path) -> None:
    target = Target()
    async with serving(target) as served:
        path = written(tmp_path, served.port)
        async with watching(path) as monitor:
            await _tick(monitor, target, latency_page(0))
            await _tick(monitor, target, latency_page(100))
            (before,) = monitor.loop.evaluator.active()
            path.write_text(path.read_text().replace("90%", "95%"))
            stop, reload = asyncio.Event(), asyncio.Event()
            running = asyncio.create_task(monitor.run(stop, reload))
            while monitor.ruleset.rules[1].threshold != 0.95:
                await asyncio.sleep(0.01)
            stop.set()
            await running
            (after,) = monitor.loop.evaluator.active()
    assert (before.fired_at, before.labels) == (after.fired_at, after.labels)


async def test_actions_are_taken_audited_and_held_back(tmp_path: Path) -> None:
    target = Target()
    async with serving(target) as served, serving(reply()) as server:
        entry = "metrics:\n  - {name: inference_latency, threshold: 200ms, actions: step}\n"
        action = f'actions: {{step: {{do: step_precision, url: "{server.url}", at_most: 1}}}}\n'
        async with watching(written(tmp_path, served.port, action, entry)) as monitor:
            for slow in (0, 100):
                await _tick(monitor, target, latency_page(slow))
            await monitor.loop.settle()
            (alert,) = monitor.loop.evaluator.active()
            await monitor.loop._actions.take("step", alert, monitor.now())
            outcomes = [outcome for _, _, _, outcome in monitor.store.audited()]
    assert outcomes == ["done", "held back: done 1 times in the last hour"]
    assert [(request.path, request.json()["reason"]) for request in server.requests] == [
        ("/admin/models/m/precision/step", "alert InferenceLatency")
    ]


async def test_its_own_metrics_and_health(tmp_path: Path) -> None:
    async with serving(reply("x 1\n")) as served:  # noqa: SIM117
        async with watching(written(tmp_path, served.port, "listen: 127.0.0.1:0\n")) as monitor, httpx.AsyncClient() as client:
            assert monitor.status is not None
            url = f"http://127.0.0.1:{monitor.status.port}"
            await monitor.loop.tick()
            page = (await client.get(f"{url}/metrics")).text
            assert "tidegate_monitor_ticks_total 1\n" in page
            assert (await client.get(f"{url}/health")).status_code == 200
            assert (await client.get(f"{url}/nothing")).status_code == 404
            monitor._zero += 3600
            assert (await client.get(f"{url}/health")).status_code == 503


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("level", "code"), [("WARNING", 3), ("CRITICAL", 4), ("INFO", 5)])
async def test_once_says_by_its_exit_code_what_fires(tmp_path: Path, level: str, code: int) -> None:
    async with serving(reply()) as served:
        port = served.port
    written(tmp_path, port, metrics=f"metrics:\n  - {{name: target_up, alert_level: {level}}}\n")
    shown = run("run", "--once", "rules.yaml", folder=tmp_path)
    assert shown.returncode == code, shown.stderr
    assert '"alert": "TargetUp"' in shown.stdout


async def test_once_where_all_is_well(tmp_path: Path) -> None:
    async with serving(reply("x 1\n")) as served:
        written(tmp_path, served.port)
        shown = await asyncio.to_thread(run, "run", "--once", "rules.yaml", folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, "")


def test_check(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(EXAMPLE)
    (tmp_path / "bad.yaml").write_text(EXAMPLE.replace("gpu_utilization", "gpu_utilisation"))
    good, bad = run("check", "good.yaml", folder=tmp_path), run("check", "bad.yaml", folder=tmp_path)
    assert (good.returncode, bad.returncode) == (0, 1)
    assert good.stdout.startswith("good.yaml: 2 alerts, and ")
    assert bad.stderr.startswith(
        "error: bad.yaml:5:11: metrics.1.name: no metric is called 'gpu_utilisation'; did you mean gpu_utilization or"
    )


async def test_it_runs_reloads_on_sighup_and_stops_on_sigterm(tmp_path: Path) -> None:
    async with serving(reply("x 1\n")) as served:
        path = written(tmp_path, served.port)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "run", str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"NO_COLOR": "1"}
        )
        assert process.stderr is not None
        try:
            await served.until(lambda: len(served.requests) >= 2)
            process.send_signal(signal.SIGHUP)
            while b"rules from" not in await process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
