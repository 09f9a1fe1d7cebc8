"""From a repository entry to what a lane can open: reads model.yaml and the manifest (or a bare model.onnx), chooses the precision, and
checks the file before any runtime sees it. Blocks (a large file is hashed); call it off the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from server.backends.base import VariantSpec
from server.backends.latency_table import BUILT_IN
from server.backends.registry import DEFAULT, EMULATED, TENSORRT
from server.config import Settings
from server.documents import read_yaml
from server.errors import ModelDefect
from server.padding import NO_PADDING, Padding
from server.repository.emulation import curve_of, note, table_of
from server.repository.engines import engine_for, engine_options
from server.repository.manifest import MANIFEST_NAME, Manifest, TensorEntry, Variant, file_sha256, read_manifest
from server.repository.model_config import CONFIG_NAME, ModelConfig, TensorConfig, read_model_config
from server.repository.onnx_files import OnnxFile, Value, check_external, read_onnx
from server.repository.pad_axes import padding_of
from server.repository.store import Entry
from server.tensors import DTYPES, TensorSpec
from server.validation import nearest

BARE_NAME = "model.onnx"
BARE_OPTIMIZATION_LEVEL = 2
PORTABLE_LEVEL = 2  # up to here the exporter writes plain ONNX, the same for every device
MAX_LABELS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Loadable:
    """One version, checked and ready to be opened. `trust_batch_axis`: the manifest or model.yaml vouches for the rows. `padding` is
    what model.yaml asks for; whether the model bears it is for lanes.pad_proof to say. `note` is for everyone who sees it served."""

    config: ModelConfig
    spec: VariantSpec
    manifest: Manifest | None
    trust_batch_axis: bool
    padding: Padding = NO_PADDING
    note: str = ""


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
    config = read_model_config(entry.path)
    if config.emulate is not None or config.backend == EMULATED:
        return _emulated(entry, version, config)
    device = config.lanes.device or settings.lanes.device
    manifest = read_manifest(folder / MANIFEST_NAME) if (folder / MANIFEST_NAME).exists() else None
    found = _bare(entry, folder, config) if manifest is None else _proved(entry, folder, config, manifest, device)
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision=found.precision,
        backend=found.backend,
        path=found.path,
        device=device,
        threads=config.lanes.threads or settings.lanes.threads,
        optimization_level=found.optimization_level,
        inputs=_completed(entry, "inputs", found.inputs, config.inputs),
        outputs=_completed(entry, "outputs", found.outputs, config.outputs),
        options=found.options,
    )
    padding = padding_of(entry.path, config, *found.declared)
    trusted = manifest is not None or bool(_axes_said(config))
    return Loadable(config, spec, manifest, trust_batch_axis=trusted, padding=padding, note=found.note)


def _emulated(entry: Entry, version: str, config: ModelConfig) -> Loadable:
    """A version without a file: model.yaml declares its tensors, a published table says how long it takes."""
    document = read_yaml(entry.path / CONFIG_NAME, ModelDefect)
    emulate, lanes = config.emulate, config.lanes
    if emulate is None or config.backend != EMULATED:
        missing = "backend" if emulate else "emulate"
        raise document.error(("backend",), f"`backend: {EMULATED}` and `emulate: {{model: …}}` belong together; {missing} is missing")
    if lanes.kind not in ("auto", "thread"):
        raise document.error(("lanes", "kind"), f"an emulated device sleeps in a thread: expected auto or thread, got {lanes.kind!r}")
    if config.precision.active not in (None, emulate.precision):
        raise document.error(("precision", "active"), f"is {config.precision.active!r}, but emulate.precision is {emulate.precision!r}")
    table = table_of(document, emulate)
    curve = curve_of(document, emulate, table if emulate.table in BUILT_IN else _file(entry, table))
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision=emulate.precision,
        backend=EMULATED,
        path=table,
        threads=1,
        inputs=_specs_said(entry, "inputs", config.inputs),
        outputs=_specs_said(entry, "outputs", config.outputs),
        options=emulate.options(table),
    )
    padding = padding_of(entry.path, config, _declared(spec.inputs, ()), _declared(spec.outputs, ()))
    threads = lanes.model_copy(update={"kind": "thread", "count": lanes.count or 1, "threads": 1})
    config = config.model_copy(update={"lanes": threads})
    return Loadable(config, spec, None, trust_batch_axis=True, padding=padding, note=note(curve))


def _specs_said(entry: Entry, section: str, tensors: Mapping[str, TensorConfig]) -> tuple[TensorSpec, ...]:
    """Specs of tensors that no file has: a first axis that varies counts rows unless model.yaml says that it doesn't."""
    specs = [
        _spec(entry, section, Value(name, said.dtype, said.shape), 0 if (said.shape or ())[:1] == (-1,) else None)
        for name, said in tensors.items()
    ]
    return _completed(entry, section, specs, tensors)


def _proved(entry: Entry, folder: Path, config: ModelConfig, manifest: Manifest, device: str) -> _Found:
    """The variant to serve: as a TensorRT engine where there's one that fits the device, else as ONNX, saying why."""
    plain = _choose(manifest, folder, config, device)
    if device == "cpu" or config.backend == DEFAULT:
        return _exported(entry, folder, config, plain)
    engine, why = engine_for(manifest, plain.precision, device, config.batching.max_rows)
    if engine is None and config.backend == TENSORRT:
        raise ModelDefect(f"{entry.path / CONFIG_NAME}: backend: {TENSORRT!r}: {why or f'{folder / MANIFEST_NAME} has no engine'}")
    return replace(_exported(entry, folder, config, engine or plain), note=why)


def _choose(manifest: Manifest, folder: Path, config: ModelConfig, device: str) -> Variant:
    """The variant in ONNX that model.yaml asks for, else FP32, else the first; of those that run on the device."""
    where, wanted = folder / MANIFEST_NAME, config.precision.active
    named = [variant for variant in manifest.variants if wanted in (None, variant.precision) and variant.engine is None]
    if not named:
        have = ", ".join(variant.precision for variant in manifest.variants)
        raise ModelDefect(f"{folder.parent / CONFIG_NAME}: precision.active: {wanted!r} isn't among those of {where}: {have}")
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
        said = f"{entry.path / CONFIG_NAME}: backend: {config.backend!r}"
        raise ModelDefect(f"{said}, but {folder / MANIFEST_NAME} has {variant.backend!r} for {variant.precision}")
    path = _file(entry, folder / variant.file)
    size = path.stat().st_size
    again = f"{MANIFEST_NAME} says; it was changed or cut short after its export, so export it again"
    if size != variant.size:
        raise ModelDefect(f"{path}: {size} bytes, not the {variant.size} that {again}")
    sha256 = file_sha256(path)
    if sha256 != variant.sha256:
        raise ModelDefect(f"{path}: its sha256 is {sha256[:16]}…, not the {variant.sha256[:16]}… that {again}")
    file = read_onnx(path) if path.suffix == ".onnx" else OnnxFile()
    if file.external:
        raise ModelDefect(f"{path}: its weights lie in {min(file.external)[:200]!r}, for which {MANIFEST_NAME} has no hash")
    _check_names(entry, "inputs", config.inputs, [tensor.name for tensor in variant.inputs])
    _check_names(entry, "outputs", config.outputs, [tensor.name for tensor in variant.outputs])
    inputs, outputs = (tuple(_from_manifest(folder, tensor) for tensor in tensors) for tensors in (variant.inputs, variant.outputs))
    declared = _declared(inputs, file.inputs), _declared(outputs, file.outputs)
    options = engine_options(variant.engine) if variant.engine else {}
    return _Found(path, variant.precision, variant.backend, variant.optimization_level, inputs, outputs, declared, options)


def _declared(specs: Iterable[TensorSpec], values: Iterable[Value]) -> list[Value]:
    """The manifest's tensors, their axes named as in the file."""
    axes = {value.name: value.axes for value in values}
    return [Value(spec.name, spec.datatype, spec.shape, axes.get(spec.name, ())) for spec in specs]


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
    """A model.onnx without a manifest: all is read from the file."""
    if not (folder / BARE_NAME).exists():
        have = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelDefect(f"{folder}: expected {MANIFEST_NAME} (written by the exporter) or {BARE_NAME}; found {have}")
    path = _file(entry, folder / BARE_NAME)
    file = read_onnx(path)
    check_external(path, file.external)
    if config.precision.active not in (None, file.precision):
        said = f"{entry.path / CONFIG_NAME}: precision.active: {config.precision.active!r}"
        raise ModelDefect(f"{said}, but {path} is {file.precision}; `tidegate export` makes other precisions of it")
    _check_names(entry, "inputs", config.inputs, [value.name for value in file.inputs])
    _check_names(entry, "outputs", config.outputs, [value.name for value in file.outputs])
    inputs = [_said(value, config.inputs) for value in file.inputs]
    outputs = [_said(value, config.outputs) for value in file.outputs]
    silent = [value for value in (*inputs, *outputs) if value.name not in _axes_said(config)]
    axis = 0 if all(value.shape is None or value.shape[:1] == (-1,) for value in silent) else None
    specs = [
        tuple(_spec(entry, section, value, axis) for value in values if value.name in tensors)
        for section, values, tensors in (("inputs", inputs, config.inputs), ("outputs", outputs, config.outputs))
    ]
    return _Found(path, file.precision, config.backend or DEFAULT, BARE_OPTIMIZATION_LEVEL, specs[0], specs[1], (inputs, outputs))


def _said(value: Value, tensors: Mapping[str, TensorConfig]) -> Value:
    """A value with what model.yaml says of it; the backend compares that with the file."""
    said = tensors.get(value.name, TensorConfig())
    return Value(value.name, said.dtype or value.datatype, value.shape if said.shape is None else said.shape, value.axes)


def _spec(entry: Entry, section: str, value: Value, axis: int | None) -> TensorSpec:
    where = f"{entry.path / CONFIG_NAME}: {section}.{value.name}"
    if value.datatype is None or value.shape is None:
        missing = "dtype" if value.datatype is None else "shape"
        raise ModelDefect(f"{where}: the file doesn't say its {missing}, so it must be given here")
    return TensorSpec(value.name, value.datatype, value.shape, axis)


def _axes_said(config: ModelConfig) -> frozenset[str]:
    """The tensors of which model.yaml says whether they are per row."""
    tensors = [*config.inputs.items(), *config.outputs.items()]
    return frozenset(name for name, tensor in tensors if "batch_axis" in tensor.model_fields_set)


def _check_names(entry: Entry, section: str, tensors: Iterable[str], names: Sequence[str]) -> None:
    for name in tensors:
        if name not in names:
            raise ModelDefect(f"{entry.path / CONFIG_NAME}: {section}.{name}: the model has none of this name{nearest(name, names)}")


def _completed(entry: Entry, section: str, known: Sequence[TensorSpec], tensors: Mapping[str, TensorConfig]) -> tuple[TensorSpec, ...]:
    """The specs with what model.yaml says of them."""
    where = f"{entry.path / CONFIG_NAME}: {section}"
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
        raise ModelDefect(f"{where}: labels: expected the name of a file beside {CONFIG_NAME}, got {name!r}")
    path = _file(entry, entry.path / name)
    if path.stat().st_size > MAX_LABELS_BYTES:
        raise ModelDefect(f"{path}: larger than {MAX_LABELS_BYTES} bytes, which no list of labels needs")
    try:
        labels = tuple(path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDefect(f"{path}: can't be read as text: {error}") from error
    if spec.shape and spec.shape[-1] not in (-1, len(labels)):
        raise ModelDefect(f"{path}: {len(labels)} labels, but the last axis of {spec.name!r} is {spec.shape[-1]} long")
    return labels


def _file(entry: Entry, path: Path) -> Path:
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
