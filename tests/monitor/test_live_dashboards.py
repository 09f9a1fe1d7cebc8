"""Every query of every dashboard gives data on a real Prometheus that scrapes a real server, a monitor, GPUs' figures and DCGM's.

The machine has no GPU: the server's own metrics port shows what a faked NVML says, and DCGM's page is written here.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from monitor.app import Monitor
from monitor.render.grafana.dashboards import BOARDS
from monitor.render.grafana.panels import Panel
from monitor.render.grafana.watched import watched
from monitor.render.prometheus_rule import rule_yaml
from monitor.rules.model import Ruleset
from server.app import App
from server.metrics.exposition import MetricsServer, Sources
from server.metrics.gpu import Gpus
from server.metrics.recorder import Recorder
from tests.monitor.files import EXAMPLE, rules
from tests.monitor.pages_served import reply, serving
from tests.monitor.real_prometheus import asked, prometheus, scraped, until
from tests.monitor.render.boards import filled
from tests.server.metrics.nvml import FakeNvml
from tests.server.models import identity_model, masked_model, place
from tests.server.running import http, in_thread, infer_json, wire
from tests.server.test_ladder_serving import place_emulated
from tests.server.test_process_lanes import PROCESS, pids
from tests.server.test_sequences import STATE, adder_model

DCGM = "".join(
    f'DCGM_FI_DEV_{name}{{gpu="0",UUID="GPU-0",Hostname="node",modelName="Tesla T4"}} {value}\n'
    for name, value in (
        *(("GPU_UTIL", 40), ("FB_USED", 3072), ("FB_FREE", 12000), ("GPU_TEMP", 61), ("POWER_USAGE", 45)),
        *(("THERMAL_VIOLATION", 5), ("ECC_DBE_VOL_TOTAL", 0)),
    )
)
FIRES = "  - {name: queue_rows, alert: Always, threshold: -1}\n"
MONITOR = 'sources: {targets: ["127.0.0.1:9"], nvml: "off", host: true}\nlisten: 127.0.0.1:0\n'


def repository(folder: Path) -> Path:
    """A model in a process lane, one with a cache, one that is padded, one with state, one in two versions, and one on a ladder."""
    place(folder, "m", identity_model, yaml=PROCESS)
    place(folder, "cached", identity_model, yaml="cache: {max_bytes: 1MiB}\n")
    place(folder, "padded", masked_model, yaml="batching: {pad_axes: {tokens: [1], mask: [1]}}\n")
    place(folder, "stateful", adder_model, yaml=STATE)
    for version in ("1", "2"):
        place(folder, "rolled", identity_model, version=version, yaml='routing: {weights: {"1": 100, "2": 0}}\n')
    return place_emulated(folder)


async def ask_everything(app: App) -> None:
    """What makes every family of the server: answers, hits, padding, a sequence, and a lane that dies."""
    async with wire(app) as connection:
        for number in range(20):
            for name in ("m", "cached"):
                assert (await connection.ask(infer_json(name, np.full((1, 16), number // 2, np.float32)))).status == 200
        tokens = {"name": "tokens", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}
        body = str({"inputs": [tokens, {**tokens, "name": "mask", "data": [1, 1, 1]}]}).replace("'", '"').encode()
        assert (await connection.ask(http("/v2/models/padded/infer", body))).status == 200
        started = {"sequence_id": 7, "sequence_start": True}
        assert (await connection.ask(infer_json("stateful", np.ones((1, 2), np.float32), parameters=started))).status == 200
        for path, said in (("rolled/canary", {"version": "2", "steps": [50, 100]}), ("net/precision/step", {})):
            assert (await connection.ask(http(f"/admin/models/{path}", json.dumps(said).encode()))).status in (200, 201), path
        for _ in range(50):
            assert (await connection.ask(infer_json("rolled", np.ones((1, 16), np.float32)))).status == 200
    for pid in pids(app, "m"):
        os.kill(pid, signal.SIGKILL)


def own_rules(folder: Path) -> Path:
    folder.mkdir()
    (folder / "rules.yaml").write_text(f"metrics: []\ninterval: 1s\n{MONITOR}state: {folder}/state.db\n")
    return folder / "rules.yaml"


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[str]:
    """A monitor of its own, for what it says of itself. Its address."""
    monitor = Monitor(own_rules(folder), lambda text: None)
    await monitor.start()
    assert monitor.status is not None
    try:
        yield f"127.0.0.1:{monitor.status.port}"
    finally:
        await monitor.stop()


async def test_every_query_of_every_dashboard_gives_data(tmp_path: Path) -> None:
    ruleset = rules(tmp_path, EXAMPLE + FIRES)
    gpus = Gpus(lambda state: None, FakeNvml(count=2))
    cards = MetricsServer("127.0.0.1", 0, Sources(Recorder(), gpus), live=lambda: True, ready=lambda: True)
    gpus.start()
    cards.start()
    try:
        with in_thread(repository(tmp_path / "models")) as app:
            async with serving(reply(DCGM)) as dcgm, watching(tmp_path / "monitor") as monitor:
                more = (f"127.0.0.1:{cards.port}", f"127.0.0.1:{dcgm.port}", monitor)
                async with prometheus(tmp_path, f"127.0.0.1:{app.metrics.port}", rule_yaml(ruleset), *more) as client:
                    await until(lambda: scraped(client))
                    await ask_everything(app)
                    left = queries(ruleset)
                    while left:  # a rate needs two samples; what stays empty is shown where the test's time limit ends it
                        left = [query for query in left if not await asked(client, query)]
    finally:
        cards.close()
        gpus.close()


def queries(ruleset: Ruleset) -> list[str]:
    """Every query of every dashboard, but of families that this server version doesn't export: their panels say so."""
    panels: list[Panel] = [panel for board in BOARDS for _, row in board.rows for panel in row]
    panels += [panel for board in BOARDS for panel in watched(ruleset, board.key)]
    found = [filled(expr) for panel in panels if not panel.missing for expr, _ in panel.asks]
    assert len(found) > 60
    return list(dict.fromkeys(found))
