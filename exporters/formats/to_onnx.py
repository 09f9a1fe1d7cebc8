"""The ONNX file's own proof: the checker, what the graph holds, and that it is portable and says what PyTorch showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.plan import ExportError
from server.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

PORTABLE_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


@dataclass(frozen=True, slots=True)
class Graph:
    """What an ONNX file holds: nodes (those of nested graphs included), operators by count, and shapes with -1 where they vary."""

    nodes: int
    operators: Mapping[str, int]
    opset: int
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


def check(path: Path, domains: Collection[str] = ()) -> Graph:
    """Run the ONNX checker over the file and read its graph. Raises ExportError where it's invalid, or not portable but for `domains`."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(str(path), load_external_data=False)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ExportError(f"the ONNX file isn't valid: {' '.join(str(error).split())[:500]}") from error
    graph = _read(model)
    foreign = sorted({node.domain for node in _nodes(model.graph)} - PORTABLE_DOMAINS - set(domains))
    if foreign:
        raise ExportError(f"the ONNX file isn't portable: it has operators of {', '.join(foreign)}, which other runtimes don't know")
    return graph


def kept_inputs(graph: Graph, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs that the graph still has: one that reaches no output isn't in the file."""
    return tuple(spec for spec in inputs if spec.name in graph.inputs)


def check_shapes(graph: Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raises ExportError where an axis that varies in PyTorch is a constant in the file."""
    for specs, shapes in ((inputs, graph.inputs), (outputs, graph.outputs)):
        for spec in specs:
            if spec.name not in shapes:
                raise ExportError(f"the ONNX file has no {spec.name!r}; it has {', '.join((*graph.inputs, *graph.outputs))}")
            for axis, (wanted, found) in enumerate(zip(spec.shape, shapes[spec.name], strict=False)):
                if wanted == -1 and found != -1:
                    raise ExportError(
                        f"the trace took axis {axis} of {spec.name!r} for the constant {found}: "
                        "somewhere forward turns a shape into a Python number"
                    )


def _read(model: onnx.ModelProto) -> Graph:
    operators = Counter(node.op_type for node in _nodes(model.graph))
    initializers = {tensor.name for tensor in model.graph.initializer}
    return Graph(
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        inputs={value.name: _shape(value) for value in model.graph.input if value.name not in initializers},
        outputs={value.name: _shape(value) for value in model.graph.output},
    )


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
