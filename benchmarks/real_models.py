"""Real models through the server: against onnxruntime alone, and batched answers against single ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks import wire
from benchmarks.harness import BenchError, Load, Report, Shot, Target, as_details, interleave, ratio, run_load, spread, write_shots
from benchmarks.raw_asgi import open_session
from examples import fetch
from examples.metrics import Batches, read_batches
from examples.models import digits
from examples.photos import as_input, photos

THREADS = 2
"""Of MobileNetV2's two lanes together, as its model.yaml in the demo's repository says."""

SIZES = (1, 2, 4, 8, 16, 32)
REPEATS = 3
TOLERANCE = 1e-4
CONCURRENT = 32


@dataclass(frozen=True, slots=True)
class Probe:
    """A model's rows to ask, one request's worth each when taken alone, and the output that is compared."""

    model: str
    rows: dict[str, NDArray[Any]]
    output: str

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def row(self, index: int) -> dict[str, NDArray[Any]]:
        return {name: array[index : index + 1] for name, array in self.rows.items()}


def against_onnxruntime(report: Report, ours: str, repository: Path) -> None:
    """MobileNetV2 at 32 concurrent requests of one photo, against the best that as many threads do in process: one session with all
    of them or a session for each, at whatever batch size."""
    images = np.concatenate([as_input(photo) for photo in photos()])
    images = np.concatenate([images, images[:, :, :, ::-1]])
    path = str(next((repository / "mobilenet_v2").glob("*/model.fp32.onnx")))
    forms = {"1 session": [open_session(path, THREADS)], f"{THREADS} sessions": [open_session(path) for _ in range(THREADS)]}
    expected = forms["1 session"][0].run(["logits"], {"image": images})[0]
    shots = _photo_shots(ours, images, expected)
    sweep = {(form, size): _rows_per_second(sessions, images, size, 0.6) for form, sessions in forms.items() for size in SIZES}
    best = sorted(sweep, key=lambda tried: -sweep[tried])[:3]

    def served() -> float:
        measured = run_load(shots, ours, Load(CONCURRENT, seconds=5.0, warmup=1.0))
        loads.append(measured)
        return measured.rate

    def raw(form: str, size: int) -> Callable[[], float]:
        return lambda: _rows_per_second(forms[form], images, size, 2.0)

    loads: list[Any] = []
    found = interleave({"served": served, **{f"onnxruntime, {form}, batches of {size}": raw(form, size) for form, size in best}}, REPEATS)
    alone = max((name for name in found if name != "served"), key=lambda name: float(np.median(found[name])))
    report.details["MobileNetV2"] = {
        "rows per second": found,
        "sweep": {f"{form}, {size}": rate for (form, size), rate in sweep.items()},
        "loads": as_details({"": loads})[""],
    }
    note = f"{spread(found['served'])} rows/s against {spread(found[alone])} ({alone}, {THREADS} threads in all)"
    report.targets.append(
        Target("MobileNetV2 rows/s / onnxruntime's: 32 concurrent", ratio(found["served"], found[alone]), 0.95, note=note)
    )


def batched_equals_single(report: Report, ours: str, metrics: str) -> None:
    """Each model's rows asked alone, in one request, and all at once: the largest differences from the answers alone."""
    for probe in probes():
        single = [wire.binary_request(ours, probe.model, probe.row(index)) for index in range(len(probe))]
        alone = _arrays(wire.ask_one_by_one(ours, single), probe)
        before = read_batches(metrics).get(probe.model, Batches())
        together = wire.ask_one_by_one(ours, [wire.binary_request(ours, probe.model, probe.rows)])[0].array(probe.output)
        at_once = _arrays(wire.ask_at_once(ours, single), probe)
        worst = max(float(np.abs(other - alone).max()) for other in (together, at_once))
        seen = read_batches(metrics).get(probe.model, Batches()).since(before)
        note = f"{len(probe)} rows in one request and as {len(probe)} at once; {seen.runs} batches"
        report.targets.append(Target(f"batched - single: {probe.model}", worst, TOLERANCE, at_most=True, note=note))


def probes() -> list[Probe]:
    """The demo's three models."""
    tokenizer = Tokenizer.from_file(str(fetch.models_folder() / fetch.MINILM / "tokenizer.json"))
    tokenizer.enable_padding(length=24)
    texts = [f"Sentence {number} speaks of {'rain and ' * (number % 5)}the harbour." for number in range(24)]
    encoded = tokenizer.encode_batch(texts)
    tokens = {
        "input_ids": np.array([text.ids for text in encoded], np.int64),
        "attention_mask": np.array([text.attention_mask for text in encoded], np.int64),
    }
    images = np.concatenate([as_input(photo) for photo in photos()])
    return [
        Probe("digits", {"image": digits.data().test_images[:64]}, "logits"),
        Probe("minilm", tokens, "sentence_embedding"),
        Probe("mobilenet_v2", {"image": np.concatenate([images, images[:, :, ::-1], images[:, :, :, ::-1]])}, "logits"),
    ]


def _photo_shots(ours: str, images: NDArray[np.float32], expected: NDArray[np.float32]) -> Path:
    """One photo a request; answers are checked here, and their length under load (batching may change the last bits)."""
    requests = [wire.binary_request(ours, "mobilenet_v2", {"image": image[None]}) for image in images]
    answers = wire.ask_one_by_one(ours, requests)
    for answer, logits in zip(answers, expected, strict=True):
        difference = float(np.abs(answer.array("logits")[0] - logits).max())
        if difference > TOLERANCE:
            raise BenchError(f"mobilenet_v2's answer differs by {difference:g} from onnxruntime's")
    return write_shots("photos", [Shot(request, len(answer.body)) for request, answer in zip(requests, answers, strict=True)])


def _rows_per_second(sessions: Sequence[onnxruntime.InferenceSession], images: NDArray[np.float32], size: int, seconds: float) -> float:
    """onnxruntime alone, each session in a thread of its own, batch after batch for about so long."""
    batch = np.concatenate([images] * -(-size // len(images)))[:size]
    runs = [0] * len(sessions)
    for session in sessions:
        session.run(["logits"], {"image": batch})
    started = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() - started < seconds:
            sessions[index].run(["logits"], {"image": batch})
            runs[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(runs) * size / (time.perf_counter() - started)


def _arrays(answers: list[wire.Answer], probe: Probe) -> NDArray[Any]:
    return np.concatenate([answer.array(probe.output) for answer in answers])
