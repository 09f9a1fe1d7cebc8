"""From a repository entry to what a lane can open: reads model.yaml and the manifest (or a bare model.onnx), chooses the precision, and
checks the file before any runtime sees it. Blocks (a large file is hashed); call it off the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from server.backends.base import VariantSpec
from server.backends.registry import DEFAULT, EMULATED, PYTHON, PYTORCH, TENSORRT
from server.config import Engines, Settings
from server.errors import ModelDefect
from server.repository.configs.reading import config_path, read_model_config, said_wrong
from server.repository.declare.expected import Expected, check_precisions, measured
from server.repository.declare.fileless import emulated, ensemble, python
from server.repository.declare.said import (
    Loadable,
    axes_said,
    check_names,
    checked_file,
    completed,
    declared_values,
    said_value,
    spec_of,
    specs_said,
)
from server.repository.declare.state import check_state, with_state_axes
from server.repository.devices.accelerators import accelerator_options, whole
from server.repository.devices.engines import EngineBuild, Wanted, choose_engine
from server.repository.manifest import MANIFEST_NAME, Manifest, TensorEntry, Variant, engine_options, file_sha256, read_manifest
from server.repository.model_config import CONFIG_NAME, ModelConfig
from server.repository.onnx_files import OnnxFile, Value, check_external, read_onnx
from server.repository.pad_axes import padding_of
from server.repository.store import Entry
from server.tensors import DTYPES, TensorSpec
from server.validation import nearest

__all__ = ["Loadable", "describe"]
BARE_NAME = "model.onnx"
TRACED_NAMES = ("model.pt2", "model.pt")
BARE_OPTIMIZATION_LEVEL = 2
PORTABLE_LEVEL = 2  # up to here the exporter writes plain ONNX, the same for every device


class Place(NamedTuple):
    """Where a version lies and where it's to run, and what is said of engines there."""

    folder: Path
    device: str
    engines: Engines


@dataclass(frozen=True, slots=True)
class _Found:
    """The file to open, and what is known of its tensors: all of them from a manifest, else those that model.yaml speaks of.
    `declared` are all inputs and all outputs, with the names that the file gives their axes. `options` are for the backend, `note` for
    everyone who sees it served."""

    path: Path
    precision: str
    backend: str
    optimization_level: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    declared: tuple[Sequence[Value], Sequence[Value]]
    options: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    expected: Expected = field(default_factory=dict)
    build: EngineBuild | None = None


def describe(entry: Entry, version: str, settings: Settings) -> Loadable:
    """What to open for one version of an entry. `settings` say where models run that don't say it themselves.

    Raises ModelDefect with the file, what was expected and what was found.
    """
    try:
        return _describe(entry, version, settings)
    except OSError as error:
        raise ModelDefect(f"{error.filename or entry.path}: can't be read: {error.strerror or error}") from error


def _describe(entry: Entry, version: str, settings: Settings) -> Loadable:
    folder = entry.path / version
    if not folder.is_dir():
        raise ModelDefect(f"{folder}: no such folder, so there is no version {version} of model {entry.name!r}")
    config = with_state_axes(read_model_config(entry.path, entry.over), entry.path)
    if config.emulate is not None or config.backend == EMULATED:
        return emulated(entry, version, config)
    if config.decoupled and config.backend != PYTHON:
        raise said_wrong(entry.path, ("decoupled",), "only a Python model (`backend: python`) gives several answers to a request")
    if config.python is not None or config.backend == PYTHON:
        return python(entry, version, config, settings.lanes.device)
    if config.ensemble is not None:
        return ensemble(entry, version, config)
    device = config.lanes.device or settings.lanes.device
    manifest = read_manifest(folder / MANIFEST_NAME) if (folder / MANIFEST_NAME).exists() else None
    found = _bare(entry, folder, config) if manifest is None else _proved(entry, config, manifest, Place(folder, device, settings.engines))
    inputs = completed(entry, "inputs", found.inputs, config.inputs)
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision=found.precision,
        backend=found.backend,
        path=found.path,
        device=device,
        threads=config.lanes.threads or settings.lanes.threads,
        optimization_level=found.optimization_level,
        inputs=inputs,
        outputs=completed(entry, "outputs", found.outputs, config.outputs),
        options=_on_device(entry, config, settings, found, inputs) if device != "cpu" else _on_cpu(entry, config, found),
        reshape={name: said.reshape for name, said in (*config.inputs.items(), *config.outputs.items()) if said.reshape is not None},
    )
    check_state(entry.path, config, *found.declared)
    padding = padding_of(entry.path, config, *found.declared)
    trusted = manifest is not None or bool(axes_said(config))
    return Loadable(config, spec, manifest, trusted, padding, found.note, found.expected, found.build)


def _on_device(entry: Entry, config: ModelConfig, settings: Settings, found: _Found, inputs: Sequence[TensorSpec]) -> Mapping[str, object]:
    """What the backend is told of a GPU."""
    if found.backend == DEFAULT:
        return accelerator_options(entry, config, settings, found.path, whole(found.declared[0], inputs))
    if config.accelerator is not None:
        raise said_wrong(entry.path, ("accelerator",), f"it's for {DEFAULT}, and {found.path.name} is run by {found.backend}")
    return found.options


def _on_cpu(entry: Entry, config: ModelConfig, found: _Found) -> Mapping[str, object]:
    """Triton's accelerators are for instances on a GPU, and say nothing of others; model.yaml's is a mistake there."""
    if config.accelerator is not None and config_path(entry.path).name == CONFIG_NAME:
        raise said_wrong(entry.path, ("accelerator",), "needs a GPU: lanes.device (or the server's) is cpu; expected cuda:N")
    return found.options


def _proved(entry: Entry, config: ModelConfig, manifest: Manifest, place: Place) -> _Found:
    """The variant to serve: as a TensorRT engine where there's one that fits the device, else as ONNX, saying why."""
    folder, device, _ = place
    plain = _choose(manifest, folder, config, device)
    here = [each.precision for each in manifest.variants if each.engine is None and _runs_on(each, device)]
    check_precisions(entry, config, list(dict.fromkeys(here)), f"{folder / MANIFEST_NAME} for {device}")
    expected = {precision: seconds for precision, seconds in measured(manifest, device).items() if precision in here}
    if device == "cpu" or config.backend == DEFAULT or config.accelerator is not None:
        return replace(_exported(entry, folder, config, plain), expected=expected)
    choice = choose_engine(Wanted(folder, manifest, plain, device, config.batching), place.engines)
    if choice.engine is None and config.backend == TENSORRT:
        raise ModelDefect(f"{config_path(entry.path)}: backend: {TENSORRT!r}: {choice.why or f'{folder / MANIFEST_NAME} has no engine'}")
    found = _exported(entry, choice.folder or folder, config, choice.engine or plain)
    return replace(found, note=choice.why, expected=expected, build=choice.build)


def _choose(manifest: Manifest, folder: Path, config: ModelConfig, device: str) -> Variant:
    """The variant in ONNX that model.yaml asks for, else FP32, else the first; of those that run on the device."""
    where, wanted = folder / MANIFEST_NAME, config.precision.first
    named = [variant for variant in manifest.variants if wanted in (None, variant.precision) and variant.engine is None]
    if not named:
        have = ", ".join(variant.precision for variant in manifest.variants)
        raise ModelDefect(f"{config_path(folder.parent)}: precision.active: {wanted!r} isn't among those of {where}: {have}")
    fitting = [variant for variant in named if _runs_on(variant, device)]
    if not fitting:
        made = ", ".join(f"{variant.precision} for {variant.target}" for variant in named)
        raise ModelDefect(f"{where}: made {made}, which device {device} doesn't run; export it for that target")
    return next((variant for variant in fitting if variant.precision == "fp32"), fitting[0])


def _runs_on(variant: Variant, device: str) -> bool:
    """FP32 up to PORTABLE_LEVEL runs anywhere; what was fused, cast or quantised was so for one target."""
    if variant.precision == "fp32" and variant.optimization_level <= PORTABLE_LEVEL and variant.target != "tensorrt":
        return True
    return (variant.target == "cpu") == (device == "cpu")


def _exported(entry: Entry, folder: Path, config: ModelConfig, variant: Variant) -> _Found:
    """A variant of the manifest, its file held to what the manifest says of it."""
    if config.backend not in (None, variant.backend):
        said = f"{config_path(entry.path)}: backend: {config.backend!r}"
        raise ModelDefect(f"{said}, but {folder / MANIFEST_NAME} has {variant.backend!r} for {variant.precision}")
    path = checked_file(entry, folder / variant.file) if folder.is_relative_to(entry.path) else folder / variant.file
    _check_written(path, variant.size, variant.sha256)
    file = read_onnx(path) if path.suffix == ".onnx" else OnnxFile()
    if unknown := file.external - ({variant.data.file} if variant.data else set()):
        raise ModelDefect(f"{path}: its weights lie in {min(unknown)[:200]!r}, for which {MANIFEST_NAME} has no hash")
    check_external(path, file.external)
    if variant.data:
        _check_written(path.with_name(variant.data.file), variant.data.size, variant.data.sha256)
    check_names(entry, "inputs", config.inputs, [tensor.name for tensor in variant.inputs])
    check_names(entry, "outputs", config.outputs, [tensor.name for tensor in variant.outputs])
    inputs, outputs = (tuple(_from_manifest(folder, tensor) for tensor in tensors) for tensors in (variant.inputs, variant.outputs))
    declared = declared_values(inputs, file.inputs), declared_values(outputs, file.outputs)
    options = engine_options(variant.engine) if variant.engine else {}
    return _Found(path, variant.precision, variant.backend, variant.optimization_level, inputs, outputs, declared, options)


def _check_written(path: Path, size: int, sha256: str) -> None:
    """Raises ModelDefect unless the file is the one that the manifest was written for."""
    again = f"{MANIFEST_NAME} says; it was changed or cut short after its export, so export it again"
    found = path.stat().st_size
    if found != size:
        raise ModelDefect(f"{path}: {found} bytes, not the {size} that {again}")
    digest = file_sha256(path)
    if digest != sha256:
        raise ModelDefect(f"{path}: its sha256 is {digest[:16]}…, not the {sha256[:16]}… that {again}")


def _from_manifest(folder: Path, tensor: TensorEntry) -> TensorSpec:
    where = f"{folder / MANIFEST_NAME}: tensor {tensor.name!r}"
    if tensor.datatype not in DTYPES:
        raise ModelDefect(f"{where}: unknown datatype {tensor.datatype!r}{nearest(tensor.datatype.upper(), DTYPES)}")
    if tensor.batch_axis not in (0, None) or (tensor.batch_axis == 0 and not tensor.shape):
        raise ModelDefect(f"{where}: batch_axis {tensor.batch_axis} of the shape {list(tensor.shape)}; expected 0 or null")
    if any(axis < -1 for axis in tensor.shape) or len(tensor.max_shape or tensor.shape) != len(tensor.shape):
        raise ModelDefect(f"{where}: shape {list(tensor.shape)} and max_shape {tensor.max_shape} don't fit; -1 is an axis that varies")
    return tensor.spec()


def _bare(entry: Entry, folder: Path, config: ModelConfig) -> _Found:
    """A model file without a manifest: ONNX, from which all is read, or a traced module of PyTorch's."""
    name = config.file or BARE_NAME
    traced = next((folder / other for other in TRACED_NAMES if (folder / other).exists()), None)
    if traced is not None and not (folder / name).exists():
        return _traced(entry, checked_file(entry, traced), config)
    if not (folder / name).exists():
        have = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelDefect(f"{folder}: expected {MANIFEST_NAME} (written by the exporter), {name} or {TRACED_NAMES[0]}; found {have}")
    path = checked_file(entry, folder / name)
    file = read_onnx(path)
    check_external(path, file.external)
    if config.precision.active not in (None, file.precision):  # the message that says what to do
        said = f"{config_path(entry.path)}: precision.active: {config.precision.active!r}"
        raise ModelDefect(f"{said}, but {path} is {file.precision}; `tidegate export` makes other precisions of it")
    check_precisions(entry, config, [file.precision], path)
    check_names(entry, "inputs", config.inputs, [value.name for value in file.inputs])
    check_names(entry, "outputs", config.outputs, [value.name for value in file.outputs])
    inputs = [said_value(value, config.inputs) for value in file.inputs]
    outputs = [said_value(value, config.outputs) for value in file.outputs]
    silent = [value for value in (*inputs, *outputs) if value.name not in axes_said(config)]
    axis = 0 if all(value.shape is None or value.shape[:1] == (-1,) for value in silent) else None
    specs = [
        tuple(spec_of(entry, section, value, axis) for value in values if value.name in tensors)
        for section, values, tensors in (("inputs", inputs, config.inputs), ("outputs", outputs, config.outputs))
    ]
    return _Found(path, file.precision, config.backend or DEFAULT, BARE_OPTIMIZATION_LEVEL, specs[0], specs[1], (inputs, outputs))


def _traced(entry: Entry, path: Path, config: ModelConfig) -> _Found:
    """A .pt2 file says its tensors when it's opened; of a .pt file model.yaml must say them. Precision fp16 is autocast."""
    if config.backend not in (None, PYTORCH):
        raise ModelDefect(f"{config_path(entry.path)}: backend: {config.backend!r}, but {path} is for {PYTORCH!r}")
    specs = [specs_said(entry, section, said) for section, said in (("inputs", config.inputs), ("outputs", config.outputs))]
    declared = declared_values(specs[0], ()), declared_values(specs[1], ())
    return _Found(path, config.precision.first or "fp32", PYTORCH, BARE_OPTIMIZATION_LEVEL, specs[0], specs[1], declared)
