"""What model.yaml says of a model's tensors and files, held against the model itself: wrong names, axes and labels are refused by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from server.backends.base import VariantSpec
from server.errors import ModelDefect
from server.padding import NO_PADDING, Padding
from server.repository.configs.reading import config_path
from server.repository.declare.expected import Expected
from server.repository.devices.engines import EngineBuild
from server.repository.manifest import Manifest
from server.repository.model_config import ModelConfig, TensorConfig
from server.repository.onnx_files import Value
from server.repository.store import Entry
from server.tensors import TensorSpec
from server.validation import nearest

MAX_LABELS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Loadable:
    """One version, checked and ready to be opened. `trust_batch_axis`: the manifest or model.yaml vouches for the rows. `padding` is
    what model.yaml asks for; whether the model bears it is for lanes.pad_proof to say. `note` is for everyone who sees it served.
    `expected` are the precisions that the version has here. `build` is the engine that's to be built while something else serves."""

    config: ModelConfig
    spec: VariantSpec
    manifest: Manifest | None
    trust_batch_axis: bool
    padding: Padding = NO_PADDING
    note: str = ""
    expected: Expected = field(default_factory=dict)
    build: EngineBuild | None = None


def specs_said(entry: Entry, section: str, tensors: Mapping[str, TensorConfig]) -> tuple[TensorSpec, ...]:
    """Specs of tensors that no file has: a first axis that varies counts rows unless model.yaml says that it doesn't."""
    specs = [
        spec_of(entry, section, Value(name, said.dtype, said.shape), 0 if (said.shape or ())[:1] == (-1,) else None)
        for name, said in tensors.items()
    ]
    return completed(entry, section, specs, tensors)


def declared_values(specs: Iterable[TensorSpec], values: Iterable[Value]) -> list[Value]:
    """The manifest's tensors, their axes named as in the file."""
    axes = {value.name: value.axes for value in values}
    return [Value(spec.name, spec.datatype, spec.shape, axes.get(spec.name, ())) for spec in specs]


def said_value(value: Value, tensors: Mapping[str, TensorConfig]) -> Value:
    """A value with what model.yaml says of it; the backend compares that with the file."""
    said = tensors.get(value.name, TensorConfig())
    return Value(value.name, said.dtype or value.datatype, value.shape if said.shape is None else said.shape, value.axes)


def spec_of(entry: Entry, section: str, value: Value, axis: int | None) -> TensorSpec:
    where = f"{config_path(entry.path)}: {section}.{value.name}"
    if value.datatype is None or value.shape is None:
        missing = "dtype" if value.datatype is None else "shape"
        raise ModelDefect(f"{where}: the file doesn't say its {missing}, so it must be given here")
    return TensorSpec(value.name, value.datatype, value.shape, axis)


def axes_said(config: ModelConfig) -> frozenset[str]:
    """The tensors of which model.yaml says whether they are per row."""
    tensors = [*config.inputs.items(), *config.outputs.items()]
    return frozenset(name for name, tensor in tensors if "batch_axis" in tensor.model_fields_set)


def check_names(entry: Entry, section: str, tensors: Iterable[str], names: Sequence[str]) -> None:
    for name in tensors:
        if name not in names:
            raise ModelDefect(f"{config_path(entry.path)}: {section}.{name}: the model has none of this name{nearest(name, names)}")


def completed(entry: Entry, section: str, known: Sequence[TensorSpec], tensors: Mapping[str, TensorConfig]) -> tuple[TensorSpec, ...]:
    """The specs with what model.yaml says of them."""
    where = f"{config_path(entry.path)}: {section}"
    return tuple(_with(entry, f"{where}.{spec.name}", spec, tensors[spec.name]) if spec.name in tensors else spec for spec in known)


def _with(entry: Entry, where: str, spec: TensorSpec, said: TensorConfig) -> TensorSpec:
    spec = replace(spec, datatype=said.dtype or spec.datatype, shape=spec.shape if said.shape is None else said.shape)
    if "batch_axis" in said.model_fields_set:
        spec = replace(spec, batch_axis=said.batch_axis)
    if spec.batch_axis == 0 and not spec.shape:
        raise ModelDefect(f"{where}: batch_axis 0 of a tensor without axes")
    if said.max_shape is not None:
        if len(said.max_shape) != len(spec.shape):
            raise ModelDefect(f"{where}: max_shape has {len(said.max_shape)} axes, the tensor {len(spec.shape)}")
        spec = replace(spec, max_shape=said.max_shape)
    return spec if said.labels is None else replace(spec, labels=_labels(entry, where, spec, said.labels))


def _labels(entry: Entry, where: str, spec: TensorSpec, name: str) -> tuple[str, ...]:
    """The lines of the labels file. Raises ModelDefect where there aren't as many as the last axis is long."""
    if "/" in name or name.startswith("."):
        raise ModelDefect(f"{where}: labels: expected the name of a file beside {config_path(entry.path).name}, got {name!r}")
    path = checked_file(entry, entry.path / name)
    if path.stat().st_size > MAX_LABELS_BYTES:
        raise ModelDefect(f"{path}: larger than {MAX_LABELS_BYTES} bytes, which no list of labels needs")
    try:
        labels = tuple(path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDefect(f"{path}: can't be read as text: {error}") from error
    if spec.shape and spec.shape[-1] not in (-1, len(labels)):
        raise ModelDefect(f"{path}: {len(labels)} labels, but the last axis of {spec.name!r} is {spec.shape[-1]} long")
    return labels


def checked_file(entry: Entry, path: Path) -> Path:
    """`path`, links followed. Raises ModelDefect unless that is a file inside the repository."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelDefect(f"{path}: no such file") from error
    if not real.is_relative_to(entry.path.parent.resolve()):
        raise ModelDefect(f"{path}: a link that leads out of the repository")
    if not real.is_file():
        raise ModelDefect(f"{path}: not a file")
    return real
