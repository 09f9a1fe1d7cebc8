"""ONNX files on disk, and the weights that lie beside them: protobuf ends at 2 GiB, so the weights of larger models are in FILE.data.

Where they lie is settled once, after the trace; what is made from a file has its weights where that has them. There is one such file
for a model, in its own folder, under its own name: whoever moves the model moves both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MOST_INLINE = (2 << 30) - (64 << 20)
"""Bytes of weights that fit one file with any graph around them."""
LEAST_BESIDE = 1024
"""Bytes of a tensor from which on it lies beside: shapes and scales stay in the file, where inference of shapes sees them."""


def data_of(path: Path) -> Path:
    """Where the weights of the file at `path` lie, if they don't lie in it."""
    return path.with_name(f"{path.name}.data")


def is_split(path: Path) -> bool:
    """Whether the weights lie beside."""
    return data_of(path).is_file()


def size_of(path: Path) -> int:
    """Bytes of a model's file, with its weights."""
    return sum(part.stat().st_size for part in (path, data_of(path)) if part.is_file())


def load(path: Path) -> onnx.ModelProto:
    """The model with its weights, wherever they lie."""
    import onnx

    return onnx.load(str(path))


def outline(path: Path) -> onnx.ModelProto:
    """The model without the weights that lie beside it."""
    import onnx

    return onnx.load(str(path), load_external_data=False)


def save(model: onnx.ModelProto, target: Path, like: Path) -> None:
    """Write the model, its weights beside it where those of `like` are. The model isn't whole afterwards."""
    _write(model, target, is_split(like))


def settle(path: Path, base: Path, most: int) -> None:
    """Have all weights of a file in it or, where they take more than `most` bytes or some lay outside before, in FILE.data.

    `base` is the folder that the file's own places of weights count from. Raises ValueError where they lead out of it, OSError.
    """
    import onnx

    model = outline(path)
    outside = {_location(tensor) for tensor in _weights(model) if _location(tensor)}
    if outside == {data_of(path).name} and base == path.parent:
        return
    if not outside and sum(tensor.ByteSize() for tensor in _weights(model)) <= most:
        return
    onnx.external_data_helper.load_external_data_for_model(model, str(base))
    if base == path.parent:
        for name in outside:
            (base / name).unlink()
    _write(model, path, split=True)


def place(source: Path, target: Path, move: bool = False) -> None:
    """Copy a file under another name, and the weights that lie beside it; `move`: those are moved, for there may be many."""
    if not is_split(source):
        shutil.copyfile(source, target)
        return
    import onnx

    model = outline(source)
    for tensor in _weights(model):
        for pair in tensor.external_data:
            if pair.key == "location":
                pair.value = data_of(target).name
    onnx.save(model, str(target))
    (shutil.move if move else shutil.copyfile)(data_of(source), data_of(target))


def _write(model: onnx.ModelProto, target: Path, split: bool) -> None:
    import onnx

    if not split:
        onnx.save(model, str(target))
        return
    data_of(target).unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, str(target), save_as_external_data=True, location=data_of(target).name, size_threshold=LEAST_BESIDE)


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of the file, those in attributes and nested graphs included."""
    return _of_graph(model.graph)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)


def _location(tensor: onnx.TensorProto) -> str:
    """Where a tensor's values lie, "" for in the file."""
    return next((pair.value for pair in tensor.external_data if pair.key == "location"), "")
