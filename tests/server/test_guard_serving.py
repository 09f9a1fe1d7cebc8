"""The drift guard in a real server: a variant that drifted is replaced and pinned out, and no client ever notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from server.app import App
from server.commands.precision import app as precision_command
from server.lanes.process.lane import ProcessLane
from server.precision.guard.record import Blame
from server.precision.variants import State
from tests.server.models import linear_model, linear_weights, variant, write_manifest
from tests.server.precision.guard.engines import POISON, noisy_linear, sometimes_nan
from tests.server.running import Answer, Wire, http, infer_json, running, wire

PATH = "/admin/models/net/precision"
GUARD = "guard: {sample: 100%, budget: 100%, floor: 1000}"
CLIENTS = 4
Build = Callable[[Path], Path]


def drifted(path: Path) -> Path:
    return noisy_linear(path, 1.0)


def healthy(path: Path) -> Path:
    return noisy_linear(path, 1e-5)


def place_net(root: Path, precision: str, more: str = "", **builds: Build) -> Path:
    """A model with FP32 and these other precisions; `precision` is the section of model.yaml."""
    folder = root / "net" / "1"
    files = {name: build(folder / f"model.{name}.onnx") for name, build in {"fp32": linear_model, **builds}.items()}
    write_manifest(folder, "net", [variant(file, name, target="cpu") for name, file in files.items()])
    (root / "net" / "model.yaml").write_text(f"precision: {{{precision}}}\n{more}")
    return root


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)


def answer_of(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    return np.array(answer.json()["outputs"][0]["data"], np.float32)


def right(array: np.ndarray) -> np.ndarray:
    weight, bias = linear_weights()
    return (array @ weight + bias).ravel()


async def told(app: App) -> Any:
    async with wire(app) as connection:
        return (await connection.ask(http(PATH, b"", "GET"))).json()


async def events(app: App, what: str) -> list[Any]:
    return [event for event in await app.events.since() if event.what == what]


@asynccontextmanager
async def load(app: App, clients: int = CLIENTS) -> AsyncIterator[list[Answer]]:
    """Clients that ask without a pause while the block runs; all that they were answered."""
    came: list[Answer] = []
    done = asyncio.Event()

    async def ask(connection: Wire, seed: int) -> None:
        while not done.is_set():
            seed += clients
            came.append(await connection.ask(infer_json("net", row(seed), parameters={"explain": True})))

    async with asyncio.TaskGroup() as group:
        connections = [await asyncio.open_connection("127.0.0.1", app.http.port) for _ in range(clients)]
        for number, (reader, writer) in enumerate(connections):
            group.create_task(ask(Wire(reader, writer), number))
        try:
            yield came
        finally:
            done.set()
    for _, writer in connections:
        writer.close()


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def active(app: App) -> str:
    served = app.table.default("net")
    assert served is not None
    assert served.engine is not None
    return served.engine.key.precision


def guard_of(app: App) -> Any:
    known = app.control.guarding.of(("net", "1"))
    assert known is not None
    return known.guard


@pytest.mark.parametrize("kind", ["thread", "process", "inline"])
async def test_a_poisoned_variant_falls_back_under_load_and_nobody_notices(tmp_path: Path, kind: str) -> None:
    place_net(tmp_path, f"active: int8, {GUARD}", f"lanes: {{kind: {kind}, count: 1, threads: 1}}", int8=drifted)
    async with running(tmp_path) as app:
        assert active(app) == "int8"
        async with load(app) as came:
            await until(lambda: active(app) == "fp32")
            after = len(came)
            await until(lambda: len(came) > after + 50)
        assert {answer.status for answer in came} == {200}
        late = [answer for answer in came[after:] if answer.json()["parameters"]["precision"] == "int8"]
        assert len(late) <= 2 * CLIENTS, "what each client had asked for before"
        async with wire(app) as connection:
            assert np.allclose(answer_of(await connection.ask(infer_json("net", row(1)))), right(row(1)), atol=1e-4)
        await until(lambda: app.control.guarding.of(("net", "1")).acting is None)  # type: ignore[union-attr]
        served = app.table.default("net")
        assert served is not None
        assert served.variants["int8"].state is State.PINNED_OUT
        (event,) = await events(app, "drift")
        assert (event.who, event.was, event.now) == ("guard", "int8", "fp32")
        assert "int8 differs from FP32 in" in event.why
        assert "divergence_max" in event.why
        found = (await told(app))["guard"][0]
        assert found["variants"]["int8"]["verdict"] == "drifted"
        assert found["watching"] is None


async def test_nan_for_one_input_never_leaves_and_is_enough(tmp_path: Path) -> None:
    place_net(tmp_path, f"active: int8, {GUARD}", int8=sometimes_nan)
    async with running(tmp_path) as app, wire(app) as connection:
        for seed in range(20):
            assert np.allclose(answer_of(await connection.ask(infer_json("net", row(seed)))), right(row(seed)), atol=1e-4)
        assert active(app) == "int8"
        poison = row(0)
        poison[0, 0] = POISON
        answer = await connection.ask(infer_json("net", poison, parameters={"explain": True}))
        assert np.allclose(answer_of(answer), right(poison), atol=1e-4)
        assert answer.json()["parameters"]["precision"] == "fp32"
        await until(lambda: active(app) == "fp32")
        assert guard_of(app).records["int8"].nonfinite[Blame.VARIANT] == 1
        await until(lambda: app.control.guarding.of(("net", "1")).acting is None)  # type: ignore[union-attr]
        (event,) = await events(app, "drift")
        assert "NaN or Inf" in event.why


async def test_a_healthy_variant_serves_on_and_its_figures_are_shown(tmp_path: Path) -> None:
    place_net(tmp_path, f"active: int8, {GUARD}", int8=healthy)
    async with running(tmp_path) as app:
        async with load(app) as came:
            await until(lambda: guard_of(app).records["int8"].rows >= 50)
        assert {answer.status for answer in came} == {200}
        assert active(app) == "int8"
        app.control.guarding.show()
        reader, writer = await asyncio.open_connection("127.0.0.1", app.metrics.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        labels = 'model="net",precision="int8",version="1"'
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        lines = {key: value for key, value in lines.items() if "net" in key}
        assert float(next(value for key, value in lines.items() if key.startswith("tidegate_drift_samples_total"))) >= 50, labels
        assert float(next(value for key, value in lines.items() if key.startswith("tidegate_drift_threshold"))) == 14
        assert float(next(value for key, value in lines.items() if key.startswith("tidegate_guard_paused"))) == 0
        assert (await told(app))["guard"][0]["variants"]["int8"]["verdict"] == "healthy"


async def test_a_dead_reference_pauses_the_guard_and_nothing_else(tmp_path: Path) -> None:
    place_net(tmp_path, f"active: int8, {GUARD}", "lanes: {kind: process, count: 1, threads: 1}", int8=healthy)
    async with running(tmp_path) as app:
        served = app.table.default("net")
        assert served is not None
        await until(lambda: served.variants["fp32"].engine is not None)
        fp32 = served.variants["fp32"].engine
        assert fp32 is not None
        (tmp_path / "net" / "1" / "model.fp32.onnx").unlink()  # so that it can't come back
        lane = fp32.lanes[0]
        assert isinstance(lane, ProcessLane)
        os.kill(lane.pid, signal.SIGKILL)
        async with load(app) as came:
            await until(lambda: guard_of(app).paused)
            before = len(came)
            await until(lambda: len(came) > before + 50)
        assert {answer.status for answer in came} == {200}
        assert active(app) == "int8"
        assert (await told(app))["guard"][0]["paused"]


async def test_a_reference_on_demand_is_loaded_for_a_round_and_let_go(tmp_path: Path) -> None:
    place_net(tmp_path, "active: int8, guard: {sample: 100%, budget: 100%, floor: 1000, reference: on_demand}", int8=healthy)
    async with running(tmp_path) as app:
        served = app.table.default("net")
        assert served is not None
        async with wire(app) as connection:
            for seed in range(8):
                await connection.ask(infer_json("net", row(seed)))
            assert served.variants["fp32"].engine is None
        async with load(app) as came:
            await until(lambda: guard_of(app).records["int8"].rows >= 32)
        assert {answer.status for answer in came} == {200}
        await until(lambda: served.variants["fp32"].holders == 0)
        await until(lambda: served.variants["fp32"].engine is None)


async def test_a_variant_without_proof_here_is_tried_before_the_ladder_may_use_it(tmp_path: Path) -> None:
    place_net(tmp_path, f"policy: ladder, ladder: [fp32, int8], {GUARD}", "batching: {latency_objective: 100ms}", int8=healthy)
    path = tmp_path / "net" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    for each in manifest["variants"]:
        each["parity"]["device"] = "another device"
    path.write_text(json.dumps(manifest))
    async with running(tmp_path) as app:
        served = app.table.default("net")
        assert served is not None
        assert not served.variants["int8"].proven
        async with load(app) as came:
            await until(lambda: served.variants["int8"].proven)
        assert {answer.status for answer in came} == {200}
        await until(lambda: served.variants["int8"].holders == 0)
        assert guard_of(app).watched is None
        (event,) = await events(app, "admission")
        assert event.now == "admitted"


async def test_the_worst_samples_are_kept_only_where_asked_for_and_purged(tmp_path: Path) -> None:
    place_net(tmp_path / "models", "active: int8, guard: {sample: 100%, budget: 100%, floor: 1000, keep_worst: 3}", int8=drifted)
    folder = tmp_path / "recorded"
    async with running(tmp_path / "models", recording={"dir": folder}) as app:
        async with load(app):
            await until(lambda: active(app) == "fp32")
        kept = sorted((folder / "worst" / "net" / "1").iterdir())
        assert 1 <= len(kept) <= 3
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
        with np.load(kept[-1]) as found:
            assert set(found) == {"input%3Ax", "answer%3Ay", "fp32%3Ay"}
            assert np.allclose(found["fp32%3Ay"].ravel(), right(found["input%3Ax"]), atol=1e-4)
        url = f"http://127.0.0.1:{app.http.port}"
        result = await asyncio.to_thread(CliRunner().invoke, precision_command, ["purge", "net", "--url", url])
        assert (result.exit_code, result.stdout) == (0, f"{len(kept)} samples removed\n")
        assert not list((folder / "worst" / "net" / "1").iterdir())
        assert (await events(app, "purge"))[0].was == f"{len(kept)} samples"


async def test_under_high_load_it_steps_to_a_clean_fp16(tmp_path: Path) -> None:
    place_net(tmp_path, f"active: int8, down_at: 0.000001, up_at: 0.0000001, keep: 2, {GUARD}", int8=drifted, fp16=healthy)
    async with running(tmp_path) as app:
        async with load(app) as came:
            await until(lambda: active(app) != "int8")
        assert {answer.status for answer in came} == {200}
        await until(lambda: app.control.guarding.of(("net", "1")).acting is None)  # type: ignore[union-attr]
        assert active(app) == "fp16"
        assert guard_of(app).watched is not None
        (event,) = await events(app, "drift")
        assert (event.was, event.now) == ("int8", "fp16")


async def test_where_nothing_else_can_answer_it_says_so_and_serves_on(tmp_path: Path) -> None:
    place_net(tmp_path, "active: int8, guard: {sample: 100%, budget: 100%, floor: 1000, reference: on_demand}", int8=sometimes_nan)
    (tmp_path / "net" / "1" / "model.fp32.onnx").write_bytes(b"damaged")
    async with running(tmp_path) as app, wire(app) as connection:
        poison = row(0)
        poison[0, 0] = POISON
        answer = await connection.ask(infer_json("net", poison))
        assert answer.status == 200
        assert guard_of(app).records["int8"].nonfinite[Blame.UNKNOWN] == 1
        assert active(app) == "int8"


async def test_without_a_guard_there_is_no_tap(tmp_path: Path) -> None:
    place_net(tmp_path, "active: int8", int8=drifted)
    async with running(tmp_path) as app:
        served = app.table.default("net")
        assert served is not None
        assert served.engine is not None
        assert served.engine.tap is None
        assert (await told(app))["guard"] == []
