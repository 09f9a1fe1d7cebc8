"""What is declared of a model's tensors against what its file says: the declaration may say more, never something else, but for shapes
of as many elements, between which tensors are reshaped on their way in and out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from server.backends.base import Backend, VariantSpec
from server.errors import InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec


def settled(
    spec: VariantSpec, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The file's inputs and outputs in its order, those that `spec` names replaced by what it says of them.

    The others are per row where the first axis varies in all of them. Raises ModelDefect where `spec` contradicts the file.
    """
    given = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    open_ended = [tensor for tensor in (*inputs, *outputs) if tensor.name not in given]
    axis = 0 if inputs and all(tensor.shape[:1] == (-1,) for tensor in open_ended) else None
    return (
        _overridden(spec, "input", [replace(tensor, batch_axis=axis) for tensor in inputs], spec.inputs),
        _overridden(spec, "output", [replace(tensor, batch_axis=axis) for tensor in outputs], spec.outputs),
    )


def _overridden(spec: VariantSpec, what: str, found: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    by_name = {tensor.name: tensor for tensor in given}
    unknown = by_name.keys() - {tensor.name for tensor in found}
    if unknown:
        have = ", ".join(repr(tensor.name) for tensor in found)
        raise ModelDefect(f"{spec.path}: no {what} named {min(unknown)!r}, which is declared; the file has {have}")
    for tensor in found:
        declared = by_name.get(tensor.name, tensor)
        if declared.datatype != tensor.datatype or not _fits(declared.shape, tensor.shape):
            raise ModelDefect(
                f"{spec.path}: {what} {tensor.name!r} is declared {declared.datatype} {list(declared.shape)}, "
                f"but the file has {tensor.datatype} {list(tensor.shape)}"
            )
    return tuple(by_name.get(tensor.name, tensor) for tensor in found)


def _fits(declared: Sequence[int], found: Sequence[int]) -> bool:
    """Whether a declared shape says what the file says, or less than it allows. onnxruntime calls an unknown rank []."""
    if not found:
        return True
    return len(declared) == len(found) and all(file in (-1, axis) for axis, file in zip(declared, found, strict=True))


def open_declared(backend: type[Backend], spec: VariantSpec) -> Backend:
    """Open a variant whose tensors may be declared in other shapes than the model's own. Raises ModelDefect."""
    return Reshaped(backend, spec) if spec.reshape else backend.open(spec)


class Reshaped:
    """A backend that takes and gives tensors as declared, around one that has them as the model does. Reshaping copies nothing."""

    version: ClassVar[str] = "reshaped"

    def __init__(self, backend: type[Backend], spec: VariantSpec) -> None:
        own = replace(spec, inputs=_as_own(spec.inputs, spec.reshape), outputs=_as_own(spec.outputs, spec.reshape), reshape={})
        self._inner = backend.open(own)
        self.inputs = _as_declared(self._inner.inputs, spec.inputs)
        self.outputs = _as_declared(self._inner.outputs, spec.outputs)
        self._own = {tensor.name: tensor for tensor in (*own.inputs, *own.outputs) if tensor.name in spec.reshape}
        self._declared = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs) if tensor.name in spec.reshape}

    @classmethod
    def open(cls, spec: VariantSpec) -> Backend:
        """It is opened around another: see open_declared."""
        raise ModelDefect(f"{spec.path}: reshaping is no backend of its own")

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As the inner backend's, in the declared shapes."""
        into = None if out is None else {name: _shaped(array, self._own.get(name)) for name, array in out.items()}
        outputs = self._inner.run({name: _shaped(array, self._own.get(name)) for name, array in inputs.items()}, rows, into)
        return {name: _shaped(array, self._declared.get(name)) for name, array in outputs.items()}

    def close(self) -> None:
        """Close the inner backend."""
        self._inner.close()


def _as_own(tensors: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(replace(tensor, shape=shapes.get(tensor.name, tensor.shape), max_shape=None) for tensor in tensors)


def _as_declared(found: Sequence[TensorSpec], declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    by_name = {tensor.name: tensor for tensor in declared}
    return tuple(by_name.get(tensor.name, tensor) for tensor in found)


def _shaped(array: Tensor, spec: TensorSpec | None) -> Tensor:
    """An array in the shape of a spec, which leaves at most one axis open besides the one that counts rows."""
    if spec is None:
        return array
    shape = (array.shape[0], *spec.shape[1:]) if spec.batch_axis == 0 else spec.shape
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidRequest(f"tensor {spec.name!r}: {list(array.shape)} can't be reshaped to {list(shape)}") from error
