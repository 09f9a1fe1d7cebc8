"""A TensorRT engine as it lies in a file, opened: its tensors, and the shapes that each of its optimization profiles takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.backends.base import VariantSpec
from server.backends.nvidia.library import Library
from server.errors import ModelDefect
from server.tensors import TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

DATATYPES: Mapping[str, str] = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT64": "INT64",
    "INT32": "INT32",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}
"""TensorRT's names of datatypes and the protocol's."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimization profile: the least and the greatest shape of each input."""

    least: Mapping[str, tuple[int, ...]]
    greatest: Mapping[str, tuple[int, ...]]

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether every input lies within its bounds."""
        return all(_within(shape, self.least[name], self.greatest[name]) for name, shape in shapes.items())


def _within(shape: tuple[int, ...], least: tuple[int, ...], greatest: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine in memory. `inputs` have the greatest shapes of all profiles as their bounds; a varying axis is -1."""

    engine: trt.ICudaEngine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]


def open_engine(library: Library, spec: VariantSpec) -> Opened:
    """The engine in spec.path. Raises ModelDefect where TensorRT refuses it or it has tensors that can't be served."""
    import tensorrt as trt

    engine = _deserialized(library, spec)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or engine.is_shape_inference_io(name):
            raise ModelDefect(f"{spec.path}: tensor {name!r} is a shape that the host computes with; export the model without it")
    profiles = tuple(_profile(engine, inputs, number) for number in range(engine.num_optimization_profiles))
    return Opened(
        engine,
        tuple(_spec(spec, engine, name, profiles) for name in inputs),
        tuple(_spec(spec, engine, name, ()) for name in names if name not in inputs),
        profiles,
    )


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    """A shape as a tuple; Dims says its length and its entries, and not how to iterate."""
    return tuple(dims[axis] for axis in range(len(dims)))


def _deserialized(library: Library, spec: VariantSpec) -> trt.ICudaEngine:
    import tensorrt as trt

    try:
        runtime = trt.Runtime(library.logger)
    except TypeError as error:  # what its bindings make of a null pointer: no driver, or no device
        raise ModelDefect(f"{spec.path}: TensorRT {library.version} doesn't start: {library.blame()}") from error
    if spec.options.get("version_compatible"):  # such an engine brings host code of its own version's runtime
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(spec.path.read_bytes())
    if engine is None:  # its bindings declare an engine
        raise ModelDefect(f"{spec.path}: TensorRT {library.version} doesn't take this engine: {library.blame()}")
    return engine


def _profile(engine: trt.ICudaEngine, inputs: list[str], number: int) -> Profile:
    bounds = {name: [shape_of(dims) for dims in engine.get_tensor_profile_shape(name, number)] for name in inputs}
    return Profile({name: shapes[0] for name, shapes in bounds.items()}, {name: shapes[2] for name, shapes in bounds.items()})


def _spec(spec: VariantSpec, engine: trt.ICudaEngine, name: str, profiles: tuple[Profile, ...]) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in DATATYPES:
        raise ModelDefect(f"{spec.path}: tensor {name!r} is {kind}, which the protocol has no datatype for; export it as another type")
    shape = shape_of(engine.get_tensor_shape(name))
    bounds = [profile.greatest[name] for profile in profiles]
    most = tuple(max(sizes) for sizes in zip(*bounds, strict=True))
    varying = tuple(size if axis == -1 and index > 0 else -1 for index, (axis, size) in enumerate(zip(shape, most, strict=False)))
    return TensorSpec(name, DATATYPES[kind], shape, None, varying if any(size > 0 for size in varying) else None)
