"""Rows to calibrate on are never the proof's: declared, held back from a long example, or made."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from exporters.sources.samples import Arrays
from exporters.sources.trace_calibration import DECLARED, HELD, MADE, from_folder, save_calibration
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


IMAGE: Arrays = {"image": np.zeros((1, 3, 4, 6), np.float32)}
SOUND: Arrays = {"samples": np.zeros((1, 100), np.float32)}
TOKENS: Arrays = {"ids": np.ones((2, 5), np.int64)}


def photos(folder: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (30, 20), (255, 51 * number, 0)).save(folder / f"{number}.png")
    (folder / "notes.md").write_text("no row")
    return folder


def sound(path: Path, seconds: float = 0.05, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(np.full(int(8000 * seconds) * channels, 2**14, "<i2").tobytes())


def test_a_folder_of_images(tmp_path: Path) -> None:
    rows = from_folder(photos(tmp_path), None, IMAGE, "net")["image"]
    assert rows.shape == (3, 3, 4, 6)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, :, 0, 0], np.array([[1, 0, 0], [1, 0.2, 0], [1, 0.4, 0]]), atol=1e-6)

    def preprocess(pixels: Any) -> Arrays:
        return {"image": pixels.transpose(2, 0, 1)[:, :4, :6].astype(np.float32)}

    assert from_folder(tmp_path, preprocess, IMAGE, "net")["image"].max() == 255


def test_a_folder_of_sounds_is_cut_into_windows(tmp_path: Path) -> None:
    sound(tmp_path / "mono.wav")
    sound(tmp_path / "stereo.wav", channels=2)
    rows = from_folder(tmp_path, None, SOUND, "net")["samples"]
    assert rows.shape == (8, 100)
    assert set(rows.ravel()) == {0.5}


def test_a_folder_of_texts_needs_preprocess(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\nthree letters\n")

    def preprocess(text: str) -> Arrays:
        return {"ids": np.array([len(word) for word in text.split()])}

    np.testing.assert_array_equal(from_folder(tmp_path, preprocess, TOKENS, "net")["ids"], [[3, 0], [5, 7]])
    with pytest.raises(RefusedError, match=r"how a\.txt becomes ids int64 \[2, 5\] isn't known: define preprocess"):
        from_folder(tmp_path, None, TOKENS, "net")


def test_what_a_server_recorded(tmp_path: Path) -> None:
    np.savez(tmp_path / "tensors-00000001.npz", ids=np.full((2, 3), 7), other=np.zeros(2))
    np.savez(tmp_path / "tensors-00000002.npz", ids=np.full((1, 5), 8))
    np.savez(tmp_path / "tensors-00000003.npz", ids=np.full((1, 5), 9))
    np.savez(tmp_path / "tensors-00000004.npz", image=np.zeros((1, 5)))
    lines = [{"event": "arrival", "model": "net", "tensors": "tensors-00000002.npz"}, {"model": "net"}]
    lines.append({"event": "arrival", "model": "another", "tensors": "tensors-00000003.npz"})
    (tmp_path / "arrivals-00000000.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"cut sh')
    rows = from_folder(tmp_path, None, TOKENS, "net")["ids"]
    np.testing.assert_array_equal(rows, [[7, 7, 7, 0, 0], [7, 7, 7, 0, 0], [8, 8, 8, 8, 8]])
    with pytest.raises(RefusedError, match="has no row that this model takes: its inputs are samples"):
        from_folder(tmp_path, None, SOUND, "net")


@pytest.mark.parametrize(
    ("name", "content", "example", "said"),
    [
        ("a.png", b"no image", IMAGE, "a.png isn't an image that can be read"),
        ("a.wav", b"no sound", SOUND, "a.wav isn't a .wav file that can be read"),
        ("a.txt", b"\xff\xfe\xfa", TOKENS, "a.txt isn't UTF-8 text"),
        ("a.md", b"", TOKENS, "holds neither tensors-N.npz of a recording nor .png"),
        ("tensors-1.npz", b"PK", TOKENS, "tensors-1.npz can't be read as plain arrays"),
    ],
)
def test_files_of_a_folder_that_are_refused(name: str, content: bytes, example: Arrays, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(said)):
        from_folder(tmp_path, None, example, "net")


def test_rows_of_another_shape_and_sounds_of_another_width(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"isn't float32 \[3, 4, 6\] for 'image': did preprocess\(\) give that"):
        from_folder(photos(tmp_path), lambda pixels: {"image": pixels}, IMAGE, "net")
    (tmp_path / "wide").mkdir()
    sound(tmp_path / "wide" / "a.wav", width=1)
    with pytest.raises(RefusedError, match="has 8 bits a sample; expected 16"):
        from_folder(tmp_path / "wide", None, SOUND, "net")
