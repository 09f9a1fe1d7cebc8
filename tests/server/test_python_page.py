"""docs/python_backend.md shows what happens: its example is served and asked."""

from __future__ import annotations

import json
import queue
import re
from pathlib import Path

import numpy as np
import tritonclient.grpc as client

from tests.architecture.house import ROOT
from tests.server.python_models import place_python
from tests.server.running import INFER, http, in_thread, running, wire

PAGE = (ROOT / "docs" / "python_backend.md").read_text()


def block(language: str, number: int = 0) -> str:
    return str(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number])


def test_the_decoupled_example(tmp_path: Path) -> None:
    place_python(tmp_path, "countdown", block("python", 1), block("yaml", 1))
    tensor = client.InferInput("from", [1], "INT32")
    tensor.set_data_from_numpy(np.array([3], np.int32))
    found = queue.Queue[int]()
    with in_thread(tmp_path, grpc_port=0) as app, client.InferenceServerClient(app.addresses.grpc) as triton:
        triton.start_stream(lambda result, error: found.put(error or int(result.as_numpy("left")[0])))
        triton.async_stream_infer("countdown", [tensor])
        assert [found.get(timeout=20) for _ in range(3)] == [3, 2, 1]


async def test_the_example(tmp_path: Path) -> None:
    place_python(tmp_path, "shout", block("python"), block("yaml"))
    asked = re.search(r"-d '(.*)'", block("sh"))
    assert asked is not None
    async with running(tmp_path) as app, wire(app) as connection:
        answer = await connection.ask(http(INFER.format("shout"), asked[1].encode()))
        assert answer.json() == json.loads(block("json"))
