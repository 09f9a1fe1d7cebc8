"""Requests made from what a server says of its models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.asking import Input, ModelFacts, facts_of, kinds_drawn, questions
from loadtests.running.plan import names_of
from loadtests.scenario import Asked
from server.errors import ConfigError

TEXT = ModelFacts("text", (Input("ids", "INT64", (-1, -1)), Input("mask", "INT64", (-1, -1))), batched=True, max_rows=8)
EVERY = ModelFacts(
    "all", tuple(Input(kind, kind, (-1, 3)) for kind in ("BOOL", "UINT8", "INT8", "FP16", "FP32", "FP64", "BYTES", "BF16")), True, 8
)


def made(asked: dict[str, object], facts: ModelFacts = TEXT) -> list[dict[str, np.ndarray]]:
    found = questions(0, Asked.model_validate({"model": facts.name, **asked}), facts, np.random.default_rng(1))
    return [question.request.inputs for question in found]


def test_rows_and_lengths_are_drawn_and_shared_by_the_inputs() -> None:
    inputs = made({"rows": [1, 4], "length": [8, 16], "values": {"mask": {"low": 1, "high": 1}}})
    assert {each["ids"].shape for each in inputs} == {each["mask"].shape for each in inputs}
    assert {each["ids"].shape[0] for each in inputs} == {1, 2, 3, 4}
    assert all(8 <= each["ids"].shape[1] <= 16 for each in inputs)
    assert all((each["mask"] == 1).all() for each in inputs)


def test_every_datatype_is_made() -> None:
    (first, *_) = made({}, EVERY)
    assert {name: array.shape for name, array in first.items()} == {each.name: (1, 3) for each in EVERY.inputs}
    assert first["BYTES"].dtype == object
    assert str(first["BF16"].dtype) == "bfloat16"


def test_rows_come_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", ids=np.arange(20).reshape(10, 2))
    inputs = made({"rows": 3, "length": 2, "values": {"ids": {"file": str(tmp_path / "x.npz")}}})
    assert all(each["ids"].shape == (3, 2) for each in inputs)
    assert {int(value) for each in inputs for value in each["ids"][:, 0]} <= set(range(0, 20, 2))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "axis 1 of input 'ids' varies, shape [-1, -1]: say `length`"),
        ({"length": 4, "rows": 9}, "takes at most 8 rows in a request, the mix draws up to 9"),
        ({"length": 4, "values": {"idz": {}}}, "has no input 'idz', but ids, mask"),
        ({"length": 4, "values": {"ids": {"file": "/nowhere.npz"}}}, "not a readable npz file"),
    ],
)
def test_what_cannot_be_made_is_said(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(asked)
    assert said in str(caught.value)


def test_an_unbatched_model_takes_one_row() -> None:
    facts = facts_of({"name": "m", "inputs": [{"name": "X", "datatype": "FP32", "shape": [4]}]}, {})
    assert made({}, facts)[0]["X"].shape == (4,)
    with pytest.raises(ConfigError, match="served unbatched: rows must be 1"):
        made({"rows": 2}, facts)


def test_metadata_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="doesn't follow the Open Inference Protocol"):
        facts_of({"hello": 1}, {})
    with pytest.raises(ConfigError, match="datatypes that aren't known here: FP4"):
        facts_of({"name": "m", "inputs": [{"name": "X", "datatype": "FP4", "shape": [4]}]}, {})


def test_the_mix_is_drawn_by_its_shares() -> None:
    mix = (Asked(model="a", share=3), Asked(model="b", share=1), Asked(model="b", share=1))
    assert names_of(mix) == ("a", "b #2", "b #3")
    counts = np.bincount(kinds_drawn(mix, 10_000, np.random.default_rng(1)))
    assert counts == pytest.approx([6000, 2000, 2000], abs=200)
