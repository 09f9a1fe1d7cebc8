"""Rows to calibrate on are never the proof's: declared, held back from a long example, or made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from exporters.sources.samples import Arrays
from exporters.sources.trace_calibration import DECLARED, HELD, MADE, save_calibration
from exporters.sources.trace_call import bind
from exporters.sources.trace_state import RefusedError
from exporters.sources.trace_study import HOLD_FROM, Study, study
from tests.exporters.sources.test_trace_study import RNG, Does, X


def studied(long: bool = False, mixes: bool = False, hold: bool = True) -> Study:
    def function(x: Tensor) -> Tensor:
        return x.sum() if mixes else x * 2

    example = RNG.normal(size=(HOLD_FROM, 6)).astype(np.float32) if long else X
    return study(bind(Does(function), {"x": example}), {}, [], 0, hold)


def saved(found: Study, declared: Arrays | None, folder: Path, origin: str) -> list[np.ndarray]:
    count, said = save_calibration(found, declared, 1, folder / "c.npz")
    assert said == origin
    with np.load(folder / "c.npz") as arrays:
        assert len(arrays.files) == count
        return [arrays[f"{batch}.in.0"] for batch in range(count)]


def shared(found: Study, batches: list[np.ndarray]) -> int:
    """How many rows are the proof's too."""
    proof = np.concatenate([run.inputs["x"] for run in found.runs])
    return sum((proof == row).all(axis=1).any() for row in np.concatenate(batches))


def test_they_are_made_from_a_short_example(tmp_path: Path) -> None:
    found = studied()
    batches = saved(found, None, tmp_path, MADE)
    assert [batch.shape for batch in batches] == [(8, 6)] * 16
    assert shared(found, batches) == 0
    assert len(saved(studied(mixes=True), None, tmp_path, MADE)) == 6


def test_a_long_example_spares_every_second_row(tmp_path: Path) -> None:
    found = studied(long=True)
    batches = saved(found, None, tmp_path, HELD)
    assert sum(map(len, batches)) == HOLD_FROM // 2
    assert shared(found, batches) == 0
    assert found.call.example["x"][0] in found.runs[0].inputs["x"]
    whole = studied(long=True, hold=False)
    assert shared(whole, [whole.call.example["x"]]) == HOLD_FROM
    assert saved(whole, None, tmp_path, MADE)


def test_declared_ones_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = RNG.normal(size=(11, 6)).astype(np.float32)
    batches = saved(studied(), {"x": rows}, tmp_path, DECLARED)
    assert [len(batch) for batch in batches] == [8, 3]
    np.testing.assert_array_equal(np.concatenate(batches), rows)
    assert len(saved(studied(mixes=True), {"x": rows}, tmp_path, DECLARED)) == 1


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"y": X}, "calibration() gives nothing for 'x'; the example has float32 [4, 6]"),
        ({"x": X.astype(np.float64)}, "calibration() gives float64 [4, 6] for 'x'"),
        ({"x": X[0]}, "calibration() gives float32 [6] for 'x'"),
        ({"x": np.full_like(X, np.nan)}, "calibration() gives NaN or infinities for 'x'"),
    ],
)
def test_declared_ones_must_fit(declared: Arrays, said: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        save_calibration(studied(), declared, 1, tmp_path / "c.npz")
