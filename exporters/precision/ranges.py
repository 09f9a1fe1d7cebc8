"""What a graph's tensors hold while it runs in FP32: the least and greatest value and the size of each, over all calibration rows.

The figures are taken inside the graph, by reductions added beside every tensor, so that no tensor has to leave it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.disk.onnx_files import outline
from exporters.plan import ExportError

if TYPE_CHECKING:
    import onnx

_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceL2", "Size")


@dataclass(frozen=True, slots=True)
class Range:
    """A tensor's values over all rows; `rms` is the root of their mean square."""

    least: float
    greatest: float
    rms: float

    @property
    def largest(self) -> float:
        """The largest absolute value, inf where one isn't finite."""
        ends = (abs(self.least), abs(self.greatest))
        return max(ends) if all(map(math.isfinite, ends)) else math.inf


def observe(file: Path, batches: Iterable[Mapping[str, NDArray[Any]]], threads: int) -> dict[str, Range]:
    """The range of every FP32 tensor that a node of the file gives, and of its FP32 inputs. Raises ExportError where a run fails."""
    from server.backends.ort.session import ORT_ERRORS, text_of

    model = outline(file)
    try:
        names = _float_names(model, threads, file.parent)
        session = unoptimised(_measuring(model, names), threads, file.parent)
        taken = {value.name for value in session.get_inputs()}
        wanted = [f"{name}:{reduction}" for name in names for reduction in _REDUCTIONS]
        runs = [session.run(wanted, {name: array for name, array in batch.items() if name in taken}) for batch in batches]
    except ORT_ERRORS as error:
        raise ExportError(f"the graph can't be run on the calibration rows: {text_of(error)}") from error
    figures = np.array(runs, np.float64).reshape(len(runs), len(names), len(_REDUCTIONS))
    return {name: _range(figures[:, index]) for index, name in enumerate(names)}


def _range(figures: NDArray[np.float64]) -> Range:
    """From [runs, reductions]; runs in which the tensor was empty count for nothing."""
    filled = figures[figures[:, 3] > 0]
    if not len(filled):
        return Range(0.0, 0.0, 0.0)
    least, greatest, length, size = filled.T
    return Range(float(least.min()), float(greatest.max()), math.sqrt(float((length**2).sum() / size.sum())))


def _float_names(model: onnx.ModelProto, threads: int, folder: Path) -> list[str]:
    """Names of the FP32 tensors of the outer graph. onnxruntime itself says which are: it infers the types of all of them."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(given_names(model)))
    session = unoptimised(probe, threads, folder)
    return [value.name for value in (*session.get_inputs(), *session.get_outputs()) if value.type == "tensor(float)"]


def given_names(model: onnx.ModelProto) -> Iterator[str]:
    """Names of what the outer graph's nodes give."""
    return (name for node in model.graph.node for name in node.output if name)


def _measuring(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with the reductions of its tensors as its only outputs."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    for name in names:
        for reduction in _REDUCTIONS:
            target = f"{name}:{reduction}"
            node = onnx.helper.make_node(reduction, [name], [target])
            if reduction != "Size":
                node.attribute.append(onnx.helper.make_attribute("keepdims", 0))
            made.graph.node.append(node)
            made.graph.output.append(onnx.ValueInfoProto(name=target))
    return made


def unoptimised(model: onnx.ModelProto, threads: int, folder: Path) -> Any:
    """A session that leaves the graph as it is, so that every tensor is there to be looked at. Weights that the model has outside lie in
    `folder`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
