"""FP16: every node computes in half precision but those that leave its range on the calibration rows. Inputs and outputs stay FP32.

onnxruntime's converter does the casting; which nodes it must leave alone is found here, by what the FP32 graph's tensors hold. A
stand-in for infinity (an attention mask's -3.4e38) is no value that must be kept: it may become FP16's largest, and the proof judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.disk.onnx_files import load, save
from exporters.plan import ExportError
from exporters.precision.ranges import Range

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""FP16's largest number."""
HEADROOM = 2.0
"""How much larger a tensor may get on other rows than those that were seen."""
STAND_IN = 1e30
"""From here on a number is a stand-in for infinity."""
SMALLEST = 5.96e-8
"""FP16's smallest number above 0, rounded up, as the converter has it."""


def cast(source: Path, target: Path, kept: tuple[str, ...]) -> None:
    """Write `source` to `target` in FP16, the nodes named in `kept` in FP32. Raises ExportError where it can't be converted."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    inferred = source.with_suffix(".inferred")  # beside it, where weights that lie outside are found
    try:
        onnx.shape_inference.infer_shapes_path(str(source), str(inferred))  # by path, which is the way for more than 2 GiB
        model = named(load(inferred))
        made = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept), disable_shape_infer=True))
        _skip_half(made.model.graph)
        made.prune_graph(allow_remove_graph_inputs=False)
        made.topological_sort()  # the converter puts its casts last
        save(made.model, target, source)
    except Exception as error:  # a converter that meets a graph it wasn't made for raises anything
        raise ExportError(f"the graph can't be cast to FP16 ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error
    finally:
        inferred.unlink(missing_ok=True)


def out_of_range(source: Path, ranges: Mapping[str, Range], saturate: bool) -> tuple[str, ...]:
    """Names of the nodes that FP16 can't compute, in the graph's order. `saturate`: stand-ins for infinity are let through."""
    import onnx

    model = named(load(source))
    weights = ((tensor.name, onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer)
    lost = {name for name, values in weights if values.dtype == np.float32 and _is_lost(values, saturate)}
    lost |= {name for name, found in ranges.items() if _leaves(found, saturate)}
    return tuple(node.name for node in model.graph.node if lost & {*node.input, *node.output})


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name of its own for each node of the outer graph: they're left out by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
    return model


def _skip_half(graph: onnx.GraphProto) -> None:
    """Between two nodes that stay FP32 the converter goes through FP16, which is just what must not be: join them."""
    halved = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, 10)}
    for node in graph.node:
        if _casts_to(node, 1) and node.input[0] in halved:
            node.input[0] = halved[node.input[0]]


def _casts_to(node: onnx.NodeProto, datatype: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == datatype


def _leaves(found: Range, saturate: bool) -> bool:
    ends = [abs(end) for end in (found.least, found.greatest)]
    return any(end * HEADROOM > LARGEST or end != end for end in _counted(ends, saturate))


def _is_lost(values: np.ndarray, saturate: bool) -> bool:
    """Whether a constant is too large for FP16, or a single number that would become another one near 0."""
    sizes = np.abs(values[np.isfinite(values)])
    if values.size == 1 and sizes.size and 0 < sizes.max() < SMALLEST:
        return True
    return any(size > LARGEST for size in _counted([float(size) for size in (sizes.max(initial=0.0),)], saturate))


def _counted(sizes: list[float], saturate: bool) -> Iterator[float]:
    return (size for size in sizes if not (saturate and size >= STAND_IN))
