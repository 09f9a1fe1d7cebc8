"""The response cache: bounded and exact by itself, and behind the real server."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.app import App
from server.cache import ENTRY_BYTES, MAX_HASHED, Answers, Cached, key_of
from server.messages import InferRequest, Layout, RequestedOutput
from server.tensors import Tensor, dtype_of
from tests.architecture.house import ROOT
from tests.server.models import identity_model, linear_model, place, two_inputs_model
from tests.server.running import Answer, http, infer_binary, infer_json, running, wire

ROOM = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cache.md").read_text(), re.DOTALL)[0]


def answer(size: int) -> dict[str, Tensor]:
    return {"y": np.zeros(size, np.uint8)}


# Answers


def test_what_is_kept_is_a_copy_that_nobody_writes() -> None:
    answers, outputs = Answers(10_000), {"y": np.arange(3), "text": np.array([b"a", b"bc"], object)}
    answers.put(b"k", 3, outputs)
    outputs["y"][0] = 9
    kept = answers.get(b"k")
    assert kept is not None
    assert kept.rows == 3
    np.testing.assert_array_equal(kept.outputs["y"], np.arange(3))
    np.testing.assert_array_equal(kept.outputs["text"], [b"a", b"bc"])
    with pytest.raises(ValueError, match="read-only"):
        kept.outputs["y"][0] = 9
    assert answers.get(b"other") is None


def test_the_longest_unused_goes_first() -> None:
    answers = Answers(3 * (ENTRY_BYTES + 100))
    for name in (b"a", b"b", b"c"):
        answers.put(name, 1, answer(100))
    answers.get(b"a")
    answers.put(b"d", 1, answer(100))
    assert [name for name in (b"a", b"b", b"c", b"d") if answers.get(name) is not None] == [b"a", b"c", b"d"]


def test_what_is_too_large_is_not_kept() -> None:
    answers = Answers(2000)
    answers.put(b"a", 1, answer(100))
    answers.put(b"b", 1, answer(5000))
    assert (len(answers), answers.bytes) == (1, ENTRY_BYTES + 100)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=60))
def test_it_never_holds_more_than_it_may(puts: list[tuple[int, int]]) -> None:
    answers, last = Answers(8000), dict[int, int]()
    for number, size in puts:
        answers.put(b"%d" % number, 1, answer(size))
        last[number] = size
        assert answers.bytes <= 8000
    found = {number: kept for number in range(10) if (kept := answers.get(b"%d" % number)) is not None}
    assert answers.bytes == sum(kept.size for kept in found.values())
    assert all(kept.size == ENTRY_BYTES + last[number] for number, kept in found.items())
    if puts:
        assert puts[-1][0] in found


# Keys


def request(inputs: dict[str, Tensor], tenant: str = "", outputs: tuple[str, ...] = ()) -> InferRequest:
    layout = Layout(tuple((name, dtype_of(array).name, array.shape) for name, array in inputs.items()))
    return InferRequest("m", inputs, layout, tenant=tenant, outputs=tuple(RequestedOutput(name) for name in outputs))


def texts(*values: bytes) -> Tensor:
    array = np.empty(len(values), object)
    array[:] = values
    return array


X = np.arange(6, dtype=np.float32)
UNLIKE = (
    request({"x": X}),
    request({"x": X + 1}),
    request({"y": X}),
    request({"x": X.reshape(2, 3)}),
    request({"x": X.view(np.int32)}),
    request({"x": X, "y": X}),
    request({"x": X}, tenant="a"),
    request({"x": X}, outputs=("p",)),
    request({"x": texts(b"ab", b"c")}),
    request({"x": texts(b"a", b"bc")}),
    request({"x": texts(b"abc")}),
    request({"x": X, "y": X + 1}),
    request({"x": X + 1, "y": X}),
)


def test_what_is_not_the_same_has_another_key() -> None:
    keys = [key_of(one) for one in UNLIKE]
    assert None not in keys
    assert len(set(keys)) == len(UNLIKE)


def test_what_is_the_same_has_the_same_key() -> None:
    wide = np.arange(12, dtype=np.float32)
    assert key_of(request({"x": wide[::2]})) == key_of(request({"x": wide[::2].copy()}))
    assert key_of(request({"x": X, "y": X + 1})) == key_of(request({"y": X + 1, "x": X}))
    assert key_of(request({"x": X}, outputs=("p", "q"))) == key_of(request({"x": X}, outputs=("q", "p")))
    assert key_of(request({"x": np.zeros(MAX_HASHED + 1, np.uint8)})) is None
    assert key_of(request({"x": np.zeros((), np.int64)})) is not None


# Behind the server


def front(app: App, model: str = "m") -> Cached:
    found = app.router.route(model, "").engine
    assert isinstance(found, Cached)
    return found


async def ask(app: App, data: bytes) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(data)


def x(number: float, rows: int = 1) -> Tensor:
    return np.full((rows, 8), number, np.float32)


async def test_a_hit_is_the_same_to_the_bit_and_runs_nothing(tmp_path: Path) -> None:
    place(tmp_path, "m", linear_model, yaml=ROOM)
    async with running(tmp_path) as app:
        first = await ask(app, infer_binary("m", x(1, 3)))
        before = front(app)._engine.offered_rows
        again = await ask(app, infer_binary("m", x(1, 3), id="mine"))
        assert (again.tensor() == first.tensor()).all()
        assert again.json()["id"] == "mine"
        assert (await ask(app, infer_json("m", x(1, 3)))).json()["outputs"][0]["shape"] == [3, 4]  # however it's asked
        assert front(app)._engine.offered_rows == before
        assert (front(app).answers.hits, front(app).answers.misses) == (2, 1)
        figures = app.router.figures("m", "")
        assert figures is not None
        assert sum(figures.duration[:-1]) == 3
        text = await scraped(app)
        assert 'tidegate_cache_lookups_total{model="m",result="hit",version="1"} 2.0' in text
        assert 'tidegate_cache_lookups_total{model="m",result="miss",version="1"} 1.0' in text
        assert 'tidegate_cache_bytes{model="m",version="1"}' in text
        assert (await ask(app, http("/v2/models/m/config", method="GET"))).json()["response_cache"]["enable"] is True


async def scraped(app: App) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.metrics.port)
    writer.write(http("/metrics", method="GET", headers={"connection": "close"}))
    text = (await reader.read()).decode()
    writer.close()
    return text


async def test_outputs_are_those_asked_for_in_their_order(tmp_path: Path) -> None:
    place(tmp_path, "m", two_inputs_model, yaml=ROOM)
    entries = [{"name": name, "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} for name in ("a", "b")]
    async with running(tmp_path) as app:
        for names in (["product", "total"], ["total", "product"], ["total"]):
            for _ in range(2):
                body = {"inputs": entries, "outputs": [{"name": name} for name in names]}
                found = (await ask(app, http("/v2/models/m/infer", _json(body)))).json()["outputs"]
                assert [output["name"] for output in found] == names
        assert (front(app).answers.hits, front(app).answers.misses) == (4, 2)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


async def test_tenants_do_not_share(tmp_path: Path) -> None:
    place(tmp_path, "m", linear_model, yaml=ROOM + "queue: {tenants: {a: 1, b: 1}}\n")
    async with running(tmp_path) as app:
        for tenant in ("a", "b", "a", "b"):
            assert (await ask(app, infer_json("m", x(1), {"x-tidegate-tenant": tenant}))).status == 200
        assert (front(app).answers.hits, front(app).answers.misses) == (2, 2)


async def test_what_is_refused_or_explained_is_not_kept(tmp_path: Path) -> None:
    place(tmp_path, "m", linear_model, yaml=ROOM)
    async with running(tmp_path) as app:
        for _ in range(2):
            assert (await ask(app, infer_json("m", np.zeros((1, 7), np.float32)))).status == 400
            explained = (await ask(app, infer_json("m", x(1), parameters={"explain": True}))).json()
            assert explained["parameters"]["close_reason"] == "idle"
        assert (front(app).answers.hits, front(app).answers.misses, len(front(app).answers)) == (0, 0, 0)


async def test_texts_and_what_is_large(tmp_path: Path) -> None:
    place(tmp_path, "m", lambda path: identity_model(path, "BYTES", width=2), yaml=ROOM)
    place(tmp_path, "wide", lambda path: identity_model(path, width=300_000), yaml="cache: {max_bytes: 64MiB}\n")
    async with running(tmp_path) as app:
        for words in (["a", "bc"], ["ab", "c"]) * 2:
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": words}]}
            assert (await ask(app, http("/v2/models/m/infer", _json(body)))).json()["outputs"][0]["data"] == words
        assert (front(app).answers.hits, front(app).answers.misses) == (2, 2)
        for _ in range(2):
            assert (await ask(app, infer_binary("wide", np.ones((1, 300_000), np.float32)))).status == 200
        assert (front(app, "wide").answers.hits, front(app, "wide").answers.misses) == (0, 0)


@pytest.mark.parametrize("more", ["sequence: {state: [{input: x, output: y}]}", "decoupled: true"])
async def test_never_for_answers_that_depend_on_more(tmp_path: Path, more: str) -> None:
    place(tmp_path, "m", linear_model, yaml=ROOM + more)
    async with running(tmp_path) as app:
        (entry,) = app.table.versions("m")
        assert "answers of sequences, decoupled models and ensembles aren't kept" in entry.reason


async def test_off_by_default(tmp_path: Path) -> None:
    place(tmp_path, "m", linear_model)
    async with running(tmp_path) as app:
        (entry,) = app.table.versions("m")
        assert entry.front is None
