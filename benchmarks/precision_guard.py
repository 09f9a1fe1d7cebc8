"""The drift guard on MiniLM: a disturbed INT8 variant under load falls back without a failure; what a guard costs that finds nothing.

INT8 is made here, by onnxruntime's dynamic quantizer, of the demo's FP32 file; the bad one of the same weights with noise on them. Two
servers, with a guard and without, are asked in turn for what it costs.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.harness import BUILD, ROOT, BenchError, Load, Report, Shot, Target, background_load, interleave, python_server, run_load
from benchmarks.harness import write_shots as write
from examples.serving import ServerProcess
from server.numerics import distance
from server.repository.manifest import file_sha256

SOURCE = ROOT / "build" / "models" / "minilm" / "1"
FOLDER = BUILD / "guard"
NOISE = 0.5  # of each weight's own deviation
TOKENS, REQUESTS, PROOF = 32, 64, 512
RATE = 30.0  # requests/s: about a third of what one lane takes
SPENT = "tidegate_guard_seconds_total"
SECONDS, ROUNDS, FALLBACK_SECONDS = 2.0, 10, 20.0
YAML = (
    "batching: {{pad_axes: {{input_ids: [1], attention_mask: [1]}}}}\nlanes: {{kind: process, count: 1, threads: 1}}\nprecision: {{{}}}\n"
)
GUARD = "active: int8, guard: {sample: 100%, budget: 5%}"


def inputs(rows: int, seed: int) -> dict[str, Any]:
    """Token ids and masks."""
    tokens = np.random.default_rng(seed).integers(1000, 20_000, (rows, TOKENS))
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def shots() -> Path:
    """One-row requests in the binary form."""
    made = []
    for number in range(REQUESTS):
        arrays = inputs(1, number)
        entries = [
            {"name": name, "shape": [1, TOKENS], "datatype": "INT64", "parameters": {"binary_data_size": array.nbytes}}
            for name, array in arrays.items()
        ]
        head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
        body = head + b"".join(array.tobytes() for array in arrays.values())
        fields = (f"content-length: {len(body)}", f"inference-header-content-length: {len(head)}")
        lines = ("POST /v2/models/minilm/infer HTTP/1.1", "host: bench", *fields, "", "")
        made.append(Shot("\r\n".join(lines).encode() + body))
    return write("guard", made)


def disturbed(source: Path, target: Path) -> Path:
    """The model with noise on the weights that are quantized."""
    model = onnx.load(source)
    random = np.random.default_rng(1)
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.ndim == 2 and array.dtype == np.float32 and min(array.shape) > 64:
            noise = random.standard_normal(array.shape, np.float32) * NOISE * array.std()
            weight.CopyFrom(numpy_helper.from_array(array + noise, weight.name))
    onnx.save(model, target)
    return target


def quantized(source: Path, target: Path) -> Path:
    """INT8, scales taken as it runs."""
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
    return target


def proven(reference: Path, variant: Path) -> float:
    """The relative distance that no row of the proof passes by far."""
    rows = inputs(PROOF, 999)
    answers = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, rows)[0] for path in (reference, variant)]
    return 1.2 * max(distance(*pair).max_relative for pair in zip(*(np.split(each, PROOF) for each in answers), strict=True))


def place(name: str, int8: Path, precision: str, bound: float) -> Path:
    """A repository with FP32 and this INT8, which claims the same proof whatever it is."""
    folder = FOLDER / name / "minilm" / "1"
    folder.mkdir(parents=True)
    manifest = json.loads((SOURCE / "manifest.json").read_text())
    manifest.pop("reference", None)
    fp32 = manifest["variants"][0]
    shutil.copy(SOURCE / "model.fp32.onnx", folder / "model.fp32.onnx")
    shutil.copy(int8, folder / "model.int8.onnx")
    found = {"file": "model.int8.onnx", "sha256": file_sha256(int8), "size": int8.stat().st_size, "precision": "int8"}
    parity = {**fp32["parity"], "top1_upper95": None, "confident": 0, "tolerance": bound}
    manifest["variants"] = [fp32, {**fp32, **found, "parity": parity, "latency": None}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "model.yaml").write_text(YAML.format(precision))
    return FOLDER / name


def build() -> tuple[dict[str, Path], float]:
    """The repositories, and the bound that INT8 was proven to."""
    if not SOURCE.is_dir():
        raise BenchError(f"{SOURCE}: no such model: `make models` makes it")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    fp32 = SOURCE / "model.fp32.onnx"
    good = quantized(fp32, FOLDER / "good.onnx")
    bad = quantized(disturbed(fp32, FOLDER / "noise.onnx"), FOLDER / "bad.onnx")
    bound = proven(fp32, good)
    plain, guarded = place("plain", good, "active: int8", bound), place("guarded", good, GUARD, bound)
    return {"plain": plain, "guarded": guarded, "poisoned": place("poisoned", bad, GUARD, bound)}, bound


def serve(name: str, repository: Path) -> ServerProcess:
    """A server over a repository, not started yet."""
    ports = ("--http-port", "0", "--grpc-port", "off", "--metrics-port", "0")
    return python_server("tidegate", "serve", "--repository", str(repository), *ports, log=f"guard-{name}")


def ask(address: str, path: str) -> Any:
    """JSON of a running server."""
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return json.load(answer)


def metric(address: str, name: str) -> float:
    """A metric of the only model."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")), math.nan)


def fall_back(report: Report, repository: Path, requests: Path) -> None:
    """A disturbed variant under load."""
    with serve("poisoned", repository) as server:
        address = server.ready["http"]
        begun, fell = time.monotonic(), math.nan
        with background_load(requests, address, Load(4, FALLBACK_SECONDS, rate=RATE)) as running:
            while math.isnan(fell) and time.monotonic() - begun < FALLBACK_SECONDS:
                time.sleep(0.1)
                if ask(address, "/admin/models/minilm/precision")["versions"][0]["active"] == "fp32":
                    fell = time.monotonic() - begun
            measured = running.result()  # raises where an answer is wrong or missing
        told = ask(address, "/admin/models/minilm/precision")["guard"][0]["variants"]["int8"]
    failed = 0.0 if math.isfinite(fell) else math.nan
    note = f"of {measured.ok:,}; fell back after {fell:.1f} s and {told['samples']} samples, {told['differing']} of them differing"
    report.targets.append(Target("a perturbed INT8 variant falls back under load: failed requests", failed, 0.0, at_most=True, note=note))
    report.details["fall_back"] = {"seconds": fell, "answered": measured.ok, "rate": RATE, "told": told}


def cost(report: Report, repositories: dict[str, Path], requests: Path, bound: float) -> None:
    """A guard that finds nothing, beside none."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serve(name, repositories[name])) for name in ("plain", "guarded")}
        metrics = servers["guarded"].ready["metrics"]
        load = Load(4, SECONDS, warmup=0.3, rate=RATE)
        asked = {name: lambda server=server: run_load(requests, server.ready["http"], load) for name, server in servers.items()}
        begun = time.monotonic()
        while math.isnan(before := metric(metrics, SPENT)) and time.monotonic() - begun < 10:
            time.sleep(0.2)
        begun = time.monotonic()
        found = interleave(asked, ROUNDS)
        share = (metric(metrics, SPENT) - before) / (time.monotonic() - begun)
        told = ask(servers["guarded"].ready["http"], "/admin/models/minilm/precision")
    ratios = [one.p50_ms / other.p50_ms for one, other in zip(found["guarded"], found["plain"], strict=True)]
    samples = told["guard"][0]["variants"]["int8"]["samples"]
    note = f"{samples} samples; sample 100 %, budget 5 %, {RATE:.0f} requests/s every other {SECONDS:.0f} s"
    report.targets.append(Target("the guard's share of device time", share, 0.05, at_most=True, note=note))
    note = f"median of {ROUNDS} pairs ({min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%})"
    report.targets.append(Target("the guard's cost in p50", statistics.median(ratios) - 1, 0.05, at_most=True, note=note))
    active = told["versions"][0]["active"]
    p50 = {name: statistics.median(one.p50_ms for one in several) for name, several in found.items()}
    report.details["cost"] = {"ratios": ratios, "share": share, "p50_ms": p50, "proven": bound, "active": active}


def guard(report: Report) -> None:
    """The guard's targets."""
    repositories, bound = build()
    requests = shots()
    fall_back(report, repositories["poisoned"], requests)
    cost(report, repositories, requests, bound)
