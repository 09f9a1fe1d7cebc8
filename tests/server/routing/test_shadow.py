"""Copies of requests to another version: never awaited, few at once, dropped under load; what differs is counted, and judged."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.metrics.catalogue import CATALOGUE
from server.router.agreement import OFTENER, RARER, beyond, scatter
from server.router.evidence import Sums
from server.router.live.shadow import Shadow
from tests.server.models import place, place_versions, slow_model
from tests.server.routing.rollout import asking, labels_model, place_pair, until
from tests.server.routing.test_canary import QUICK, over, served
from tests.server.running import infer_binary, infer_json, running, wire

ROWS = np.ones((1, 16), np.float32)
PATH = "/admin/models/m/canary"


async def settled(shadow: Shadow, least: int = 1) -> None:
    async with asyncio.timeout(10):
        while shadow._open or sum(shadow.results.values()) < least:
            await asyncio.sleep(0.005)


async def test_a_shadow_is_asked_compared_and_never_seen(tmp_path: Path) -> None:
    yaml = 'routing: {weights: {"1": 50, "2": 50}, shadow: 3}\n'
    place_versions(tmp_path, "m", [1, 2, 3], yaml)
    async with running(tmp_path) as app, wire(app) as line:
        shadow = app.router.traffic["m"].shadow
        assert shadow is not None
        for turn in range(20):
            answer = await line.ask(infer_json("m", ROWS))
            assert answer.json()["model_version"] in ("1", "2")
            await settled(shadow, turn + 1)
        assert shadow.results["same"] == 20 - shadow.results["dropped"] > 0  # larger scores, the same best class
        assert shadow.compared.max_abs == 2.0  # 3 against 1
        named = {name for name, _, _ in app.recorder.read(CATALOGUE) if name == "tidegate_shadow_max_abs"}
        assert named == {"tidegate_shadow_max_abs"}


async def test_a_shadow_alone_splits_nothing(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1, 2, 3], 'versions: {policy: [1, 2]}\nrouting: {shadow: "1"}\n')
    async with running(tmp_path) as app, wire(app) as line:
        answer = await line.ask(infer_json("m", ROWS, parameters={"explain": True}))
        assert (answer.json()["model_version"], answer.json()["parameters"]["route_reason"]) == ("2", "latest")
        shadow = app.router.traffic["m"].shadow
        assert shadow is not None
        await settled(shadow)
        assert shadow.results["same"] == 1


async def test_under_load_copies_are_dropped_and_no_request_waits_for_one(tmp_path: Path) -> None:
    place(tmp_path, "m", partial(slow_model, layers=1), "1", 'versions: {policy: all}\nrouting: {weights: {"1": 100}, shadow: "2"}\n')
    place(tmp_path, "m", partial(slow_model, layers=200), "2")
    async with running(tmp_path) as app, wire(app) as line:
        x = np.ones((1, 256), np.float32)
        shadow = app.router.traffic["m"].shadow
        assert shadow is not None
        for _ in range(60):
            line.send(infer_binary("m", x))
        assert {(await line.answer()).status for _ in range(60)} == {200}
        assert shadow.results["dropped"] > 0
        await settled(shadow, 60)
        assert shadow.results["same"] + shadow.results["dropped"] == 60


async def test_a_copy_that_fails_is_counted(tmp_path: Path) -> None:
    yaml = 'versions: {policy: all}\nrouting: {weights: {"1": 100}, shadow: "2"}\n'
    place_pair(tmp_path, "m", partial(labels_model, known=10), yaml=yaml)
    async with running(tmp_path) as app, wire(app) as line:
        shadow = app.router.traffic["m"].shadow
        assert shadow is not None
        assert (await line.ask(infer_json("m", np.array([[50]], np.int64)))).status == 200
        await settled(shadow)
        assert shadow.results["failed"] == 1


async def test_a_canary_whose_answers_differ_is_rolled_back_by_its_shadow(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", partial(labels_model, label=8))
    async with served(tmp_path) as (app, client):
        guards = [{"metric": "agreement", "margin": 0.1}]
        assert (await client.post(PATH, json={**QUICK, "steps": [1, 100], "guards": guards})).status_code == 200
        async with asking(app, "m"):
            said = await until(client, PATH, over)
        assert (said["state"], said["verdict"]["guard"]) == ("rolled_back", "agreement")
        assert said["metrics"]["agreement"]["canary"]["mean"] == 1.0


async def test_one_that_agrees_is_promoted(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client), httpx.AsyncClient():
        await client.post(PATH, json={**QUICK, "guards": [{"metric": "agreement", "margin": 0.2}]})
        async with asking(app, "m"):
            said = await until(client, PATH, over)
        assert (said["state"], said["verdict"]["reason"]) == ("promoted", "proven")
        refused = await client.post("/admin/models/m/experiment", json={"version": "1", "metrics": ["agreement"]})
        assert (refused.status_code, "no two arms" in refused.text) == (400, True)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.3), st.integers(0, 2**32 - 1))
def test_evidence_rises_on_the_right_side_only(risk: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(200 / risk)
    events = int(random.binomial(n, risk / 4))
    assert beyond(events, n, risk, OFTENER) < 3 < beyond(events, n, risk, RARER)
    events = int(random.binomial(n, min(1.0, 3 * risk)))
    assert beyond(events, n, risk, RARER) < 3 < beyond(events, n, risk, OFTENER)


@pytest.mark.parametrize("prior", [OFTENER, RARER])
def test_chance_alone_lifts_it_over_the_bar_in_at_most_alpha(prior: object) -> None:
    """300 runs of 400 requests that differ just as often as they may, looked at after every tenth: at most 5 % ever reach log 20."""
    random = np.random.default_rng(8)
    bar, over_ = math.log(20), 0
    for _ in range(300):
        hits = np.cumsum(random.random(400) < 0.1)
        over_ += any(beyond(float(hits[n - 1]), n, 0.1, prior) >= bar for n in range(10, 401, 10))  # type: ignore[arg-type]
    assert over_ / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_blocks_that_scatter_weaken_the_evidence() -> None:
    even, bursts = [Sums.of_events(10, 1)] * 20, [Sums.of_events(10, 10 if n % 10 == 0 else 0) for n in range(20)]
    assert scatter(even) == 1.0
    assert scatter(bursts) > 5
    assert scatter([]) == scatter(even[:1]) == 1.0
