"""What onnxruntime is told about the GPU that it runs a file on: model.yaml's `accelerator`, and for TensorRT the shapes that will come.

Without those shapes the TensorRT provider would build an engine anew, for minutes, whenever a run is larger than all before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from server.config import Settings
from server.repository.configs.reading import said_wrong
from server.repository.declare.sections import Accelerator
from server.repository.devices.engines import cache_folder
from server.repository.manifest import file_sha256
from server.repository.model_config import Batching, ModelConfig
from server.repository.onnx_files import Value, read_onnx
from server.repository.store import Entry
from server.tensors import TensorSpec

TENSORRT = "tensorrt"
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The least, the likely and the greatest shape of an input."""


def accelerator_options(
    entry: Entry, config: ModelConfig, settings: Settings, path: Path, inputs: Sequence[TensorSpec]
) -> Mapping[str, object]:
    """The options of an ONNX file's backend on a GPU. `inputs` are all of them, with what is known of their greatest lengths.

    Raises ModelDefect for an axis without one, where it's needed. Hashes the file where an engine of it will be kept.
    """
    said = config.accelerator or Accelerator()
    options = said.model_dump(exclude_none=True)
    if said.provider != TENSORRT:
        return options
    for name, axis in _unbounded(inputs):
        raise said_wrong(
            entry.path,
            ("accelerator", "provider"),
            f"{TENSORRT} needs the greatest length of axis {axis} of input {name!r}: say it in inputs.{name}.max_shape",
        )
    least, likely, most = _rows(config.batching)
    profile = {spec.name: tuple(_shape(spec, rows, place) for place, rows in enumerate((least, likely, most))) for spec in inputs}
    return {**options, "profile": profile, "content": _content(path), "cache": str(cache_folder(settings.engines))}


def _content(path: Path) -> str:
    """What tells the file from every other, weights beside it included: an engine of it has them in it."""
    files = [path, *(path.parent / name for name in sorted(read_onnx(path).external))]
    return " ".join(file_sha256(file) for file in files)


def whole(values: Iterable[Value], specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """A file's inputs as specs, what is declared of them first; a first axis that varies counts rows unless it's said otherwise."""
    declared = {spec.name: spec for spec in specs}
    found = []
    for value in values:
        shape = value.shape or ()
        spec = TensorSpec(value.name, value.datatype or "FP32", shape, 0 if shape[:1] == (-1,) else None)
        found.append(declared.get(value.name, spec))
    return found


def _rows(batching: Batching) -> tuple[int, int, int]:
    """One profile for all: tuned for the largest run that's preferred, else for a quarter of the largest, as the exporter's engines."""
    likely = batching.preferred_rows[-1] if batching.preferred_rows else (batching.max_rows + 3) // 4
    return 1, likely, batching.max_rows


def _unbounded(inputs: Sequence[TensorSpec]) -> Iterator[tuple[str, int]]:
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if size == -1 and axis != spec.batch_axis and _greatest(spec, axis) < 1:
                yield spec.name, axis


def _greatest(spec: TensorSpec, axis: int) -> int:
    return spec.max_shape[axis] if spec.max_shape else -1


def _shape(spec: TensorSpec, rows: int, place: int) -> tuple[int, ...]:
    """An input's least, likely or greatest shape: axes that vary beside the rows go from 1 to their greatest length, by its half."""

    def size(axis: int, given: int) -> int:
        if given != -1:
            return given
        if axis == spec.batch_axis:
            return rows
        most = _greatest(spec, axis)
        return (1, (most + 1) // 2, most)[place]

    return tuple(size(axis, given) for axis, given in enumerate(spec.shape))
