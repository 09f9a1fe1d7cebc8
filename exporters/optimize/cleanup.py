"""Levels 1 and 2: onnxslim folds constants, drops dead nodes and merges equal ones, and equal weights become one; portable ONNX still.

What else makes a graph fast (fusions, a CPU's own layouts) onnxruntime does when it loads the file at level 2: shipped in the file,
it would tie it to one runtime and one kind of CPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.disk.onnx_files import save
from exporters.plan import ExportError

if TYPE_CHECKING:
    import onnx


def clean(source: Path, target: Path) -> None:
    """Write a cleaned copy of `source` to `target`. Raises ExportError that names the level which does without."""
    import onnxslim

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = onnxslim.slim(str(source))
        if model is None:
            raise ValueError("it gave no model back")
        share_constants(model)
        save(model, target, source)
    except Exception as error:  # a rewriter that meets a graph it wasn't made for raises anything
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"onnxslim can't clean the graph ({type(error).__name__}: {reason}); --optimization-level 0 does without"
        ) from error


def share_constants(model: onnx.ModelProto) -> int:
    """Leave one of those constants of the outer graph that are equal to the bit, and have all nodes use it. Returns the bytes saved."""
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    saved = 0
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    for tensor in list(model.graph.initializer):
        content = _content(tensor)
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
        first = kept.setdefault(key, tensor.name)
        if first != tensor.name and tensor.name not in given:
            renamed[tensor.name] = first
            saved += len(content)
            model.graph.initializer.remove(tensor)
    _rename(model.graph, renamed)
    return saved


def _content(tensor: onnx.TensorProto) -> bytes:
    """A constant's values, however the file has them."""
    import onnx

    return tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Names of constants where nodes use them; in nested graphs too, but for those that have a tensor of that name themselves."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = attribute.g
                own = (
                    {tensor.name for tensor in inner.initializer}
                    | {given.name for given in inner.input}
                    | {name for part in inner.node for name in part.output}
                )
                _rename(inner, {before: after for before, after in renamed.items() if before not in own})
