"""Where a graph stops being the model: the first node whose answer is far from the FP32 graph's, and the node that adds most.

Graphs are compared by the tensors that have one name and shape in both, run without any optimization on one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.disk.onnx_files import outline
from exporters.plan import ExportError
from exporters.precision.ranges import given_names, unoptimised
from server.numerics import SCALE_FLOOR

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Layer:
    """A node and by how much its answer differs, as a share of its largest value."""

    name: str
    operator: str
    relative: float

    def __str__(self) -> str:
        return f"{self.name} ({self.operator}, by {self.relative:.2g} of its largest value)"


def layers(base: Path, other: Path, inputs: Mapping[str, NDArray[Any]], threads: int) -> list[Layer]:
    """The nodes of `base` whose answers `other` has too, in order, each with its difference. Raises ExportError where one doesn't run."""
    from server.backends.ort.session import ORT_ERRORS, text_of

    models = [outline(path) for path in (base, other)]
    shared = set(given_names(models[0])) & set(given_names(models[1]))
    nodes = [(node, name) for node in models[0].graph.node for name in node.output if name in shared]
    try:
        names = [name for _, name in nodes]
        wanted, found = (
            _answers(unoptimised(_giving(model, names), threads, path.parent), names, inputs)
            for model, path in zip(models, (base, other), strict=True)
        )
    except ORT_ERRORS as error:
        raise ExportError(f"the graphs can't be compared node by node: {text_of(error)}") from error
    pairs = ((node, wanted[name], found[name]) for node, name in nodes)
    return [
        Layer(node.name or node.output[0], node.op_type, _relative(one, two))
        for node, one, two in pairs
        if one.dtype.kind == "f" and one.shape == two.shape and one.size
    ]


def told(found: list[Layer], tolerance: float) -> str:
    """In a sentence: which node first differs by more than `tolerance`, and from which to the next it grows most; "" for none."""
    first = next((layer for layer in found if not layer.relative <= tolerance), None)
    if first is None:
        return ""
    steps = zip([Layer("", "", 0.0), *found[:-1]], found, strict=True)
    largest = max((after for before, after in steps if after.relative > before.relative), key=lambda layer: layer.relative, default=first)
    more = "" if largest == first else f", most at {largest}"
    return f"it first differs at {first}{more}"


def _answers(session: Any, names: list[str], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    taken = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {name: array for name, array in inputs.items() if name in taken}), strict=True))


def _giving(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with these tensors as its only outputs."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return made


def _relative(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    one, two = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(two)
    if not (np.isfinite(one) == np.isfinite(two)).all():
        return float("inf")
    gap = np.abs(np.where(finite, one - two, 0.0)).max()
    return float(gap / max(np.abs(np.where(finite, one, 0.0)).max(), SCALE_FLOOR))
