"""Builds one TensorRT engine of an entry that is there already, on the GPU that's here, into a folder of its own; `tidegate export engine`.

The entry isn't touched: a version is never changed. The folder has the engine and a manifest of it alone, with its proof on this GPU; the
server looks there before it serves the ONNX file (`engine_cache`), and starts this very command where it may.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from exporters.commands.entry import Entry
from exporters.commands.verify import gate_of, made_samples, reference_rows
from exporters.formats import to_trt, trt_build
from exporters.formats.trt_build import Built
from exporters.package import write_folder
from exporters.parity import measure, report
from exporters.plan import EngineWish, ExportError
from exporters.sources.pytorch import Sample
from exporters.variants.engines import DEVICE, entry_batching, settings_for, spans
from server.backends.base import Backend
from server.backends.nvidia.cuda import Gpu, open_gpu
from server.backends.registry import TENSORRT, backend_named
from server.errors import ModelDefect
from server.repository.manifest import Latency, Manifest, Variant, file_sha256

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """Which precision of an entry is to become an engine, and the folder that's to be made for it."""

    entry: Entry
    precision: str
    into: Path
    wish: EngineWish


def build_engine(order: Order, told: Told) -> Manifest:
    """Build, prove and write the engine; minutes. Raises ExportError, and then nothing is written."""
    if order.into.exists():
        raise ExportError(f"{order.into} exists; an engine is never overwritten")
    source = _source(order.entry, order.precision)
    gpu = _gpu()
    samples = _samples(order.entry, source)
    with tempfile.TemporaryDirectory(prefix="tidegate-engine-") as work:
        plan = Path(work) / f"model.{order.precision}.plan"
        built = _built(order, source, samples, gpu, told)
        plan.write_bytes(built.plan)
        told("prove it")
        variant = _proved(order, _described(source, plan, built), plan, samples)
        manifest = order.entry.manifest.model_copy(
            update={"created": datetime.now(UTC).isoformat(timespec="seconds"), "reference": None, "variants": (variant,)}
        )
        write_folder(order.into, {plan.name: plan}, manifest)
    return manifest


def _source(entry: Entry, precision: str) -> Variant:
    """The ONNX file that it's built from, which is the one that was written, and which TensorRT isn't known to refuse."""
    found = [variant for variant in entry.manifest.variants if variant.precision == precision and variant.engine is None]
    if not found:
        have = ", ".join(dict.fromkeys(variant.precision for variant in entry.manifest.variants if variant.engine is None))
        raise ExportError(f"{entry.path}: no ONNX file in {precision}; it has {have or 'none'}")
    file, data = entry.file(found[0]), found[0].data
    for path, sha256 in ((file, found[0].sha256), *([(file.with_name(data.file), data.sha256)] if data else [])):
        if not path.is_file() or file_sha256(path) != sha256:
            raise ExportError(f"{path}: isn't there, or isn't the file that was written: its SHA-256 differs")
    if faults := to_trt.faults(file, [tensor.spec() for tensor in found[0].inputs]):
        raise ExportError(f"{file}: TensorRT doesn't take it: {'; '.join(faults[:3])}")
    return found[0]


def _gpu() -> Gpu:
    try:
        return open_gpu(DEVICE)
    except ModelDefect as missing:
        raise ExportError(str(missing)) from missing


def _samples(entry: Entry, source: Variant) -> Sequence[Sample]:
    """The rows that were left with the entry; else made ones, with the answers of the ONNX file on the CPU."""
    kept = reference_rows(entry)
    if kept is not None:
        return kept
    try:
        backend = backend_named(source.backend).open(entry.spec(source, measure.threads()))
    except ModelDefect as error:
        raise ExportError(f"there is nothing to prove the engine by: {error}") from error
    try:
        return list(made_samples(backend))
    finally:
        backend.close()


def _built(order: Order, source: Variant, samples: Sequence[Sample], gpu: Gpu, told: Told) -> Built:
    inputs = tuple(tensor.spec() for tensor in source.inputs)
    batched = order.entry.manifest.unbatched is None
    proof_rows = max((sample.rows for sample in samples), default=1) if batched else 0
    shapes = list(spans(inputs, entry_batching(order.entry.folder.parent), order.wish, proof_rows))
    return trt_build.build(order.entry.file(source), shapes, settings_for(source.optimization_level, order.wish), gpu, told)


def _described(source: Variant, plan: Path, built: Built) -> Variant:
    return source.model_copy(
        update={
            "file": plan.name,
            "sha256": file_sha256(plan),
            "size": plan.stat().st_size,
            "backend": TENSORRT,
            "target": "tensorrt",
            "method": f"TensorRT {built.facts.tensorrt} from {source.method or source.file}",
            "tried": (),
            "data": None,
            "latency": None,
            "memory": None,
            "engine": built.facts,
        }
    )


def _proved(order: Order, variant: Variant, plan: Path, samples: Sequence[Sample]) -> Variant:
    """The variant with its figures on this GPU. Raises ExportError where it isn't the same model."""
    backend = _opened(order, variant, plan)
    try:
        found = measure.distances(backend, samples)
        failures = report.failures(found, backend.outputs, gate_of(variant), "the reference")
        if failures:
            raise ExportError(f"{plan.name} isn't the same model: {'; '.join(failures)}")
        (runs,) = measure.latencies([backend], samples[0], order.entry.manifest.unbatched is None)
    finally:
        backend.close()
    runtime, device = _ran(variant)
    proof = report.parity(found, [sample.rows for sample in samples], variant.parity.tolerance)
    seconds = {rows: median(taken) for rows, taken in runs.items()}
    return variant.model_copy(
        update={
            "parity": proof.model_copy(update={"reference": variant.parity.reference, "runtime": runtime, "device": device}),
            "latency": Latency(device=device, runtime=runtime, threads=measure.threads(), seconds=seconds),
        }
    )


def _ran(variant: Variant) -> tuple[str, str]:
    """What ran it and on what."""
    assert variant.engine is not None
    return f"tensorrt {variant.engine.tensorrt}", variant.engine.gpu


def _opened(order: Order, variant: Variant, plan: Path) -> Backend:
    """As the server opens it, before it lies where the server looks."""
    here = Entry(plan.parent / order.entry.path.name, order.entry.manifest)
    try:
        return backend_named(TENSORRT).open(here.spec(variant, measure.threads()))
    except ModelDefect as error:
        raise ExportError(f"{plan.name} was built, and doesn't open: {error}") from error
