"""What is declared of a model's tensors against what its file says: the declaration may say more, never something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.backends.base import VariantSpec
from server.errors import ModelDefect
from server.tensors import TensorSpec


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
