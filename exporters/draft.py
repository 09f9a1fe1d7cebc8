"""An export under way: what is known of the model so far, the files that may become its variants, and who is told of it."""

from __future__ import annotations

import importlib.metadata
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from exporters.disk.onnx_files import size_of
from exporters.formats.to_onnx import Graph
from exporters.parity import measure
from exporters.parity.task import Judged, LabelledSet
from exporters.plan import Gate, Plan
from exporters.precision.calibration import CalibrationSet
from exporters.precision.ranges import Range
from exporters.resume import Finished
from exporters.sources.pytorch import Sample, Traced
from server.backends.base import Backend, VariantSpec
from server.backends.registry import TENSORRT, backend_named
from server.numerics import Distance
from server.repository.manifest import Engine, Manifest, Memory, Tried, engine_options
from server.tensors import TensorSpec

BACKEND = "onnxruntime"


class Reporter(Protocol):
    """Who follows an export: told of each step and what it does now, and of notes that matter to the user."""

    def step(self, number: int, total: int, title: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(slots=True)
class Candidate:
    """One file that may become the variant of a precision. `method` says how it was made, `kept` which nodes stayed FP32.

    `nodes` are its node counts after each step that changed it. `failures` say, once it was proved, what keeps it from being the same
    model; `runs` are seconds of runs by rows, where it was timed, and `memory` what a process held that served it; `judged` what a labelled
    set says. `engine` is there where the file
    is a TensorRT engine.
    """

    precision: str
    method: str
    level: int
    file: Path
    graph: Graph
    nodes: dict[str, int]
    kept: tuple[str, ...] = ()
    calibrated: bool = False
    distances: Mapping[str, Distance] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    runs: Mapping[int, Sequence[float]] = field(default_factory=dict)
    memory: Memory | None = None
    judged: Judged | None = None
    tried: tuple[Tried, ...] = ()
    engine: Engine | None = None

    @property
    def backend(self) -> str:
        """What runs it."""
        return BACKEND if self.engine is None else TENSORRT

    @property
    def runtime(self) -> str:
        """Name and version of what runs it."""
        return backend_named(BACKEND).version if self.engine is None else f"tensorrt {self.engine.tensorrt}"

    @property
    def device(self) -> str:
        """What it runs on here."""
        return measure.device() if self.engine is None else self.engine.gpu

    @property
    def seconds(self) -> dict[int, float]:
        """Median seconds of a run by rows."""
        return {rows: statistics.median(seconds) for rows, seconds in self.runs.items()}

    @property
    def error(self) -> tuple[float, float]:
        """How bad it is, to choose the least: rows that the reference is sure of and that get another class, then what its worst
        output's rows lack to a mean cosine of 1. Infinite before it was proved.
        """
        found = self.distances.values()
        unsure = max((part.confident_disagreement or 0.0 for part in found), default=math.inf)
        return unsure, max((1.0 - part.cosine_mean for part in found), default=math.inf)

    def record(self, verdict: str) -> Tried:
        """What the manifest keeps of a candidate."""
        found = self.distances.values()
        return Tried(
            method=self.method,
            optimization_level=self.level,
            size=size_of(self.file),
            nodes=self.graph.nodes,
            max_relative=max((part.max_relative for part in found), default=None),
            cosine_mean=min((part.cosine_mean for part in found), default=None),
            seconds=self.seconds,
            verdict=verdict,
        )


@dataclass(slots=True)
class Draft:
    """What the steps of an export fill in, in order.

    `base` is the portable FP32 graph that the other precisions are made from; `fused` is the one that level 3 kept. `choosing` are
    rows that choose between candidates, with its answers; `labelled` is the labelled set, `expected` its answers to that.
    """

    plan: Plan
    work: Path
    reporter: Reporter
    traced: Traced = field(init=False)
    base: Candidate = field(init=False)
    fused: Candidate | None = None
    inputs: tuple[TensorSpec, ...] = ()
    calibration: CalibrationSet | None = None
    choosing: tuple[Sample, ...] = ()
    labelled: LabelledSet | None = None
    expected: NDArray[Any] | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    variants: dict[str, Candidate] = field(default_factory=dict)
    engines: dict[str, Candidate] = field(default_factory=dict)
    finished: Finished = field(default_factory=lambda: Finished(None))
    manifest: Manifest = field(init=False)
    entry: Path | None = None

    @property
    def tools(self) -> tuple[str, ...]:
        """Versions of what makes graphs."""
        return (backend_named(BACKEND).version, *(f"{package} {importlib.metadata.version(package)}" for package in ("onnx", "tidegate")))

    @property
    def whose(self) -> str:
        """Whose answers are the reference, in the words of messages."""
        return "the file as it is" if self.plan.model.onnx else "PyTorch"

    def gate(self, candidate: Candidate) -> Gate:
        """What the candidate must hold."""
        return self.plan.gates["approximate" if candidate.precision == "fp32" and candidate.level >= 4 else candidate.precision]

    def path(self, name: str) -> Path:
        """A place for a file of the export's own."""
        return self.work / f"{name}.onnx"

    @contextmanager
    def opened(self, candidate: Candidate) -> Iterator[Backend]:
        """The candidate as it will be served: opened by its backend, at its level. Raises ModelDefect."""
        backend = backend_named(candidate.backend).open(self.spec(candidate))
        try:
            yield backend
        finally:
            backend.close()

    def spec(self, candidate: Candidate) -> VariantSpec:
        """What a server opens of it."""
        return VariantSpec(
            model=self.plan.name,
            version=str(self.plan.version or "new"),
            precision=candidate.precision,
            backend=candidate.backend,
            path=candidate.file,
            device="cpu" if candidate.engine is None else "cuda:0",
            threads=measure.threads(),
            optimization_level=candidate.level,
            inputs=self.inputs,
            outputs=self.traced.outputs,
            options=engine_options(candidate.engine) if candidate.engine else {},
        )

    def suspects(self) -> str:
        """Where the tracer may have gone wrong, for a message."""
        places = "".join(f"\n  {warning}" for warning in self.traced.warnings[:5])
        return f"\nthe tracer took Python values for constants here, where the fault may lie:{places}" if places else ""
