"""From a finished draft to its manifest: what was made, how, from what, with which tools, and the proof of each variant."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from exporters.disk.onnx_files import data_of, is_split
from exporters.draft import Candidate, Draft
from exporters.parity import measure, report
from exporters.plan import ModelRef
from server.repository.manifest import DataFile, Latency, Manifest, Source, TensorEntry, Variant, file_sha256
from server.tensors import TensorSpec

TOOLS = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxslim", "transformers", "tidegate")


def manifest(draft: Draft, files: Mapping[str, str]) -> Manifest:
    """The manifest of the draft's variants; `files` are their names by precision."""
    plan, traced = draft.plan, draft.traced
    weights = plan.weights or plan.model.onnx or plan.model.program or (plan.model.hub and plan.model.hub / "model.safetensors")
    source = Source(
        kind=_kind(plan.model),
        factory=plan.model.label,
        weights_sha256=file_sha256(weights) if weights and weights.is_file() else None,
        code_sha256=file_sha256(traced.code) if traced.code else None,
    )
    return Manifest(
        model=plan.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        tools=_tools(traced.torch),
        unbatched=traced.unbatched,
        pruning=traced.pruned,
        variants=(
            *(_variant(draft, candidate, files[precision]) for precision, candidate in draft.variants.items()),
            *(_variant(draft, candidate, engine_name(precision)) for precision, candidate in draft.engines.items()),
        ),
    )


def _kind(model: ModelRef) -> str:
    if model.program:
        return "torch.export" if model.program.suffix == ".pt2" else "torchscript"
    return "onnx" if model.onnx else "huggingface" if model.hub else "pytorch"


def engine_name(precision: str) -> str:
    """What the engine of a precision is called in an entry."""
    return f"model.{precision}.plan"


def _variant(draft: Draft, made: Candidate, file: str) -> Variant:
    reference = "onnx-as-given" if draft.plan.model.onnx else "pytorch-fp32"
    task = report.task(made.judged, draft.labelled, draft.gate(made).metric) if made.judged and draft.labelled else None
    runtime, device = made.runtime, made.device
    gate = draft.gate(made)
    proof = report.parity(made.distances, draft.traced.rows, gate.relative)
    needed = gate.rows or None if proof.confident else None
    latency = Latency(device=device, runtime=runtime, threads=measure.threads(), seconds=made.seconds) if made.seconds else None
    return Variant(
        file=file,
        sha256=file_sha256(made.file),
        size=made.file.stat().st_size,
        data=_data(made.file),
        precision=made.precision,
        backend=made.backend,
        target=draft.plan.target,
        opset=made.graph.opset,
        optimization_level=made.level,
        method=made.method,
        kept_fp32=made.kept,
        calibration=draft.calibration.record(sum(sample.rows for sample in draft.choosing))
        if draft.calibration and made.calibrated
        else None,
        tried=made.tried,
        nodes=made.nodes,
        operators=dict(made.graph.operators),
        inputs=tuple(_entry(spec) for spec in draft.inputs),
        outputs=tuple(_entry(spec) for spec in draft.traced.outputs),
        parity=proof.model_copy(
            update={"reference": reference, "runtime": runtime, "device": device, "task": task, "confident_needed": needed}
        ),
        latency=latency,
        memory=made.memory,
        engine=made.engine,
    )


def _data(file: Path) -> DataFile | None:
    """The weights that lie beside the file, under the name that both will have."""
    path = data_of(file)
    return DataFile(file=path.name, sha256=file_sha256(path), size=path.stat().st_size) if is_split(file) else None


def _entry(spec: TensorSpec) -> TensorEntry:
    return TensorEntry(name=spec.name, datatype=spec.datatype, shape=spec.shape, batch_axis=spec.batch_axis, max_shape=spec.max_shape)


def _tools(torch: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in TOOLS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"torch": torch}
