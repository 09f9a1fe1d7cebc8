"""What to make, from what, and how exact: a frozen Plan, checked once, and the two ways in which an export can fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from server.errors import TidegateError

LEVELS_BUILT = (0, 1, 2)
PRECISIONS_BUILT = ("fp32",)
FORMATS_BUILT = ("onnx",)
OPSET = 17
"""What TensorRT and the transformer fusers read; the TorchScript-based exporter writes it best."""
TOLERANCES: Mapping[str, float] = MappingProxyType({"fp32": 1e-4})
"""The largest difference from PyTorch that is let through, as a share of the output's largest value."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
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
class ModelRef:
    """Where the model's factory is: a file or a module, and an attribute of it.

    `folders` are put at the head of the child's import path, in order. `label` is how messages and the manifest call it.
    """

    label: str
    factory: str
    folders: tuple[Path, ...]
    file: Path | None = None
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One export. `dynamic` maps an input to its varying axes; None leaves it to the module's own `dynamic()`.

    `timeout` is seconds that the user's code may take. `repository` and `output` are where the result goes: one of them or both.
    """

    model: ModelRef
    name: str
    repository: Path | None = None
    output: Path | None = None
    version: int | None = None
    weights: Path | None = None
    example: Path | None = None
    dynamic: Mapping[str, Axes] | None = None
    output_names: tuple[str, ...] = ()
    format: str = "onnx"
    level: int = 2
    precisions: tuple[str, ...] = ("fp32",)
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    timeout: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise PlanError(
                f"--name {self.name!r} can't be a model's name: expected letters, digits, '_', '-' and '.', not first '.' or '-'"
            )
        _check_built("--format", self.format, FORMATS_BUILT)
        _check_built("--optimization-level", self.level, LEVELS_BUILT)
        if not self.precisions:
            raise PlanError("--precisions names none; expected one or more of fp32")
        for precision in self.precisions:
            _check_built("--precisions", precision, PRECISIONS_BUILT)
        if self.repository is None and self.output is None:
            raise PlanError("nowhere to write: give --repository DIR (with --name NAME), --output FILE.onnx, or both")
        if self.output is not None and not is_name(self.output.name):
            raise PlanError(f"--output {self.output}: a manifest can't name that file: use letters, digits, '_', '-' and '.'")
        if self.version is not None and self.version < 1:
            raise PlanError(f"--version {self.version}: expected a number from 1 on")
        if self.timeout <= 0:
            raise PlanError(f"--timeout {self.timeout:g}: expected seconds above 0")
        for option, path in (("--weights", self.weights), ("--example", self.example)):
            if path is not None and not path.is_file():
                raise PlanError(f"{option} {path}: no such file")


def is_name(text: str) -> bool:
    """Whether `text` can name a model: it becomes a folder and a part of URLs."""
    return _NAME.fullmatch(text) is not None


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


def _check_built(option: str, asked: object, built: tuple[object, ...]) -> None:
    if asked not in built:
        raise PlanError(f"{option} {asked}: not built yet; built are {', '.join(map(str, built))}")
