"""manifest.json: what the exporter proved about a version, and what the server holds it to.

One file a version, written by exporters.package and read by repository.loader. Unknown keys are refused, so that a newer exporter's
claims are never half understood; `schema_version` says which this is. JSON Schema: docs/schemas/manifest.json (generated, tested).
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ModelDefect
from server.tensors import TensorSpec

SCHEMA_VERSION: Final = 1
MAX_BYTES = 16 << 20
MANIFEST_NAME = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(_Part):
    """An input or output. `shape` is whole, -1 where it varies; `batch_axis` null where the tensor isn't per row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = 0
    max_shape: tuple[int, ...] | None = None

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, self.shape, self.batch_axis, self.max_shape)


class Task(_Part):
    """What a labelled set says of a variant: the task's own metric, beside that of FP32 on the same rows.

    `accuracy`: the share of rows whose best class is the label. `centroid`: the share of the odd rows whose nearest mean of a label's
    even rows (as FP32 embeds them) is their label's. `error`: the mean distance from the label, over the labels' deviation.
    `tolerance` is by how much it may be worse than FP32's; the other figures are against FP32's answers to these rows.
    """

    metric: Literal["accuracy", "centroid", "error"]
    output: str
    rows: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    value: float
    reference: float
    tolerance: float
    cosine_mean: float
    top1_disagreement: float | None = None
    top1_upper95: float | None = None


class Parity(_Part):
    """How far a variant is from PyTorch FP32 on held-out samples, as the worst of its outputs.

    `max_relative` is the largest difference over its output's largest value; that's what `tolerance` bounds. `top1_upper95` is the
    upper 95 % bound of the disagreement. `confident_disagreement` is that of the `confident` rows, whose best class has more than
    half; `confident_needed` is how many of them the proof had to have, labelled rows included.
    `runtime` and `device` are what ran it: a proof on one device says nothing about another's kernels.
    """

    reference: str = "pytorch-fp32"
    samples: int
    batch_sizes: tuple[int, ...]
    max_abs: float
    max_relative: float | None = None
    mean_abs: float
    cosine_min: float
    cosine_mean: float | None = None
    tolerance: float
    top1_disagreement: float | None = None
    top1_upper95: float | None = None
    confident: int | None = None
    confident_disagreement: float | None = None
    confident_needed: int | None = None
    runtime: str | None = None
    device: str | None = None
    task: Task | None = None


class Latency(_Part):
    """Median seconds of a run by batch rows, as measured on `device`."""

    device: str
    runtime: str
    threads: int
    seconds: dict[int, float]


class Memory(_Part):
    """Bytes that a process of its own held at most while it served the variant: `peak` from its start through runs of `rows` rows,
    `bare` before it opened the file (Python and the runtime)."""

    rows: int
    bare: int
    peak: int


class InputStatistics(_Part):
    """An input's values over the calibration rows."""

    least: float
    greatest: float
    mean: float
    deviation: float


class Calibration(_Part):
    """The rows that a precision was calibrated on, by hash. `chosen_by` other rows chose between what was made; neither are the proof's."""

    origin: str
    rows: int
    chosen_by: int = 0
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    inputs: dict[str, InputStatistics]


class Tried(_Part):
    """One way that was tried to make a variant: what it came to, and whether it was kept.

    Precisions were judged on rows of their own, not on the proof's; levels of FP32 on the proof's, for they must be equal.
    `seconds` are median seconds of a run by rows, measured in turns with the others; empty where it wasn't timed.
    """

    method: str
    optimization_level: int
    size: int
    nodes: int
    max_relative: float | None = None
    cosine_mean: float | None = None
    seconds: dict[int, float] = Field(default_factory=dict)
    verdict: str


class Bounds(_Part):
    """An input's shapes in an engine's profile."""

    least: tuple[int, ...]
    likely: tuple[int, ...]
    greatest: tuple[int, ...]


class Engine(_Part):
    """What a TensorRT engine was built on and for: it runs where these fit, and nowhere else.

    `tensorrt` and `driver` (the newest CUDA that it runs) are versions, `workspace` is bytes, `onnx_sha256` is of the file that it was
    built from. `profiles` are in the engine's order: by input, the shapes that it takes.
    """

    tensorrt: str
    gpu: str
    compute_capability: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    driver: str
    version_compatible: bool = False
    builder_level: int
    workspace: int | None = None
    profiles: tuple[dict[str, Bounds], ...] = Field(min_length=1)
    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    build_seconds: float


class DataFile(_Part):
    """Weights that lie beside their ONNX file, for they don't fit it (protobuf ends at 2 GiB)."""

    file: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int


class Variant(_Part):
    """One precision on one backend. `file` lies beside the manifest, and so does `data` where its weights aren't in it;
    `optimization_level` also tells the backend how to load it.

    `method` says how its graph was made, `kept_fp32` which nodes were left in FP32, `tried` what else was tried. `engine` is there where
    the file is a TensorRT engine; the same precision is then there as ONNX too, first.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int
    data: DataFile | None = None
    precision: str
    backend: str
    target: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    opset: int
    optimization_level: int = Field(ge=0, le=4)
    method: str | None = None
    kept_fp32: tuple[str, ...] = ()
    calibration: Calibration | None = None
    tried: tuple[Tried, ...] = ()
    nodes: dict[str, int]
    operators: dict[str, int]
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    parity: Parity
    latency: Latency | None = None
    memory: Memory | None = None
    engine: Engine | None = None

    @property
    def content(self) -> str:
        """What tells it from every other: the file's SHA-256, and that of the weights beside it."""
        return f"{self.sha256} {self.data.sha256}" if self.data else self.sha256

    @property
    def bytes(self) -> int:
        """Of the file and of the weights beside it."""
        return self.size + (self.data.size if self.data else 0)


class Source(_Part):
    """Where the model came from. Hashes, not paths: a manifest travels."""

    kind: str
    factory: str
    weights_sha256: str | None = None
    code_sha256: str | None = None


class Reference(_Part):
    """Rows of the proof with the reference's answers, in an .npz beside the manifest: what `tidegate export verify` proves by."""

    file: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int


class Pruning(_Part):
    """What was taken away before the export: `channels` of `layers` layers are zeros, the `share` of least norm in each.

    `cosine_mean` is between PyTorch's answers before and after; the accuracies are those of a labelled set, null without one.
    """

    share: float
    channels: int
    layers: int
    cosine_mean: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None


class Manifest(_Part):
    """The whole file. `nodes` of a variant: counts as exported and after optimisation, by step.

    `unbatched` says why rows can't share a run, null where they can.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    created: str
    source: Source
    tools: dict[str, str]
    unbatched: str | None = None
    reference: Reference | None = None
    pruning: Pruning | None = None
    variants: tuple[Variant, ...] = Field(min_length=1)

    def variant(self, precision: str) -> Variant | None:
        """The variant of this precision, None where there's none."""
        return next((v for v in self.variants if v.precision == precision), None)


def engine_options(engine: Engine) -> Mapping[str, object]:
    """What the trt backend must know of an engine before it opens it."""
    return {"version_compatible": engine.version_compatible}


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. Raises ModelDefect that names the file, the key and what is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelDefect(f"{path}: can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ModelDefect(f"{path}: larger than {MAX_BYTES} bytes, which no manifest needs")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ModelDefect(f"{path}: {where}: {first['msg']} (manifest schema version {SCHEMA_VERSION})") from error


def json_schema() -> str:
    """The manifest's JSON Schema, as docs/schemas/manifest.json has it (written by `python -m server.repository.manifest`)."""
    return json.dumps(Manifest.model_json_schema(), indent=2, sort_keys=True) + "\n"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def processor() -> str:
    """This machine's processor, as manifests name a device."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"cpu ({model})"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
