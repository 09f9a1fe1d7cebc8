"""What to make, from what, and how exact: a frozen Plan, checked once, and the two ways in which an export can fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from exporters.disk.onnx_files import MOST_INLINE
from server.errors import TidegateError
from server.units import size

LEVELS_BUILT = (0, 1, 2, 3, 4)
PRECISIONS_BUILT = ("fp32", "fp16", "int8", "int8wo")
"""`int8wo` is INT8 of the weights alone, as torchao calls it."""
Target = Literal["cpu", "cuda", "tensorrt"]
TARGETS: tuple[Target, ...] = get_args(Target)
FORMATS_BUILT = ("onnx",)
MOST_ROWS = 65536
OPSET = 17
"""What TensorRT and the transformer fusers read; the TorchScript-based exporter writes it best."""
DYNAMO_OPSET = 18
"""The least that the newer exporter writes; it converts down from there, and often can't."""
EXPORTERS_BUILT = ("torchscript", "dynamo")
_BF16 = "onnxruntime has no bf16 on CPUs, and a T4 none at all"

CHOOSING = 0.8
"""The share of a gate that a candidate may use up on the rows that choose it."""
GATE_KEYS = ("relative", "cosine", "confident", "metric", "rows")
SURE_ROWS = 59
"""Without a fault among as many rows, at most 5 % could get another class (at 95 %): fewer show nothing of INT8's gate."""
METRICS_BUILT = ("accuracy", "centroid", "error")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_WHOLE = re.compile(r"[0-9]{1,5}")
_SHARE = re.compile(r"[0-9]*\.?[0-9]+([eE]-?[0-9]+)?")
_DYNAMIC_AXIS = re.compile(r"(\d+)(?:=(\d+))?")

Axes = Mapping[int, int | None]
"""Axes whose length varies, with the greatest length where one was given."""


class ExportError(TidegateError):
    """The export can't be done; nothing was written. The message says what was wrong, where, and what to do."""

    reason = "export"


class PlanError(ExportError):
    """What was asked for makes no sense or isn't built yet: the command line's fault, found before any work."""

    reason = "plan"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a precision must hold against PyTorch in FP32, on every output.

    `relative` is the largest difference, as a share of the output's largest value; `cosine` the least mean cosine of a row;
    `confident` the largest share of rows whose best class differs, of those that PyTorch gives more than half to one class;
    `metric` by how much the task's metric may be worse than FP32's, on a labelled set; `rows` how many rows PyTorch must be sure of,
    where it's sure of any, the labelled ones included: `confident` says nothing of a few.
    """

    relative: float
    cosine: float
    confident: float
    metric: float = 0.005
    rows: int = 0

    def tightened(self) -> Gate:
        """What a candidate must hold on the rows that choose it: closer, for the proof's rows are others."""
        return replace(self, relative=self.relative * CHOOSING, cosine=1 - (1 - self.cosine) * CHOOSING)


GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "fp32": Gate(relative=1e-4, cosine=0.9999, confident=0.01),
        "approximate": Gate(relative=5e-3, cosine=0.9999, confident=0.01),
        "fp16": Gate(relative=2e-2, cosine=0.999, confident=0.01),
        "int8wo": Gate(relative=0.3, cosine=0.99, confident=0.05, metric=0.01, rows=SURE_ROWS),
        "int8": Gate(relative=0.5, cosine=0.98, confident=0.05, metric=0.02, rows=SURE_ROWS),
    }
)
"""Accuracy alone hides damage on a few hundred rows, and so does cosine on the rows that matter: a precision must hold all three.
`approximate` is FP32 at level 4, where an operator may be computed by an approximation."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where the model's factory is: a file or a module, and an attribute of it; or `hub`, a folder with a config and weights;
    or `onnx`, a file that was exported already; or `program`, one that torch.export or TorchScript saved.

    `folders` are put at the head of the child's import path, in order. `label` is how messages and the manifest call it.
    """

    label: str
    factory: str
    folders: tuple[Path, ...]
    file: Path | None = None
    module: str | None = None
    hub: Path | None = None
    onnx: Path | None = None
    program: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineWish:
    """How TensorRT's engines are to be built. Rows that are None are taken from the entry's model.yaml (`batching`), else its defaults.

    `workspace` is bytes of scratch memory a layer may take, None for all that the GPU has. `timing_cache` is a file.
    """

    likely_rows: int | None = None
    most_rows: int | None = None
    workspace: int | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One export. `dynamic` maps an input to its varying axes; None leaves it to the module's own `dynamic()`.

    `timeout` is seconds that the user's code may take. `repository` and `output` are where the result goes: one of them or both.
    `keep_rows`: some rows of the proof stay with the entry. `resume`: finished steps are kept, and used again.
    Weights of more than `external_data` bytes lie beside their ONNX file.
    """

    model: ModelRef
    name: str
    repository: Path | None = None
    output: Path | None = None
    version: int | None = None
    weights: Path | None = None
    prune: float | None = None
    example: Path | None = None
    dynamic: Mapping[str, Axes] | None = None
    output_names: tuple[str, ...] = ()
    format: str = "onnx"
    exporter: str = "torchscript"
    level: int = 2
    precisions: tuple[str, ...] = ("fp32",)
    target: Target = "cpu"
    calibration: Path | None = None
    evaluation: Path | None = None
    metric: str | None = None
    keep_rows: bool = True
    resume: bool = False
    gates: Mapping[str, Gate] = field(default_factory=lambda: GATES)
    timeout: float = 600.0
    seed: int = 0
    engine: EngineWish = EngineWish()
    external_data: int = MOST_INLINE

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise PlanError(
                f"--name {self.name!r} can't be a model's name: expected letters, digits, '_', '-' and '.', not first '.' or '-'"
            )
        _check_built("--format", self.format, FORMATS_BUILT)
        _check_built("--exporter", self.exporter, EXPORTERS_BUILT)
        _check_built("--optimization-level", self.level, LEVELS_BUILT)
        _check_precisions(self.precisions, self.target)
        if (self.model.hub or self.model.onnx or self.model.program) and self.weights:
            raise PlanError(f"--weights {self.weights}: {self.model.label} brings its own")
        if (self.model.onnx or self.model.program) and self.prune is not None:
            raise PlanError(f"--prune: {self.model.label} is a graph already; only a PyTorch module can be pruned")
        if self.model.onnx and self.output_names:
            raise PlanError(f"--output-names: the outputs of {self.model.label} have names")
        if self.repository is None and self.output is None:
            raise PlanError("nowhere to write: give --repository DIR (with --name NAME), --output FILE.onnx, or both")
        if self.output is not None and not is_name(self.output.name):
            raise PlanError(f"--output {self.output}: a manifest can't name that file: use letters, digits, '_', '-' and '.'")
        if self.version is not None and self.version < 1:
            raise PlanError(f"--version {self.version}: expected a number from 1 on")
        if self.timeout <= 0:
            raise PlanError(f"--timeout {self.timeout:g}: expected seconds above 0")
        if self.output is not None and len(self.precisions) > 1:
            raise PlanError(f"--output takes one precision, not {', '.join(self.precisions)}: --repository DIR takes several")
        if self.metric is not None:
            _check_built("--metric", self.metric, METRICS_BUILT)
        given = {"--weights": self.weights, "--example": self.example, "--calibration": self.calibration, "--eval": self.evaluation}
        for option, path in given.items():
            if path is not None and not (path.is_file() or (option == "--calibration" and path.is_dir())):
                raise PlanError(f"{option} {path}: no such file")

    @property
    def calibrates(self) -> bool:
        """Whether a precision is made that must see what the graph's tensors hold."""
        return any(precision != "fp32" for precision in self.precisions)


def is_name(text: str) -> bool:
    """Whether `text` can name a model: it becomes a folder and a part of URLs."""
    return _NAME.fullmatch(text) is not None


def parse_target(text: str) -> Target:
    """What an export is for. Raises PlanError."""
    for target in TARGETS:
        if text == target:
            return target
    raise PlanError(f"--target {text}: expected {', '.join(TARGETS)}")


def parse_gates(texts: tuple[str, ...]) -> Mapping[str, Gate]:
    """`PRECISION:KEY=NUMBER[,KEY=NUMBER…]`, as GATES with these changed. Raises PlanError."""
    found = dict(GATES)
    for text in texts:
        precision, colon, pairs = text.partition(":")
        if not colon or precision not in found:
            raise PlanError(f"--tolerate {text!r}: expected PRECISION:KEY=NUMBER,… with {', '.join(found)}, as in int8:cosine=0.97")
        for pair in pairs.split(","):
            key, _, number = pair.strip().partition("=")
            if key == "rows" and _WHOLE.fullmatch(number):
                found[precision] = replace(found[precision], rows=int(number))
            elif key in GATE_KEYS and key != "rows" and _SHARE.fullmatch(number) and 0 <= float(number) <= 1:
                found[precision] = replace(found[precision], **{key: float(number)})  # type: ignore[arg-type]  # all of them are floats
            else:
                raise PlanError(
                    f"--tolerate {text!r}: {pair.strip()!r} isn't KEY=NUMBER with {', '.join(GATE_KEYS)} and 0 to 1 (rows: 0 or more)"
                )
    return found


def parse_prune(text: str | None) -> float | None:
    """A share of the output channels, above 0 and below 1. Raises PlanError."""
    if text is None:
        return None
    if text == "2:4":
        raise PlanError(
            "--prune 2:4: that pattern is fast on sparse tensor cores only (compute capability 8.0 and up): a T4 has 7.5, and would "
            "compute the zeros; give a share of whole channels, as in --prune 0.2"
        )
    if not _SHARE.fullmatch(text) or not 0 < float(text) < 1:
        raise PlanError(f"--prune {text}: expected the share of channels to take away, above 0 and below 1")
    return float(text)


def parse_dynamic(texts: tuple[str, ...]) -> Mapping[str, Axes] | None:
    """`NAME:AXIS[=MAX][,AXIS[=MAX]…]`, once an input, as {name: {axis: max or None}}; None for no text. Raises PlanError."""
    found: dict[str, Axes] = {}
    for text in texts:
        name, colon, axes = text.rpartition(":")
        parsed = [_DYNAMIC_AXIS.fullmatch(part.strip()) for part in axes.split(",")]
        if not colon or not name or not all(parsed):
            raise PlanError(f"--dynamic {text!r}: expected NAME:AXIS[=MAX],…, as in input_ids:0,1 or input_ids:1=512")
        found[name] = {int(match[1]): int(match[2]) if match[2] else None for match in parsed if match}
    return found or None


def parse_external_data(text: str | None) -> int:
    """Bytes from which on weights lie beside their file. Raises PlanError."""
    if text is None:
        return MOST_INLINE
    try:
        return min(size(text), MOST_INLINE)
    except ValueError as error:
        raise PlanError(f"--external-data {text}: expected a size, as in 512MiB or 0B: {error}") from None


def parse_engine(text: str) -> EngineWish:
    """`most_rows=64,workspace=2GiB` as a wish. Raises PlanError that names the key."""
    wish = EngineWish()
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = part.partition("=")
        if key not in _ENGINE_KEYS:
            raise PlanError(f"--engine {part}: unknown key; expected {', '.join(_ENGINE_KEYS)}")
        try:
            wish = replace(wish, **{key: _ENGINE_KEYS[key](value)})
        except (ValueError, KeyError):
            raise PlanError(f"--engine {part}: can't read {value!r}; as in most_rows=64,workspace=2GiB,version_compatible=yes") from None
    return wish


def _rows(text: str) -> int:
    if not 1 <= int(text) <= MOST_ROWS:
        raise ValueError(text)
    return int(text)


_ENGINE_KEYS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "most_rows": _rows,
        "likely_rows": _rows,
        "workspace": size,
        "timing_cache": Path,
        "version_compatible": {"yes": True, "no": False}.__getitem__,
    }
)


def _check_precisions(precisions: tuple[str, ...], target: Target) -> None:
    if "int8wo" in precisions and target == "tensorrt":
        raise PlanError("--precisions int8wo: TensorRT takes INT8 weights with INT8 activations only; ask for int8")
    if "bf16" in precisions:
        raise PlanError(f"--precisions bf16: {_BF16}; ask for fp16")
    if not precisions:
        raise PlanError(f"--precisions names none; expected one or more of {', '.join(PRECISIONS_BUILT)}")
    for precision in precisions:
        _check_built("--precisions", precision, PRECISIONS_BUILT)
    if len(set(precisions)) < len(precisions):
        raise PlanError(f"--precisions {','.join(precisions)}: names one twice")


def _check_built(option: str, asked: object, built: tuple[object, ...]) -> None:
    if asked not in built:
        raise PlanError(f"{option} {asked}: not built yet; built are {', '.join(map(str, built))}")
