"""Models with a good version 1 and a version 2 that is worse in one way, and clients that ask them as long as a block lasts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx import helper

from server.app import App
from server.tensors import Tensor
from tests.server.models import Build, place, value, write_model
from tests.server.running import Answer, infer_json, wire

WIDTH = 512
PINNED = """
versions: {policy: all}
routing: {weights: {"1": 100}}
batching: {max_rows: 1, latency_objective: 20ms}
lanes: {kind: thread}
"""


def labels_model(path: Path, known: int = 100, label: int = 7, layers: int = 0) -> Path:
    """y = `label`, INT64 [N, 1] of x, INT64 [N, 1]: fails where x isn't below `known`, and multiplies matrices `layers` times first."""
    nodes = [helper.make_node("Gather", ["table", "x"], ["found"])]
    weights: dict[str, Tensor] = {"table": np.full(known, label, np.int64)}
    if layers:
        weights |= {"row": np.zeros((1, WIDTH), np.float32), "square": np.eye(WIDTH, dtype=np.float32)}
        nodes += [helper.make_node("Cast", ["x"], ["real"], to=1), helper.make_node("MatMul", ["real", "row"], ["h0"])]
        nodes += [helper.make_node("MatMul", [f"h{layer}", "square"], [f"h{layer + 1}"]) for layer in range(layers)]
        nodes += [helper.make_node("ReduceMax", [f"h{layers}"], ["most"], axes=[1]), helper.make_node("Cast", ["most"], ["none"], to=7)]
        nodes += [helper.make_node("Add", ["found", "none"], ["y"])]
    else:
        nodes += [helper.make_node("Identity", ["found"], ["y"])]
    return write_model(path, nodes, [value("x", ["N", 1], "INT64")], [value("y", ["N", 1], "INT64")], weights)


def place_pair(repository: Path, name: str, worse: Build, good: Build = labels_model, yaml: str = PINNED) -> None:
    """A model with a good version 1, which has all weight, and another version 2."""
    place(repository, name, good, "1", yaml)
    place(repository, name, worse, "2")


@dataclass(slots=True)
class Clients:
    """What came of what they asked: statuses by version, "" where the answer names none, and ids by version that answered."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    told: list[tuple[str, str, Answer]] = field(default_factory=list)


@asynccontextmanager
async def asking(app: App, model: str, *, count: int = 4, number: Callable[[int], int] = lambda n: n % 100) -> AsyncIterator[Clients]:
    """`count` connections that each ask one request after the other, each with an id of its own."""
    clients, going = Clients(), True

    async def ask(client: int) -> None:
        async with wire(app) as line:
            turn = 0
            while going:
                turn += 1
                request_id = f"{client}-{turn}"
                x = np.array([[number(turn * count + client)]], np.int64)
                answer = await line.ask(infer_json(model, x, id=request_id))
                version = answer.json().get("model_version", "")
                clients.statuses[version, answer.status] += 1
                clients.told.append((request_id, version, answer))
                await asyncio.sleep(0.002)

    tasks = [asyncio.ensure_future(ask(client)) for client in range(count)]
    try:
        yield clients
    finally:
        going = False
        await asyncio.gather(*tasks)


async def until(client: httpx.AsyncClient, path: str, done: Callable[[dict[str, Any]], bool], timeout: float = 60.0) -> dict[str, Any]:
    """What GET says once `done` holds of it."""
    async with asyncio.timeout(timeout):
        while not done(said := (await client.get(path)).json()):
            await asyncio.sleep(0.05)
    return dict(said)
