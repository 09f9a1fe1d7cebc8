"""Calibration rows: the user's are checked before they're used, and what they were is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.plan import ExportError
from exporters.precision.calibration import CalibrationSet, calibration_set, held_out
from exporters.rows.arrays import row_keys
from exporters.sources.pytorch import Traced
from server.tensors import TensorSpec

INPUTS = (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("x", "FP32", (-1, 2)))


def traced(folder: Path, batches: int = 0, unbatched: str | None = None) -> Traced:
    return Traced(folder / "m.onnx", folder / "parity.npz", INPUTS, (), (1,), unbatched, (), None, "2", batches)


def good(rows: int = 20, **changes: Any) -> dict[str, Any]:
    return {"ids": np.arange(rows * 3).reshape(rows, 3), "x": np.linspace(0, 1, rows * 2, dtype=np.float32).reshape(rows, 2), **changes}


def made(folder: Path, arrays: dict[str, Any], unbatched: str | None = None) -> CalibrationSet:
    np.savez(folder / "c.npz", **arrays)
    return calibration_set(folder / "c.npz", traced(folder, unbatched=unbatched), INPUTS)


def test_a_file_is_cut_into_batches(tmp_path: Path) -> None:
    found = made(tmp_path, good(extra=np.zeros(3)))
    assert (found.origin, found.rows) == ("--calibration", 20)
    assert [batch["x"].shape for batch in found.batches] == [(8, 2), (8, 2), (4, 2)]
    np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in found.batches]), good()["ids"])
    assert [list(batch) for batch in found.batches] == [["ids", "x"]] * 3


def test_a_long_file_is_cut_short(tmp_path: Path) -> None:
    assert made(tmp_path, good(600)).rows == 512


def test_a_model_that_is_not_batched_takes_it_whole(tmp_path: Path) -> None:
    found = made(tmp_path, good(3), unbatched="said")
    assert (found.rows, len(found.batches), found.batches[0]["x"].shape) == (1, 1, (3, 2))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": good()["x"]}, "has no 'ids'; it has x"),
        (good(x=good()["x"].astype(np.float64)), "'x' is float64; expected float32"),
        (good(x=np.zeros((20, 3), np.float32)), "'x' has the shape [20, 3]; expected [rows, 2]"),
        (good(x=np.zeros(20, np.float32)), "'x' has the shape [20]; expected [rows, 2]"),
        (good(0), "'ids' has the shape [0, 3]; expected [rows, -1]"),
        (good(x=np.zeros((5, 2), np.float32)), "the inputs differ in their number of rows: ids has 20, x has 5"),
        (good(x=np.where(np.arange(40).reshape(20, 2) == 7, np.nan, 1).astype(np.float32)), "'x' has NaN or infinities, first in row 3"),
    ],
)
def test_what_is_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError) as caught:
        made(tmp_path, arrays)
    assert str(caught.value).startswith("--calibration c.npz")
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(ExportError, match=r"--calibration c\.npz can't be read as plain arrays"):
        calibration_set(tmp_path / "c.npz", traced(tmp_path), INPUTS)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ExportError, match="is one array without a name"):
        calibration_set(tmp_path / "one.npy", traced(tmp_path), INPUTS)


def test_without_a_file_it_is_what_the_child_left(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", **{"0.in.0": good(4)["ids"], "0.in.1": good(4)["x"]})
    found = calibration_set(None, traced(tmp_path, batches=1), INPUTS[1:])
    assert (found.origin, found.rows, list(found.batches[0])) == ("made from the example", 4, ["x"])


def test_what_is_recorded(tmp_path: Path) -> None:
    one, other = made(tmp_path, good()).record(), made(tmp_path, good(x=good()["x"] + 1)).record()
    assert one.sha256 != other.sha256
    assert one == made(tmp_path, good()).record()
    assert (one.rows, one.inputs["x"].least, one.inputs["x"].greatest) == (20, 0.0, 1.0)
    assert one.inputs["ids"].mean == pytest.approx(29.5)


def test_only_batches_of_one_shape() -> None:
    shapes = [(8, 3), (8, 5), (8, 3), (2, 3)]
    batches = tuple({"ids": np.zeros(shape)} for shape in shapes)
    found = CalibrationSet("said", batches).largest_group()
    assert [batch["ids"].shape for batch in found.batches] == [(8, 3), (8, 3)]
    assert found.rows == 16


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_the_rows_that_choose_are_not_calibrated_on(sizes: list[int]) -> None:
    numbers = iter(range(100))
    batches = tuple({"x": np.array([next(numbers) for _ in range(size)])} for size in sizes)
    one, other = CalibrationSet("said", batches).halves()
    found = [np.concatenate([batch["x"] for batch in part.batches]) for part in (one, other)]
    if sum(sizes) > 1:
        assert sorted(np.concatenate(found)) == list(range(sum(sizes)))
        assert all(len(part) for part in found)
    else:
        assert [list(part) for part in found] == [[0], [0]]


def test_calls_of_a_model_that_is_not_batched_are_split_whole() -> None:
    batches = tuple({"x": np.full(3, number)} for number in range(5))
    one, other = CalibrationSet("said", batches, batched=False).halves()
    assert ([batch["x"][0] for batch in one.batches], [batch["x"][0] for batch in other.batches]) == ([0, 2, 4], [1, 3])
    assert (one.rows, other.rows) == (3, 2)


def test_rows_of_the_proof_are_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "parity.npz", **{"0.in.0": good(20)["ids"][3:4], "0.in.1": good(20)["x"][3:4]})
    found = made(tmp_path, good())
    apart = held_out(found, traced(tmp_path))
    assert apart.rows == 19
    assert good()["ids"][3] not in np.concatenate([batch["ids"] for batch in apart.batches])
    others = {key for batch in found.batches for key in row_keys(batch, batched=True)}
    with pytest.raises(ExportError, match="what is proved by its own rows isn't proved: give other ones"):
        held_out(found, traced(tmp_path), others)
