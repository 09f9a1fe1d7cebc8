"""MiniLM under texts of unlike length: the server's grouping by length against no batching, and against onnxruntime alone."""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import wire
from benchmarks.harness import BenchError, Load, Measured, Report, Shot, Target, as_details, interleave, run_load, spread, write_shots
from benchmarks.raw_asgi import open_session

MODEL, ONE_BY_ONE = "minilm", "minilm_one_by_one"
LANES, BATCH, CONCURRENT = 2, 8, 32
TEXTS = 256
SHORTEST, LONGEST, LOG_MEDIAN, SIGMA = 8, 128, 3.35, 0.6
"""Tokens of a text: log-normal with a median of 28, as short queries mixed with paragraphs. The peers are measured on the same lengths."""

REPEATS = 3
SECONDS = 5.0
TOLERANCE = 1e-4

YAML = f"lanes: {{count: {LANES}, threads: 1}}\n"
PADDED = "batching: {max_rows: 16, pad_axes: {input_ids: [1], attention_mask: [1]}}\n"
SINGLE = "batching: {max_rows: 1}\n"

Tokens = NDArray[np.int64]


def text_repository(models: Path, folder: Path) -> Path:
    """The demo's encoder twice, on the same lanes: batched by length, and one request a run."""
    for name, batching in ((MODEL, PADDED), (ONE_BY_ONE, SINGLE)):
        shutil.rmtree(folder / name, ignore_errors=True)
        for version in (models / MODEL).glob("[1-9]*"):
            (folder / name / version.name).mkdir(parents=True)
            for file in version.iterdir():
                _link(file.resolve(), folder / name / version.name / file.name)
        (folder / name / "model.yaml").write_text(YAML + batching)
    return folder


def _link(source: Path, target: Path) -> None:
    """A second name of the file, or a copy where the file system can't. Not a symbolic link: those mustn't lead out of a repository."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def lengths(count: int, seed: int = 3) -> list[int]:
    """Log-normal, cut to SHORTEST..LONGEST."""
    drawn = np.random.default_rng(seed).lognormal(LOG_MEDIAN, SIGMA, count)
    return [int(length) for length in np.clip(np.round(drawn), SHORTEST, LONGEST)]


def by_length(report: Report, ours: str, models: Path) -> None:
    """32 concurrent requests of one text, against one by one, sorted batches and batches in order of arrival, as three targets."""
    texts = [_text(length, number) for number, length in enumerate(lengths(TEXTS))]
    path = str(next((models / MODEL).glob("*/model.fp32.onnx")))
    sessions = [open_session(path) for _ in range(LANES)]
    shots = {model: _shots(ours, model, texts, sessions[0]) for model in (MODEL, ONE_BY_ONE)}
    loads: dict[str, list[Measured]] = {MODEL: [], ONE_BY_ONE: []}

    def served(model: str) -> float:
        measured = run_load(shots[model], ours, Load(CONCURRENT, SECONDS, warmup=2.0))
        loads[model].append(measured)
        return measured.rate

    shortest_first = sorted(texts, key=len)
    measures: dict[str, Callable[[], float]] = {
        "by length": partial(served, MODEL),
        "one by one": partial(served, ONE_BY_ONE),
        "onnxruntime, sorted": partial(_alone, sessions, _batches(shortest_first)),
        "onnxruntime, in order": partial(_alone, sessions, _batches(texts)),
    }
    found = interleave(measures, REPEATS)
    report.details["MiniLM"] = {"texts per second": found, "loads": as_details(loads), "lengths": lengths(TEXTS)}
    for name, must, goal in (("one by one", 1.03, " (goal 1.10)"), ("onnxruntime, sorted", 0.85, ""), ("onnxruntime, in order", 1.8, "")):
        value = statistics.median(found["by length"]) / statistics.median(found[name])
        note = f"{spread(found['by length'])} texts/s against {spread(found[name])}{goal}"
        report.targets.append(Target(f"MiniLM texts/s / {name}: {CONCURRENT} concurrent", value, must, note=note))


def _text(length: int, seed: int) -> Tokens:
    """Token ids as the tokenizer makes them: [CLS], words, [SEP]."""
    words = np.random.default_rng(seed).integers(1000, 30000, length)
    words[0], words[-1] = 101, 102
    return words.astype(np.int64)


def _inputs(texts: Sequence[Tokens]) -> dict[str, Tokens]:
    """Texts as one batch, padded to the longest."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def _batches(texts: Sequence[Tokens]) -> list[dict[str, Tokens]]:
    return [_inputs(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]


def _alone(sessions: Sequence[onnxruntime.InferenceSession], batches: Sequence[dict[str, Tokens]]) -> float:
    """Texts a second of onnxruntime on as many sessions of one thread: whole passes over the texts, so that every length counts alike."""
    waiting = cycle(batches)
    lock = threading.Lock()
    done = [0] * len(sessions)
    started = time.perf_counter()
    left = len(batches)

    def work(index: int) -> None:
        nonlocal left
        while True:
            with lock:
                if left == 0 and time.perf_counter() - started < SECONDS / 2:
                    left = len(batches)
                if left == 0:
                    return
                left -= 1
                batch = next(waiting)
            sessions[index].run(None, batch)
            done[index] += len(batch["input_ids"])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def _shots(address: str, model: str, texts: Sequence[Tokens], session: onnxruntime.InferenceSession) -> Path:
    """One text a request; answers are checked here, and their length under load (batching may change the last bits)."""
    requests = [wire.binary_request(address, model, _inputs([text])) for text in texts]
    answers = wire.ask_one_by_one(address, requests[:CONCURRENT]) + wire.ask_at_once(address, requests[CONCURRENT : 2 * CONCURRENT])
    for text, answer in zip(texts, answers, strict=False):
        expected = session.run(["sentence_embedding"], _inputs([text]))[0]
        difference = float(np.abs(answer.array("sentence_embedding") - expected).max())
        if difference > TOLERANCE:
            raise BenchError(f"{model}'s answer to {len(text)} tokens differs by {difference:g} from onnxruntime's")
    length = len(answers[0].body)
    return write_shots(model, [Shot(request, length) for request in requests])
