"""silero-vad from its own ONNX file, its state kept by the server: the same to the digit as feeding it by hand (docs/sequences.md)."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as client

from examples import fetch
from server.tensors import Tensor
from tests.architecture.house import ROOT
from tests.server.running import in_thread

FOLDER = fetch.silero_folder()  # read before the fixtures here point elsewhere
PAGE = (ROOT / "docs" / "sequences.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FETCHED = pytest.mark.skipif(
    not fetch.is_fetched(FOLDER, fetch.SILERO_PACKAGES, fetch.SILERO_FILES), reason="`python -m examples.fetch silero` hasn't fetched it"
)
CONTEXT, CHUNK = 64, 512  # samples: of the chunk before, and new ones


def chunks(sound: Tensor) -> list[Tensor]:
    """What the model takes of a sound, FP32 [1, 576] each."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    return [padded[start : start + CONTEXT + CHUNK][None] for start in range(0, len(sound) - CHUNK + 1, CHUNK)]


def sounds() -> Mapping[int, Tensor]:
    """By sequence: a tone that swells, noise, and something like vowels, each 0.64 s long."""
    time = np.arange(20 * CHUNK, dtype=np.float32) / 16_000
    random = np.random.default_rng(1)
    vowel = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 20)) * (1 + np.sin(2 * np.pi * 4 * time)) / 8
    tone, noise = np.sin(2 * np.pi * 440 * time) * time, random.standard_normal(len(time)) / 10
    return {number: np.asarray(sound, np.float32) for number, sound in enumerate((tone, noise, vowel), 1)}


def place_vad(folder: Path) -> None:
    """The model as the page has it."""
    (folder / "vad" / "1").mkdir(parents=True)
    shutil.copy(FOLDER / fetch.SILERO, folder / "vad" / "1" / "model.onnx")
    (folder / "vad" / "model.yaml").write_text(YAML)


@FETCHED
def test_the_page_s_program(tmp_path: Path) -> None:
    place_vad(tmp_path)
    said = io.StringIO()
    with in_thread(tmp_path) as app, contextlib.redirect_stdout(said):
        exec(PROGRAM.replace("localhost:8000", app.addresses.http), {})
    lines = said.getvalue().splitlines()
    assert len(lines) == 20
    assert all(0 < float(line.strip("[]")) < 0.5 for line in lines)  # silence isn't speech


@FETCHED
def test_three_sounds_at_once(tmp_path: Path) -> None:
    place_vad(tmp_path)
    session = ort.InferenceSession(str(FOLDER / fetch.SILERO), providers=["CPUExecutionProvider"])
    states = {number: np.zeros((2, 1, 128), np.float32) for number in sounds()}
    with in_thread(tmp_path) as app, client.InferenceServerClient(app.addresses.http, concurrency=3) as triton:
        (entry,) = app.table.versions("vad")
        assert entry.serving is not None, entry.reason
        assert entry.serving.max_rows > 1
        for step, parts in enumerate(zip(*(chunks(sound) for sound in sounds().values()), strict=True)):
            asked = {
                number: triton.async_infer("vad", inputs(part), sequence_id=number, sequence_start=step == 0, sequence_end=step == 19)
                for number, part in enumerate(parts, 1)
            }
            for number, part in enumerate(parts, 1):
                feed = {"input": part, "state": states[number], "sr": np.array(16_000, np.int64)}
                expected, states[number] = session.run(["output", "stateN"], feed)
                np.testing.assert_allclose(asked[number].get_result().as_numpy("output"), expected, atol=1e-5)


def inputs(part: Tensor) -> list[client.InferInput]:
    samples, rate = client.InferInput("input", list(part.shape), "FP32"), client.InferInput("sr", [], "INT64")
    samples.set_data_from_numpy(part)
    rate.set_data_from_numpy(np.array(16_000, np.int64))
    return [samples, rate]
