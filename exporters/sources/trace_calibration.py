"""The rows that precisions are calibrated on: a folder's, the module's own, the example's that were held back, or made ones; a part of
trace_child's process. Those that aren't given from outside are never rows of the proof.

A folder holds what a server recorded (tensors-N.npz), or images, sounds (.wav) and texts (.txt, a row a line). What of them the model
takes is the model's to say: `preprocess(item)` beside the factory gives one row, arrays by input name without the rows' axis.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .samples import Arrays, RowStream, shaken
from .trace_state import RefusedError, as_arrays
from .trace_study import WHOLE_RUNS, Study

ROWS = 128
BATCH = 8
MOST_BYTES = 64 * 2**20
MOST_FILES = 512
DECLARED, HELD, MADE = "calibration() beside the factory", "held out from the example", "made from the example"


def save_calibration(found: Study, declared: Arrays | None, seed: int, path: Path, whose: str = DECLARED) -> tuple[int, str]:
    """Write them, an npz of `BATCH.in.INPUT` by index. Returns how many batches, and in words where they came from."""
    arrays: Arrays = {}
    batches = 0
    held = found.held_rows()
    origin = whose if declared is not None else HELD if held else MADE
    giver = "the example" if declared is None else "calibration()" if whose == DECLARED else whose
    for batch in _rows(found, declared if declared is not None else held, seed, giver):
        arrays |= {f"{batches}.in.{index}": array for index, array in enumerate(batch.values())}
        batches += 1
        if sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
            break
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return batches, origin


def _rows(found: Study, given: Arrays | None, seed: int, whose: str) -> Iterator[Arrays]:
    example = found.call.example
    if given is not None:
        yield from _given_batches(found, given, whose)
    elif found.unbatched is not None:
        for run in range(WHOLE_RUNS, 2 * WHOLE_RUNS):
            yield shaken(example, seed + run)
    else:
        stream = RowStream(example, seed, found.lengths.exchangeable())
        stream.skip_example()
        for _ in range(ROWS // BATCH):
            yield stream.take(BATCH)


def _given_batches(found: Study, given: Arrays, whose: str) -> Iterator[Arrays]:
    example = found.call.example
    for name, array in example.items():
        rows = given.get(name)
        if rows is None or rows.dtype != array.dtype or rows.ndim != array.ndim:
            has = "nothing" if rows is None else f"{rows.dtype} {list(rows.shape)}"
            raise RefusedError(f"{whose} gives {has} for {name!r}; the example has {array.dtype} {list(array.shape)}")
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise RefusedError(f"{whose} gives NaN or infinities for {name!r}")
    if found.unbatched is not None:
        yield {name: given[name] for name in example}
        return
    for start in range(0, len(next(iter(given.values()))), BATCH):
        yield {name: given[name][start : start + BATCH] for name in example}


def from_folder(folder: Path, preprocess: Callable[[Any], Any] | None, example: Arrays, model: str) -> Arrays:
    """The rows that a folder's files make, at most MOST_FILES of them. Raises RefusedError."""
    recorded = sorted(folder.glob("tensors-*.npz"))
    if recorded:
        return _stacked(list(_recorded(folder, recorded, example, model))[:MOST_FILES], example, folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS)
    if not files:
        raise RefusedError(f"{folder.name} holds neither tensors-N.npz of a recording nor {', '.join(READERS)}")
    rows: list[Arrays] = []
    for path in files:
        for item in READERS[path.suffix.lower()](path):
            rows += [as_arrays(preprocess(item))] if preprocess else _plain(item, example, path)
        if len(rows) >= MOST_FILES:
            break
    return _stacked(rows[:MOST_FILES], example, folder)


def _image(path: Path) -> Iterator[NDArray[np.uint8]]:
    """RGB [height, width, 3]."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise RefusedError("reading images needs Pillow, which isn't installed: pip install pillow") from error
    try:
        yield np.asarray(Image.open(path).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise RefusedError(f"{path.name} isn't an image that can be read: {error}") from error


def _sound(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Samples from -1 to 1 of all channels' mean, and how many a second."""
    try:
        with wave.open(str(path)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise RefusedError(f"{path.name} isn't a .wav file that can be read: {error}") from error
    if width != 2:
        raise RefusedError(f"{path.name} has {8 * width} bits a sample; expected 16")
    samples = np.frombuffer(content, "<i2").reshape(-1, channels).mean(axis=1) / 2**15
    yield samples.astype(np.float32), rate


def _text(path: Path) -> Iterator[str]:
    try:
        yield from (line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path.name} isn't UTF-8 text: {error}") from error


READERS: Mapping[str, Callable[[Path], Iterator[Any]]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp"), _image),
    ".wav": _sound,
    ".txt": _text,
}


def _plain(item: Any, example: Arrays, path: Path) -> list[Arrays]:
    """Without preprocess(): an image from 0 to 1 in the size of the one input, or a sound cut into windows of its length."""
    ((name, array), *others) = example.items()
    if not others and array.dtype == np.float32:
        if isinstance(item, np.ndarray) and array.ndim == 4 and array.shape[1] in (1, 3):
            return [{name: _sized(item, array.shape)}]
        if isinstance(item, tuple) and array.ndim == 2:
            length = array.shape[1]
            return [{name: item[0][start : start + length]} for start in range(0, len(item[0]) - length + 1, length)]
    takes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in example.items())
    raise RefusedError(f"how {path.name} becomes {takes} isn't known: define preprocess(item) beside the factory, which gives a row")


def _sized(pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    from PIL import Image

    image = Image.fromarray(pixels).convert("L" if shape[1] == 1 else "RGB").resize((shape[3], shape[2]), Image.Resampling.BILINEAR)
    scaled: NDArray[np.float32] = np.asarray(image, np.float32) / np.float32(255)
    return scaled.reshape(shape[2], shape[3], shape[1]).transpose(2, 0, 1)


def _recorded(folder: Path, files: list[Path], example: Arrays, model: str) -> Iterator[Arrays]:
    """The rows of a recording's requests, but for those that are known to be another model's, or don't have this one's inputs."""
    whose = dict(_owners(folder))
    for path in files:
        if whose.get(path.name, model) != model:
            continue
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError) as error:
            raise RefusedError(f"{path.name} can't be read as plain arrays: {error}") from error
        if all(name in arrays and arrays[name].dtype == array.dtype and arrays[name].ndim == array.ndim for name, array in example.items()):
            for row in range(len(next(iter(arrays.values())))):
                yield {name: arrays[name][row] for name in example}


def _owners(folder: Path) -> Iterator[tuple[str, str]]:
    """Which model's each file of tensors is, as the lines of the arrivals say."""
    for path in sorted(folder.glob("arrivals-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                arrival = json.loads(line)
            except ValueError:
                continue  # the last line of a server that was killed
            if arrival.get("tensors"):
                yield arrival["tensors"], arrival.get("model", "")


def _stacked(rows: list[Arrays], example: Arrays, folder: Path) -> Arrays:
    """Rows as one array an input; shorter ones are filled up with zeros, as padding is."""
    if not rows:
        raise RefusedError(f"{folder.name} has no row that this model takes: its inputs are {', '.join(example)}")
    made: Arrays = {}
    for name, array in example.items():
        parts = [row[name] for row in rows if name in row]
        if len(parts) < len(rows) or any(part.ndim != array.ndim - 1 or part.dtype != array.dtype for part in parts):
            raise RefusedError(
                f"a row of {folder.name} isn't {array.dtype} {list(array.shape[1:])} for {name!r}: did preprocess() give that?"
            )
        whole = np.zeros((len(parts), *np.max([part.shape for part in parts], axis=0).astype(int)), array.dtype)
        for index, part in enumerate(parts):
            whole[index][tuple(slice(size) for size in part.shape)] = part
        made[name] = whole
    return made
