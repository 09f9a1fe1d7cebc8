"""From a plan to files, in small steps: trace, check, clean, check, prove, time, package. Each step does one thing to the draft.

Nothing is written outside a temporary folder before the last step, so that a failure or Ctrl-C leaves no trace.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from exporters.formats import to_onnx
from exporters.optimize import cleanup
from exporters.package import check_targets, write_entry, write_output
from exporters.parity import measure, report
from exporters.plan import ExportError, Plan
from exporters.sources import pytorch
from server.backends.base import Backend, VariantSpec
from server.backends.registry import backend_named
from server.errors import ModelDefect
from server.repository.manifest import Latency, Manifest, Parity, Source, TensorEntry, Variant, file_sha256
from server.tensors import TensorSpec

BACKEND = "onnxruntime"
NEEDED = {"torch": "torch", "onnx": "onnx", "onnxslim": "onnxslim"}
"""Modules that an export needs beyond the core, and the packages that bring them."""
TOOLS = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxslim", "tidegate")


class Reporter(Protocol):
    """Who follows an export: told of each step and what it does now, and of notes that matter to the user."""

    def step(self, number: int, total: int, title: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(slots=True)
class Draft:
    """An export under way. `file` is the ONNX file as it is so far; `nodes` are its node counts after each step that changed it."""

    plan: Plan
    work: Path
    reporter: Reporter
    traced: pytorch.Traced = field(init=False)
    file: Path = field(init=False)
    graph: to_onnx.Graph = field(init=False)
    inputs: tuple[TensorSpec, ...] = ()
    nodes: dict[str, int] = field(default_factory=dict)
    parity: Parity = field(init=False)
    latency: Latency = field(init=False)
    manifest: Manifest = field(init=False)
    entry: Path | None = None


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    run: Callable[[Draft], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the repository's entry, the single file, or both; and the manifest (but for the file's name, the same in each)."""

    entry: Path | None
    output: Path | None
    manifest: Manifest


def steps(plan: Plan) -> tuple[Step, ...]:
    """What the plan takes, in order."""
    clean = (Step("clean the graph", _clean),) if plan.level >= 1 else ()
    return (
        Step(f"trace {plan.model.label}", _trace),
        Step("check the ONNX file", _check),
        *clean,
        Step("prove it against PyTorch", _prove),
        Step("measure its latency", _time),
        Step("write the result", _package),
    )


def export(plan: Plan, reporter: Reporter) -> Exported:
    """Do all that the plan says. Raises ExportError, ModelDefect or OSError, having written nothing."""
    check_packages(plan)
    check_targets(plan.repository, plan.name, plan.version, plan.output)
    with tempfile.TemporaryDirectory(prefix="tidegate-export-") as work:
        draft = Draft(plan, Path(work), reporter)
        todo = steps(plan)
        for number, step in enumerate(todo, 1):
            reporter.step(number, len(todo), step.title)
            step.run(draft)
    return Exported(draft.entry, plan.output, draft.manifest)


def check_packages(plan: Plan) -> None:
    """Raises ExportError that says what to install."""
    needed = {**NEEDED, **({"safetensors": "safetensors"} if plan.weights and plan.weights.suffix == ".safetensors" else {})}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"packages that an export needs aren't installed ({', '.join(missing)}): pip install 'tidegate[export]'")
    backend_named(BACKEND)


def _trace(draft: Draft) -> None:
    folder = draft.work / "trace"
    folder.mkdir()
    draft.traced = pytorch.trace(draft.plan, folder, draft.reporter.detail)
    draft.file = draft.traced.file
    for warning in draft.traced.warnings[:3]:
        draft.reporter.note(f"the tracer took a constant at {warning}")
    if draft.traced.unbatched:
        draft.reporter.note(
            f"not batched, so requests will run one by one: {draft.traced.unbatched} (the first axis of each tensor must count rows)"
        )


def _check(draft: Draft) -> None:
    draft.graph = to_onnx.check(draft.file)
    draft.inputs = to_onnx.kept_inputs(draft.graph, draft.traced.inputs)
    for spec in draft.traced.inputs:
        if spec not in draft.inputs:
            draft.reporter.note(f"input {spec.name!r} reaches no output: the exported model doesn't take it")
    _check_graph(draft, "exported")


def _clean(draft: Draft) -> None:
    cleaned = draft.work / "cleaned.onnx"
    cleanup.clean(draft.file, cleaned)
    draft.file, draft.graph = cleaned, to_onnx.check(cleaned)
    _check_graph(draft, "cleaned")


def _check_graph(draft: Draft, step: str) -> None:
    """The file must say of its tensors what PyTorch showed, and a session must load it."""
    try:
        to_onnx.check_shapes(draft.graph, draft.inputs, draft.traced.outputs)
        _open(draft).close()
    except (ExportError, ModelDefect) as error:
        reason = str(error).removeprefix(f"{draft.file}: ")
        raise ExportError(f"{draft.plan.model.label}: {reason}{_suspects(draft)}") from error
    draft.nodes[step] = draft.graph.nodes


def _prove(draft: Draft) -> None:
    plan, traced = draft.plan, draft.traced
    backend = _open(draft)
    try:
        found = measure.distances(backend, traced.samples())
    except ExportError as error:
        raise ExportError(f"{plan.model.label}: {error}{_suspects(draft)}") from error
    finally:
        backend.close()
    tolerance = plan.tolerances[plan.precisions[0]]
    failures = report.failures(found, traced.outputs, tolerance)
    if failures:
        raise ExportError(f"{plan.model.label}: not the same model: {'; '.join(failures)}{_suspects(draft)}")
    draft.parity = report.parity(found, traced.rows, tolerance)


def _time(draft: Draft) -> None:
    backend = _open(draft)
    try:
        seconds = measure.latency(backend, next(draft.traced.samples()), draft.traced.unbatched is None)
    finally:
        backend.close()
    draft.latency = Latency(device=measure.device(), runtime=backend.version, threads=measure.threads(), seconds=seconds)


def _package(draft: Draft) -> None:
    plan = draft.plan
    if plan.repository:
        name = f"model.{plan.precisions[0]}.onnx"
        draft.manifest = _manifest(draft, name)
        draft.entry = write_entry(plan.repository, plan.name, plan.version, {name: draft.file}, draft.manifest)
    if plan.output:
        draft.manifest = _manifest(draft, plan.output.name)
        try:
            write_output(plan.output, draft.file, draft.manifest)
        except OSError as error:
            if draft.entry is None:
                raise
            raise ExportError(f"{draft.entry} is written, but {plan.output} isn't: {error.strerror or error}") from error


def _open(draft: Draft) -> Backend:
    plan = draft.plan
    spec = VariantSpec(
        model=plan.name,
        version=str(plan.version or "new"),
        precision=plan.precisions[0],
        backend=BACKEND,
        path=draft.file,
        threads=measure.threads(),
        optimization_level=plan.level,
        inputs=draft.inputs,
        outputs=draft.traced.outputs,
    )
    return backend_named(BACKEND).open(spec)


def _suspects(draft: Draft) -> str:
    """Where the tracer may have gone wrong, for a message."""
    places = "".join(f"\n  {warning}" for warning in draft.traced.warnings[:5])
    return f"\nthe tracer took Python values for constants here, where the fault may lie:{places}" if places else ""


def _manifest(draft: Draft, file: str) -> Manifest:
    plan, traced = draft.plan, draft.traced
    variant = Variant(
        file=file,
        sha256=file_sha256(draft.file),
        size=draft.file.stat().st_size,
        precision=plan.precisions[0],
        backend=BACKEND,
        opset=draft.graph.opset,
        optimization_level=plan.level,
        nodes=draft.nodes,
        operators=dict(draft.graph.operators),
        inputs=tuple(_entry(spec) for spec in draft.inputs),
        outputs=tuple(_entry(spec) for spec in traced.outputs),
        parity=draft.parity,
        latency=draft.latency,
    )
    source = Source(
        kind="pytorch",
        factory=plan.model.label,
        weights_sha256=file_sha256(plan.weights) if plan.weights else None,
        code_sha256=file_sha256(traced.code) if traced.code else None,
    )
    return Manifest(
        model=plan.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        tools=_tools(traced.torch),
        unbatched=traced.unbatched,
        variants=(variant,),
    )


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
