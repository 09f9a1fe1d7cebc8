"""What model.yaml says about padding, held against the model's tensors: axes that don't vary and answers that couldn't be cut are refused.

An output's axis is cut where the file gives it the name of a padded input axis (`sequence`), or where model.yaml says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from server.padding import NO_PADDING, PadAxis, Padding, filling
from server.repository.configs.reading import said_wrong
from server.repository.model_config import ModelConfig
from server.repository.onnx_files import Value
from server.tensors import DTYPES
from server.validation import nearest

_MADE_UP = re.compile(r".+_dynamic_axes_\d+|\?")
"""Names that torch.onnx.export invents, another for each axis: they say nothing about which are alike."""


def padding_of(folder: Path, config: ModelConfig, inputs: Sequence[Value], outputs: Sequence[Value]) -> Padding:
    """The padding that the model.yaml in `folder` asks for. Raises ModelDefect with file, line, tensor and axis."""
    batching = config.batching
    if not batching.pad_axes:
        for value in outputs:
            if value.name in config.outputs and config.outputs[value.name].pad_axes:
                raise said_wrong(folder, ("outputs", value.name, "pad_axes"), "no input is padded: batching.pad_axes says which")
        return NO_PADDING
    known = {value.name: value for value in inputs}
    padded = {name: _input_axes(folder, name, axes, known) for name, axes in batching.pad_axes.items()}
    return Padding(
        inputs=MappingProxyType(padded),
        outputs=MappingProxyType(dict(_outputs(folder, config, outputs, _Dims(padded, inputs)))),
        values=MappingProxyType({name: _fills(folder, known[name], batching.pad_values.get(name)) for name in padded}),
        named=frozenset(axis.dim for axes in padded.values() for axis in axes if not axis.dim.startswith(_UNNAMED)),
    )


_UNNAMED = "axis "


def _dim(value: Value, index: int) -> str:
    name = value.axes[index] if index < len(value.axes) else ""
    return name if name and not _MADE_UP.fullmatch(name) else f"{_UNNAMED}{index}"


def _input_axes(folder: Path, name: str, axes: Sequence[int], known: Mapping[str, Value]) -> tuple[PadAxis, ...]:
    key = ("batching", "pad_axes", name)
    if name not in known:
        raise said_wrong(folder, key, f"the model has no input of this name{nearest(name, known)}")
    shape = known[name].shape
    if shape is None:
        raise said_wrong(folder, key, f"the file doesn't say the shape of input {name!r}, so inputs.{name}.shape must be given")
    for axis in axes:
        if axis >= len(shape):
            raise said_wrong(folder, key, f"axis {axis} of input {name!r}, which has {len(shape)} axes: {list(shape)}")
        if shape[axis] != -1:
            raise said_wrong(folder, key, f"axis {axis} of input {name!r} is always {shape[axis]} long; only one that varies can be padded")
    return tuple(PadAxis(axis, _dim(known[name], axis)) for axis in axes)


def _fills(folder: Path, value: Value, said: Any) -> Any:
    """The element that pads an input: zero, false or no text where model.yaml says nothing."""
    kind = DTYPES[value.datatype or ""]
    if said is None:
        said = "" if kind.name == "BYTES" else kind.name != "BOOL" and 0
    try:
        return filling(said, kind.numpy)
    except ValueError as error:
        raise said_wrong(folder, ("batching", "pad_values", value.name), f"input {value.name!r} is {kind.name}: {error}") from error


class _Dims:
    """The padded dims, and the names of input axes that aren't padded: requests that share a run are alike in those."""

    def __init__(self, padded: Mapping[str, Sequence[PadAxis]], inputs: Iterable[Value]) -> None:
        axes = [axis for each in padded.values() for axis in each]
        self.padded = {axis.dim for axis in axes}
        self.by_index: dict[int, set[str]] = {}
        for index, dim in axes:
            self.by_index.setdefault(index, set()).add(dim)
        self.alike = {name for value in inputs for name in value.axes if name} - self.padded
        self.example = next(f"axis {axes[0].position} of input {name!r} ({axes[0].dim})" for name, axes in padded.items() if axes)

    def of(self, value: Value, index: int) -> str | None:
        """The padded dim that axis `index` of an output must be, None where that can't be told."""
        dim = _dim(value, index)
        if dim in self.padded:
            return dim
        candidates = self.by_index.get(index, self.padded)
        return next(iter(candidates)) if len(candidates) == 1 else None


def _outputs(folder: Path, config: ModelConfig, outputs: Sequence[Value], dims: _Dims) -> Iterator[tuple[str, tuple[PadAxis, ...]]]:
    for value in outputs:
        said = config.outputs.get(value.name)
        if said is not None and "pad_axes" in said.model_fields_set:
            axes = [_said_axis(folder, value, index, dims) for index in said.pad_axes]
        else:
            axes = list(_found_axes(folder, value, dims))
        if axes:
            yield value.name, tuple(axes)


def _said_axis(folder: Path, value: Value, index: int, dims: _Dims) -> PadAxis:
    key = ("outputs", value.name, "pad_axes")
    if value.shape is not None and (index >= len(value.shape) or value.shape[index] != -1):
        raise said_wrong(
            folder, key, f"axis {index} of output {value.name!r}, which is {list(value.shape)}; only one that varies can be padded"
        )
    dim = dims.of(value, index)
    if dim is None:
        wanted = ", ".join(sorted(dims.padded))
        raise said_wrong(folder, key, f"axis {index} of output {value.name!r} could be any of {wanted}; name it in the model's file")
    return PadAxis(index, dim)


def _found_axes(folder: Path, value: Value, dims: _Dims) -> Iterator[PadAxis]:
    if value.shape is None:
        raise said_wrong(folder, ("batching", "pad_axes"), f"{_untold(value)}: the file doesn't say its shape. {_advice(value, 1)}")
    for index, size in enumerate(value.shape):
        name = value.axes[index] if index < len(value.axes) else ""
        if index == 0 or size != -1 or name in dims.alike:
            continue
        if name not in dims.padded:
            what = f"axis {index} varies and {f'is named {name!r}' if name else 'has no name'}, so it can't be tied to {dims.example}"
            raise said_wrong(folder, ("batching", "pad_axes"), f"{_untold(value)}: {what}. {_advice(value, index)}")
        yield PadAxis(index, name)


def _untold(value: Value) -> str:
    return f"it isn't clear how to cut padding from output {value.name!r}"


def _advice(value: Value, index: int) -> str:
    return f"Say `outputs: {{{value.name}: {{pad_axes: [{index}]}}}}` where it's as long as the input, or `[]` where it isn't"
