"""The exporters' targets (issue 6), as ratios measured in one run on this CPU: `python -m benchmarks.export`, `make bench-export`.

About five minutes on two quiet cores, once the weights are fetched (220 MB). The figures are in build/bench/export.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import psutil
import tritonclient.http as client
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.command import run
from benchmarks.export_models import (
    SILERO,
    TOKENS,
    WORK,
    Exported,
    digits_flags,
    example,
    export,
    lite_photos,
    minilm_flags,
    photo_flags,
    weights,
)
from benchmarks.harness import BenchError, Report, Target, tidegate
from examples.console import heading, step
from examples.models import crepe_tiny, mobilenet_v2
from examples.questions import as_inputs
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.repository.manifest import Task
from server.tensors import Tensor

ROUNDS, ROWS = 15, 8
CONFIDENT = 0.5
HELD = (("fp32",), ("fp16",), ("int8",), ("int8wo",), ("fp32", "int8"), ("fp32", "fp16", "int8"))
"""Sets of precisions whose server's memory is measured."""
MiB = 1 << 20


def measure(report: Report, console: Console) -> None:
    """Fill the report, model by model."""
    if len(sys.argv) == 1:
        shutil.rmtree(WORK, ignore_errors=True)
    heading(console, "The models")
    folder = weights(console)
    heading(console, "Measurements")
    asked = sys.argv[1:] or list(PARTS)
    for title in asked:
        with step(console, title):
            PARTS[title](report, folder)


def _digits(report: Report, folder: Path) -> None:
    made = export("digits", example("digits"), "--precisions", "fp32,fp16,int8", *digits_flags())
    for precision in ("fp16", "int8"):
        task = _task(made, precision)
        note = f"{task.value:.4f}, {task.reference:.4f} in FP32, {task.rows} digits"
        report.targets.append(Target(f"digits {precision}: points lost", 100 * (task.reference - task.value), 0.5, True, note))
    _file(report, "digits", made, "fp16", 0.52)


def _minilm(report: Report, folder: Path) -> None:
    made = export("minilm", example("minilm"), "--precisions", "fp32,fp16,int8,int8wo", *minilm_flags(folder))
    rng = np.random.default_rng(1)
    rows = {"input_ids": rng.integers(1000, 20000, (ROWS, TOKENS)), "attention_mask": np.ones((ROWS, TOKENS), np.int64)}
    seconds = _timed({name: (made.file(name), 2) for name in ("fp32", "int8")}, rows)
    note = f"{ROWS} rows of {TOKENS} tokens"
    report.targets.append(Target("MiniLM int8: rows/s over FP32's", seconds["fp32"] / seconds["int8"], 2.2, note=note))
    task = _task(made, "int8")
    report.targets.append(Target("MiniLM int8: mean cosine", task.cosine_mean, 0.99, note=f"{task.rows} texts, none calibrated on"))
    lost = 100 * (task.reference - task.value)
    report.targets.append(
        Target("MiniLM int8: points of topic accuracy lost", lost, 2.0, True, f"{task.value:.4f}, {task.reference:.4f} in FP32")
    )
    _file(report, "MiniLM", made, "int8", 0.27)
    _file(report, "MiniLM", made, "fp16", 0.52)
    fp32 = made.manifest.variants[0].parity
    report.targets.append(Target("MiniLM FP32: largest difference from PyTorch", fp32.max_abs, 1e-5, True, f"{fp32.samples} rows"))
    legal = export("minilm_tensorrt", example("minilm"), "--precisions", "int8", "--target", "tensorrt", *minilm_flags(folder))
    int8 = legal.manifest.variants[0]
    note = f"{len(int8.kept_fp32)} nodes in FP32; {_task(legal, 'int8').rows} texts, on this CPU"
    report.targets.append(Target("MiniLM int8 for TensorRT: mean cosine", _task(legal, "int8").cosine_mean, 0.98, note=note))


def _photos(report: Report, folder: Path) -> None:
    plain = export("mobilenet_level_0", example("mobilenet_v2"), "--optimization-level", "0")
    made = export("mobilenet_v2", example("mobilenet_v2"), "--precisions", "fp32,fp16,int8")
    crops = mobilenet_v2.crops(mobilenet_v2.PROVED_ON, 32, seed=7)
    files = {"level 0": (plain.file("fp32"), 0), "level 2": (made.file("fp32"), 2), "int8": (made.file("int8"), 2)}
    seconds = _timed(files, {"image": crops[:ROWS]})
    report.targets.append(Target("MobileNetV2: level 2 over level 0", seconds["level 0"] / seconds["level 2"], 1.8, note=f"{ROWS} rows"))
    report.targets.append(Target("MobileNetV2: int8 over FP32", seconds["level 2"] / seconds["int8"], 1.8, note=f"{ROWS} rows"))
    _agreement(report, "MobileNetV2", made, crops, 0.95)
    _file(report, "MobileNetV2", made, "fp16", 0.52)
    lite = export("efficientnet_lite0", example("efficientnet_lite0"), "--precisions", "fp32,int8", *photo_flags())
    _agreement(report, "EfficientNet-Lite0", lite, lite_photos(crops), 0.98)


def _audio(report: Report, folder: Path) -> None:
    crepe = export("crepe_tiny", example("crepe_tiny"), "--precisions", "fp32,fp16")
    voice = export("voice_encoder", example("voice_encoder"))
    for name, made in (("CREPE tiny", crepe), ("Resemblyzer", voice)):
        found = made.manifest.variants[0]
        if made.manifest.unbatched:
            raise BenchError(f"{name} isn't batched: {made.manifest.unbatched}")
        note = f"{found.parity.samples} rows in batches of {', '.join(map(str, found.parity.batch_sizes))}"
        report.targets.append(Target(f"{name} FP32: largest difference from PyTorch", found.parity.max_abs, 1e-5, True, note))
    _file(report, "CREPE tiny", crepe, "fp16", 0.52)
    hertz = np.array([110.0, 220.0, 440.0, 880.0])
    heard = crepe_tiny.heard(_answers(crepe.file("fp16"), {"frame": crepe_tiny.sines(hertz, seed=5)})["pitch"])
    report.targets.append(Target("CREPE tiny fp16: worst error of four sines, %", float((100 * abs(heard / hertz - 1)).max()), 1.0, True))
    report.targets.append(
        Target("silero-vad served: state carried, largest difference", _silero(folder), 1e-5, True, "20 frames over HTTP")
    )


def _silero(folder: Path) -> float:
    """Serve silero's own ONNX, carry its state from answer to request, and compare with onnxruntime's answers."""
    repository = WORK / "silero"
    entry = repository / "silero_vad" / "1"
    entry.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / SILERO, entry / "model.onnx")
    session = ort.InferenceSession(str(entry / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    frames = np.random.default_rng(0).normal(0, 0.1, (20, 1, 576)).astype(np.float32)
    states = [np.zeros((2, 1, 128), np.float32)] * 2
    worst = 0.0
    with tidegate(repository, "silero") as running:
        for frame in frames:
            rate = {"sr": np.array(16000, np.int64)} if "sr" in {value.name for value in session.get_inputs()} else {}
            wanted = dict(zip(outputs, session.run(None, {"input": frame, "state": states[0], **rate}), strict=True))
            found = _ask(running.ready["http"], "silero_vad", {"input": frame, "state": states[1], **rate}, outputs)
            states = [answer[outputs[1]] for answer in (wanted, found)]
            worst = max(worst, float(abs(wanted[outputs[0]] - found[outputs[0]]).max()))
    return worst


def _ask(address: str, model: str, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
    """One request by NVIDIA's client, and its answer."""
    connection = client.InferenceServerClient(address)
    try:
        answer = connection.infer(model, as_inputs(dict(inputs)))
        return {name: answer.as_numpy(name) for name in outputs}
    finally:
        connection.close()


def _memory(report: Report, folder: Path) -> None:
    """What a server holds at most, from its start to its answers, with one precision of MiniLM or the other, or with several warm."""
    peaks = {" and ".join(precisions): _served(precisions) for precisions in HELD}
    report.details["peak_resident_mib"] = peaks
    said = ", ".join(f"{precision} {peak:.0f}" for precision, peak in peaks.items())
    report.targets.append(
        Target("a server of MiniLM: int8's peak memory over FP32's", peaks["int8"] / peaks["fp32"], 0.6, True, f"MiB: {said}")
    )


def _served(precisions: Sequence[str]) -> float:
    """MiB that a server held at most that answered in each of these, one after the other, and kept them all loaded."""
    name = "-".join(precisions)
    repository = WORK / f"serve-{name}"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(WORK / "models" / "minilm", repository / "minilm")
    said = f"precision: {{active: {precisions[0]}, keep: {len(precisions)}}}\nbatching: {{max_rows: {ROWS}}}\n"
    (repository / "minilm" / "model.yaml").write_text(said)
    rows = {"input_ids": np.ones((ROWS, TOKENS), np.int64), "attention_mask": np.ones((ROWS, TOKENS), np.int64)}
    with tidegate(repository, f"memory-{name}") as running:
        address = running.ready["http"]
        for precision in precisions:
            if precision != precisions[0]:
                _switch(address, precision)
            for _ in range(3):
                _ask(address, "minilm", rows, ["sentence_embedding"])
        return _peak(running.pid)


def _switch(address: str, precision: str) -> None:
    request = urllib.request.Request(
        f"http://{address}/admin/models/minilm/precision", json.dumps({"active": precision}).encode(), method="PUT"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        if json.load(answer)["versions"][0]["active"] != precision:
            raise BenchError(f"the server didn't switch to {precision}")


def _peak(pid: int) -> float:
    """MiB that a process and its children held at most, each for itself."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    status = [Path(f"/proc/{process.pid}/status").read_text().splitlines() for process in family]
    return sum(int(line.split()[1]) for lines in status for line in lines if line.startswith("VmHWM:")) / 1024


def _task(made: Exported, precision: str) -> Task:
    variant = made.manifest.variant(precision)
    if variant is None or variant.parity.task is None:
        raise BenchError(f"{made.folder} has no labelled figures for {precision}")
    return variant.parity.task


def _file(report: Report, name: str, made: Exported, precision: str, most: float) -> None:
    """The file's size over FP32's."""
    share = made.file(precision).stat().st_size / made.file("fp32").stat().st_size
    report.targets.append(
        Target(f"{name} {precision}: file over FP32's", share, most, True, f"{made.file(precision).stat().st_size / 1e6:.1f} MB")
    )


def _agreement(report: Report, name: str, made: Exported, crops: NDArray[np.float32], least: float) -> None:
    """The share of crops, of those that FP32 is sure of, whose class INT8 gives too."""
    wanted, found = (_answers(made.file(precision), {"image": crops})["logits"] for precision in ("fp32", "int8"))
    shares = np.exp(wanted - wanted.max(1, keepdims=True))
    sure = (shares / shares.sum(1, keepdims=True)).max(1) > CONFIDENT
    agree = wanted.argmax(1) == found.argmax(1)
    note = f"{sure.sum()} of {len(crops)} crops; {agree.mean():.3f} of all"
    report.targets.append(Target(f"{name} int8: agreement on confident crops", float(agree[sure].mean()), least, note=note))


def _answers(file: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    backend = backend_named("onnxruntime").open(_spec(file, 2))
    try:
        return {name: np.array(array) for name, array in backend.run(inputs, len(next(iter(inputs.values())))).items()}
    finally:
        backend.close()


def _timed(files: Mapping[str, tuple[Path, int]], inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Median seconds of a run of each file at its level; the files take turns."""
    taken: dict[str, list[float]] = {name: [] for name in files}
    with ExitStack() as stack:
        backends = {}
        for name, (file, level) in files.items():
            backends[name] = backend_named("onnxruntime").open(_spec(file, level))
            stack.callback(backends[name].close)
        for index in range(ROUNDS + 2):
            for name, backend in backends.items():
                started = time.perf_counter()
                backend.run(inputs, ROWS)
                if index >= 2:
                    taken[name].append(time.perf_counter() - started)
    return {name: median(seconds) for name, seconds in taken.items()}


def _spec(file: Path, level: int) -> VariantSpec:
    return VariantSpec("bench", "1", "any", "onnxruntime", file, threads=len(os.sched_getaffinity(0)), optimization_level=level)


PARTS: Mapping[str, Callable[[Report, Path], None]] = {
    "digits": _digits,
    "minilm": _minilm,
    "photos": _photos,
    "audio": _audio,
    "memory": _memory,
}
"""What is measured, by the names that may be given to measure some of it; memory takes what minilm exported."""


if __name__ == "__main__":
    sys.exit(run("export", measure))
