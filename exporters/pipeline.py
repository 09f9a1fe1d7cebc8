"""From a plan to files, in small steps: trace, check, clean, check, prove, time, package. Each step does one thing to the draft.

Nothing is written outside a temporary folder before the last step, so that a failure or Ctrl-C leaves no trace.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from exporters.disk import onnx_files
from exporters.draft import BACKEND, Candidate, Draft, Reporter
from exporters.formats import to_onnx
from exporters.optimize import cleanup
from exporters.optimize.choose import MARGIN, speed_up
from exporters.package import check_targets, write_entry, write_output
from exporters.parity import kept
from exporters.parity.report import pruning_line
from exporters.parity.task import labelled_set
from exporters.plan import ExportError, Plan
from exporters.proof import admit, prove, time_together, weigh_memory
from exporters.provenance import engine_name, manifest
from exporters.resume import Finished, finished_folder
from exporters.sources import pytorch
from exporters.variants.engines import build_engines
from exporters.variants.make import choose_graph, learn_ranges, make
from server.backends.registry import backend_named
from server.repository.manifest import Manifest, Reference, file_sha256

NEEDED = {"torch": "torch", "onnx": "onnx", "onnxslim": "onnxslim"}
"""Modules that an export needs beyond the core, and the packages that bring them."""

PORTABLE = 2
"""Up to this level the file is plain ONNX."""


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
    whose = "the file as it is" if plan.model.onnx else "PyTorch"
    further = (Step("choose its graph", choose_graph),) if plan.level > PORTABLE else ()
    learn = (Step("see what its tensors hold", learn_ranges),) if plan.calibrates else ()
    made = tuple(Step(f"make {name} and prove it", partial(make, precision=name)) for name in plan.precisions if name != "fp32")
    engines = (Step("build its TensorRT engines", build_engines),) if plan.target == "tensorrt" and plan.repository else ()
    return (
        Step(f"{'read' if plan.model.onnx else 'trace'} {plan.model.label}", _trace),
        Step("check the ONNX file", _check),
        *clean,
        Step(f"prove it against {whose}", _prove),
        *further,
        *learn,
        *made,
        *engines,
        Step("measure its latency and memory", _time),
        Step("write the result", _package),
    )


def export(plan: Plan, reporter: Reporter) -> Exported:
    """Do all that the plan says. Raises ExportError, ModelDefect or OSError, having written nothing."""
    check_packages(plan)
    check_targets(plan.repository, plan.name, plan.version, plan.output)
    with tempfile.TemporaryDirectory(prefix="tidegate-export-") as work:
        draft = Draft(plan, Path(work), reporter, finished=Finished(finished_folder() if plan.resume else None))
        todo = steps(plan)
        for number, step in enumerate(todo, 1):
            reporter.step(number, len(todo), step.title)
            step.run(draft)
    return Exported(draft.entry, plan.output, draft.manifest)


def check_packages(plan: Plan) -> None:
    """Raises ExportError that says what to install."""
    safetensors = plan.model.hub or (plan.weights and plan.weights.suffix == ".safetensors")
    dynamo = {"onnxscript": "onnxscript"} if plan.exporter == "dynamo" else {}
    extra = {
        **dynamo,
        **({"safetensors": "safetensors"} if safetensors else {}),
        **({"transformers": "transformers"} if plan.model.hub else {}),
    }
    needed = {**NEEDED, **extra}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"packages that an export needs aren't installed ({', '.join(missing)}): pip install 'tidegate[export]'")
    backend_named(BACKEND)


def _trace(draft: Draft) -> None:
    folder = draft.work / "trace"
    folder.mkdir()
    draft.traced = pytorch.trace(draft.plan, folder, draft.reporter.detail, draft.finished.home)
    _settle(draft)
    if draft.traced.pruned:
        draft.reporter.note(pruning_line(draft.traced.pruned))
    if draft.traced.reused:
        draft.reporter.note("this model was traced before: that trace is used again, and proved again")
    draft.finished.keep(draft.traced.key, {name: folder / name for name in pytorch.KEPT})
    for warning in draft.traced.warnings[:3]:
        draft.reporter.note(f"the tracer took a constant at {warning}")
    if draft.traced.unbatched:
        draft.reporter.note(
            f"not batched, so requests will run one by one: {draft.traced.unbatched} (the first axis of each tensor must count rows)"
        )


def _settle(draft: Draft) -> None:
    """Have the weights in the file, or in one file beside it."""
    plan, file = draft.plan, draft.traced.file
    given = plan.model.onnx if plan.model.onnx and not draft.traced.reused else None
    try:
        onnx_files.settle(file, given.parent if given else file.parent, plan.external_data)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        raise ExportError(f"{plan.model.label}: its weights can't be read: {' '.join(str(error).split())[:300]}") from error


def _check(draft: Draft) -> None:
    file = draft.traced.file
    graph = to_onnx.check(file)
    draft.inputs = to_onnx.kept_inputs(graph, draft.traced.inputs)
    for spec in draft.traced.inputs:
        if spec not in draft.inputs:
            draft.reporter.note(f"input {spec.name!r} reaches no output: the exported model doesn't take it")
    draft.base = Candidate("fp32", "as exported", min(draft.plan.level, PORTABLE), file, graph, {"exported": graph.nodes})
    admit(draft, draft.base)


def _clean(draft: Draft) -> None:
    cleaned, before = draft.path("cleaned"), draft.base
    cleanup.clean(before.file, cleaned)
    graph = to_onnx.check(cleaned)
    draft.base = Candidate("fp32", "cleaned by onnxslim", before.level, cleaned, graph, before.nodes | {"cleaned": graph.nodes})
    admit(draft, draft.base)


def _prove(draft: Draft) -> None:
    label, file = draft.plan.model.label, draft.plan.evaluation
    if file is not None:
        if draft.traced.unbatched:
            raise ExportError(f"--eval {file.name}: {label} isn't batched, so there are no rows to be labelled")
        draft.labelled = labelled_set(file, draft.plan.metric, draft.inputs, draft.traced.outputs)
    try:
        proved = prove(draft, draft.base)
    except ExportError as error:
        raise ExportError(f"{label}: {error}{draft.suspects()}") from error
    if not proved:
        raise ExportError(f"{label}: not the same model: {'; '.join(draft.base.failures)}{draft.suspects()}")
    if "fp32" in draft.plan.precisions:
        make(draft, "fp32")


def _time(draft: Draft) -> None:
    if draft.engines:
        time_together(draft, list(draft.engines.values()))
    if draft.plan.target != "cpu":
        draft.reporter.note(f"proved on this CPU but not timed: it's made for {draft.plan.target}, of whose speed a CPU says nothing")
        return
    variants = list(draft.variants.values())
    time_together(draft, variants)
    weigh_memory(draft, variants)
    for variant in variants[1:]:
        gain = speed_up(variants[0].seconds, variant.seconds)
        if gain < 1 / MARGIN:
            draft.reporter.note(f"{variant.precision} is slower than {variants[0].precision} on this CPU ({gain:.2f} times its speed)")


def _package(draft: Draft) -> None:
    plan = draft.plan
    if plan.repository:
        names = {precision: f"model.{precision}.onnx" for precision in draft.variants}
        parts = _named(draft, names)
        draft.manifest = manifest(draft, names)
        if plan.keep_rows:
            parts[kept.NAME] = draft.work / kept.NAME
            rows = kept.keep(draft.traced.samples(), parts[kept.NAME])
            reference = Reference(file=kept.NAME, sha256=file_sha256(parts[kept.NAME]), rows=rows)
            draft.manifest = draft.manifest.model_copy(update={"reference": reference})
        parts |= {engine_name(precision): made.file for precision, made in draft.engines.items()}
        draft.entry = write_entry(plan.repository, plan.name, plan.version, parts, draft.manifest)
    if plan.output:
        names = dict.fromkeys(draft.variants, plan.output.name)
        parts = _named(draft, names)
        draft.manifest = manifest(draft, names)
        try:
            write_output(plan.output, parts, draft.manifest)
        except OSError as error:
            if draft.entry is None:
                raise
            raise ExportError(f"{draft.entry} is written, but {plan.output} isn't: {error.strerror or error}") from error


def _named(draft: Draft, names: Mapping[str, str]) -> dict[str, Path]:
    """The variants' files by the names that they get. Weights that lie beside are looked for by a name in the file: it's given its own."""
    found: dict[str, Path] = {}
    for precision, made in draft.variants.items():
        name = names[precision]
        if onnx_files.is_split(made.file):
            folder = draft.work / f"named-{len(list(draft.work.glob('named-*')))}"
            folder.mkdir()
            onnx_files.place(made.file, folder / name, move=True)
            made.file = folder / name
            found[onnx_files.data_of(made.file).name] = onnx_files.data_of(made.file)
        found[name] = made.file
    return found
