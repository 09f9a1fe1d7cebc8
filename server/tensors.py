"""What a tensor is here: a numpy array, and a spec that says which arrays a model takes and gives.

Datatypes carry the names of the Open Inference Protocol. BYTES are object arrays of `bytes`; BF16 is `ml_dtypes.bfloat16`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidRequest

Tensor: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """One datatype of the protocol. `size` is bytes an element on the wire, 0 where elements vary (BYTES)."""

    name: str
    numpy: np.dtype[Any]
    size: int
    config: str
    onnx: str


def _dtype(name: str, numpy: Any, config: str, onnx: str) -> DType:
    kind = np.dtype(numpy)
    return DType(name, kind, 0 if kind.hasobject else kind.itemsize, config, onnx)


DTYPES: Mapping[str, DType] = {
    kind.name: kind
    for kind in (
        _dtype("BOOL", np.bool_, "TYPE_BOOL", "tensor(bool)"),
        _dtype("UINT8", np.uint8, "TYPE_UINT8", "tensor(uint8)"),
        _dtype("UINT16", np.uint16, "TYPE_UINT16", "tensor(uint16)"),
        _dtype("UINT32", np.uint32, "TYPE_UINT32", "tensor(uint32)"),
        _dtype("UINT64", np.uint64, "TYPE_UINT64", "tensor(uint64)"),
        _dtype("INT8", np.int8, "TYPE_INT8", "tensor(int8)"),
        _dtype("INT16", np.int16, "TYPE_INT16", "tensor(int16)"),
        _dtype("INT32", np.int32, "TYPE_INT32", "tensor(int32)"),
        _dtype("INT64", np.int64, "TYPE_INT64", "tensor(int64)"),
        _dtype("FP16", np.float16, "TYPE_FP16", "tensor(float16)"),
        _dtype("FP32", np.float32, "TYPE_FP32", "tensor(float)"),
        _dtype("FP64", np.float64, "TYPE_FP64", "tensor(double)"),
        _dtype("BYTES", object, "TYPE_STRING", "tensor(string)"),
        _dtype("BF16", ml_dtypes.bfloat16, "TYPE_BF16", "tensor(bfloat16)"),
    )
}
_BY_NUMPY: Mapping[np.dtype[Any], DType] = {kind.numpy: kind for kind in DTYPES.values()}
_BY_ONNX: Mapping[str, DType] = {kind.onnx: kind for kind in DTYPES.values()}


def dtype_named(name: str) -> DType:
    """The datatype called `name`. Raises InvalidRequest that lists the known ones."""
    kind = DTYPES.get(name)
    if kind is None:
        raise InvalidRequest(f"unknown datatype {name!r}; expected one of {', '.join(DTYPES)}")
    return kind


def dtype_of(array: Tensor) -> DType:
    """The datatype of an array. Raises KeyError for one that the protocol has no name for."""
    return _BY_NUMPY[array.dtype]


def dtype_of_onnx(kind: str) -> DType | None:
    """The datatype for onnxruntime's name of it (`tensor(float)`), None where the protocol has none."""
    return _BY_ONNX.get(kind)


def elements(shape: Sequence[int]) -> int:
    """How many elements a shape holds. Python's integers don't wrap: [2**32, 2**32] stays huge and is refused by size."""
    return math.prod(shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    `shape` is whole, -1 where an axis varies. `batch_axis` is the axis that counts rows, None where the tensor isn't per row.
    `max_shape` bounds each axis of a request (-1: no bound). `labels` name the last axis' entries, for classification.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = 0
    max_shape: tuple[int, ...] | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()

    @property
    def dtype(self) -> DType:
        return DTYPES[self.datatype]
