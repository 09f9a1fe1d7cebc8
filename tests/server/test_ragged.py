"""Requests of unlike length over a real server: each gets the answer that it would get alone, and the terms of its model hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.app import App
from server.repository.manifest import MANIFEST_NAME
from server.tensors import Tensor
from tests.server.models import masked_model, place, scaled_model
from tests.server.running import Answer, http, running, wire
from tests.server.test_explain import metrics

MASKED = "batching: {pad_axes: {tokens: [1], mask: [1]}}"
MINILM = Path(__file__).parents[2] / "build" / "models" / "minilm"


def body(arrays: dict[str, Tensor], **parameters: Any) -> bytes:
    """A binary inference body."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "INT64", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return http("/v2/models/m/infer", head + b"".join(array.tobytes() for array in arrays.values()), headers=headers)


async def ask(app: App, data: bytes) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(data)


async def together(app: App, requests: list[bytes]) -> list[Answer]:
    """All in one write on one connection: they're read in one turn of the loop, so that they share runs."""
    async with wire(app) as connection:
        connection.send(b"".join(requests))
        return [await connection.answer() for _ in requests]


def values(answer: Answer, name: str) -> Tensor:
    assert answer.status == 200, answer.body
    (found,) = (output for output in answer.json()["outputs"] if output["name"] == name)
    return np.array(found["data"]).reshape(found["shape"])


def text(random: np.random.Generator, length: int, rows: int = 1) -> dict[str, Tensor]:
    """Tokens of masked_model and their mask."""
    return {"tokens": random.integers(1, 32, (rows, length)), "mask": np.ones((rows, length), np.int64)}


async def test_each_gets_its_own_answer(tmp_path: Path) -> None:
    place(tmp_path, "m", masked_model, yaml=MASKED)
    random = np.random.default_rng(0)
    given = [
        text(random, int(length), int(rows)) for length, rows in zip(random.integers(1, 40, 60), random.integers(1, 4, 60), strict=True)
    ]
    async with running(tmp_path) as app:
        answers = await together(app, [body(each) for each in given])
        batches = app.recorder.snapshot()[0][0].batches
    for each, answer in zip(given, answers, strict=True):
        expected = np.repeat(each["tokens"][:, :, None], 4, axis=2).astype(float)
        np.testing.assert_array_equal(values(answer, "each"), expected)
        np.testing.assert_allclose(values(answer, "mean"), expected.mean(axis=1), rtol=1e-5)
    assert sum(batches.values()) < len(given), "runs were shared"


async def test_inputs_that_disagree_harm_no_neighbour(tmp_path: Path) -> None:
    place(tmp_path, "m", masked_model, yaml=MASKED)
    good, odd = text(np.random.default_rng(0), 7), text(np.random.default_rng(0), 5)
    odd["mask"] = np.ones((1, 7), np.int64)
    async with running(tmp_path) as app:
        answers = await together(app, [body(good), body(odd), body(good)])
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert answers[1].json()["error"] == (
        "inputs 'tokens' and 'mask' for model 'm' share the axis 'L', so they must be equally long on it; got 5 and 7"
    )


async def test_requests_of_no_length_stay_apart(tmp_path: Path) -> None:
    place(tmp_path, "m", masked_model, yaml=MASKED)
    empty, full = text(np.random.default_rng(0), 0), text(np.random.default_rng(0), 4)
    async with running(tmp_path) as app:
        answers = await together(app, [body(each) for each in (empty, full, empty)])
    assert [values(answer, "each").shape for answer in answers] == [(1, 0, 4), (1, 4, 4), (1, 0, 4)]
    assert np.isfinite(values(answers[1], "mean")).all()


@pytest.mark.skipif(not (MINILM / "1" / MANIFEST_NAME).exists(), reason="MiniLM isn't exported here: make demo")
async def test_sentences_in_a_batch_equal_sentences_alone(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.yaml").write_text("batching: {pad_axes: {input_ids: [1], attention_mask: [1]}}\nlanes: {kind: thread}\n")
    (tmp_path / "m" / "1").mkdir()
    for file in (MINILM / "1").iterdir():
        (tmp_path / "m" / "1" / file.name).write_bytes(file.read_bytes())
    manifest = tmp_path / "m" / "1" / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"model": "minilm"', '"model": "m"'))
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(28), 0.5, 24)), 8, 128).astype(int)
    sentences = [random.integers(1000, 20_000, (1, length)) for length in lengths]
    given = [body({"input_ids": ids, "attention_mask": np.ones_like(ids)}) for ids in sentences]
    async with running(tmp_path) as app:
        assert [row.reason for row in app.control.index()] == [""], "MiniLM bears padding"
        alone = [values(await ask(app, each), "sentence_embedding") for each in given]
        batched = [values(answer, "sentence_embedding") for answer in await together(app, given)]
        padded = await metrics(app, "tidegate_padding_ratio_count")
    assert sum(padded.values()) > len(given), "runs were shared"
    np.testing.assert_allclose(np.concatenate(batched), np.concatenate(alone), atol=1e-4)


async def test_requests_that_differ_in_what_is_not_per_row_do_not_mix(tmp_path: Path) -> None:
    place(tmp_path, "m", scaled_model, yaml="inputs: {scale: {batch_axis: null}, x: {batch_axis: 0}}\noutputs: {y: {batch_axis: 0}}")
    row = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}

    def scaled(by: float) -> bytes:
        inputs = [row, {"name": "scale", "shape": [1], "datatype": "FP32", "data": [by]}]
        return http("/v2/models/m/infer", json.dumps({"inputs": inputs}).encode())

    async with running(tmp_path) as app:
        answers = await together(app, [scaled(by) for by in (2, 3, 2, 3)])
    assert [values(answer, "y").tolist() for answer in answers] == [[[by, by]] for by in (2, 3, 2, 3)]
