"""INT8: which schemes suit a graph and a target, and the graph that each makes, by onnxruntime's quantizers.

One file can't serve every target. A CPU computes fastest with unsigned activations, or with scales taken as it runs where values differ
much from row to row (transformers); TensorRT and CUDA take symmetric, static scales only, which a CPU computes slower than FP32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporters.disk.onnx_files import LEAST_BESIDE, data_of, is_split, outline, save
from exporters.plan import ExportError, Target
from exporters.precision.calibration import CalibrationSet
from exporters.precision.cast import named
from exporters.precision.ranges import Range

if TYPE_CHECKING:
    import onnx

Calibrator = Literal["minmax", "percentile", "entropy"]
PERCENTILE = 99.99
MATMULS = ("MatMul", "Gemm")
COMPUTES = (
    "Add",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "Softmax",
)
"""Operators that a node can be kept from INT8 for; the others only hand on what they get."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to INT8. `calibrator` None: scales are taken from each batch as it runs. `operators` empty: all that can be quantised.

    `symmetric`: zero is 0 in activations too, and biases stay FP32, as TensorRT has it.
    """

    calibrator: Calibrator | None
    symmetric: bool = False
    operators: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The scheme in words, for the manifest."""
        if self.calibrator is None:
            return "dynamic S8, per channel"
        activations = "S8 symmetric" if self.symmetric else "U8"
        where = f", {' and '.join(self.operators)} only" if self.operators else ""
        return f"static QDQ, {activations} activations, S8 weights per channel, {self.calibrator}{where}"


def schemes(target: Target, operators: Collection[str], level: int) -> tuple[Scheme, ...]:
    """The schemes worth trying, by the graph's operators, the one that is likeliest to be best first. Level 4 tries more."""
    convolves = "Conv" in operators
    calibrators: tuple[Calibrator, ...] = ("minmax", "percentile", *(("entropy",) if level >= 4 else ()))
    if target == "cpu" and not convolves:
        static = (Scheme("minmax", operators=MATMULS),) if level >= 4 else ()
        return (Scheme(None), *static)
    if target == "cpu":
        return tuple(Scheme(calibrator) for calibrator in calibrators)
    if convolves:
        return tuple(Scheme(calibrator, symmetric=True) for calibrator in calibrators)
    return (Scheme("minmax", symmetric=True, operators=MATMULS),)


def prepare(source: Path, target: Path) -> None:
    """Write `source` with its shapes inferred and every node named, as quantisers need it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet("be prepared for quantisation"):
        # Symbolic inference gives up on whole transformers; the plain one does what quantisers need.
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True, **(_beside(target) if is_split(source) else {}))
        onnx.save(named(outline(target)), str(target))


def _beside(target: Path) -> dict[str, Any]:
    return {
        "save_as_external_data": True,
        "all_tensors_to_one_file": True,
        "external_data_location": data_of(target).name,
        "external_data_size_threshold": LEAST_BESIDE,
    }


def minmax(ranges: Mapping[str, Range]) -> Any:
    """Static scales from the least and greatest values that were seen, as onnxruntime's quantiser takes them."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    ends = {name: (np.array(found.least, np.float32), np.array(found.greatest, np.float32)) for name, found in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, ends)


def histogram(prepared: Path, calibrator: Calibrator, rows: CalibrationSet, operators: tuple[str, ...]) -> Any:
    """Static scales that leave out the rarest values (percentile) or lose least of the distribution (entropy).

    The calibrator keeps what one call hands it in memory, so it's handed one batch at a time, all of one shape.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    method = CalibrationMethod.Percentile if calibrator == "percentile" else CalibrationMethod.Entropy
    options = {"percentile": PERCENTILE} if calibrator == "percentile" else {}
    with _quiet(f"be calibrated by {calibrator}"), tempfile.TemporaryDirectory(prefix="tidegate-calibrate-") as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        made = create_calibrator(prepared, operators or None, augmented, method, is_split(prepared), extra_options=options)
        taken = {value.name for value in made.infer_session.get_inputs()}
        for batch in rows.largest_group().batches:
            made.collect_data(_Reader({name: array for name, array in batch.items() if name in taken}))
        return made.compute_data()


def quantize(prepared: Path, target: Path, scheme: Scheme, scales: Any, kept: tuple[str, ...]) -> None:
    """Write the prepared graph in INT8, the nodes named in `kept` in FP32. `scales` are the static scheme's. Raises ExportError."""
    with _quiet("be quantised"):
        if scheme.calibrator is None:
            _quantize_dynamic(prepared, target, kept)
        else:
            _quantize_static(prepared, target, scheme, scales, kept)


def quantized_operators(scheme: Scheme) -> tuple[str, ...]:
    """The operators that the scheme quantises and that a node can be kept from."""
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    known = {*IntegerOpsRegistry, "Gemm"} if scheme.calibrator is None else {*(scheme.operators or _static_operators())}
    return tuple(operator for operator in COMPUTES if operator in known)


def _static_operators() -> tuple[str, ...]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return tuple(dict.fromkeys((*QLinearOpsRegistry, *QDQRegistry)))


class _Reader:
    """One batch, handed out once."""

    def __init__(self, batch: dict[str, NDArray[Any]]) -> None:
        self._batch: dict[str, NDArray[Any]] | None = batch

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch, self._batch = self._batch, None
        return batch


def _quantize_dynamic(prepared: Path, target: Path, kept: tuple[str, ...]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(prepared),
        str(target),
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=list(kept),
        use_external_data_format=is_split(prepared),
    )


def _quantize_static(prepared: Path, target: Path, scheme: Scheme, scales: Any, kept: tuple[str, ...]) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if scheme.symmetric else {}
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(prepared),
        True,  # per channel
        False,  # no reduced range: it costs accuracy and gains nothing here
        QuantType.QInt8,
        QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
        scales,
        [],
        list(kept),
        list(scheme.operators or _static_operators()),
        {**symmetric, "MatMulConstBOnly": True},
    )
    quantizer.quantize_model()
    _free_outputs(quantizer.model.model.graph)
    quantizer.model.clean_initializers()
    quantizer.model.topological_sort()
    save(quantizer.model.model, target, prepared)


def _free_outputs(graph: onnx.GraphProto) -> None:
    """Take the graph's outputs out of 8 bits: they cut what is above the largest value that was seen, and the best of two classes that
    are cut is the first. What computes them stays in INT8, and gives floats.
    """
    wanted = {value.name for value in graph.output}
    rounders = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    ends = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in wanted and node.input[0] in rounders]
    for end in ends:
        name, exact = end.output[0], rounders[end.input[0]].input[0]
        if exact not in {output for node in graph.node for output in node.output}:
            continue  # an input handed through: there's no node that could give it under the output's name
        rounded = f"{name}_rounded"
        for node in graph.node:  # what reads an output, or the value before it was rounded, reads the same as before
            _rename(node.input, name, rounded)
            _rename(node.output, name, rounded)
            _rename(node.input, exact, name)
            _rename(node.output, exact, name)
        if not any(rounded in node.input for node in graph.node):
            graph.node.remove(end)
            _drop_unread(graph, end.input[0])


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    names[:] = [new if name == old else name for name in names]


def _drop_unread(graph: onnx.GraphProto, name: str) -> None:
    if not any(name in node.input for node in graph.node):
        graph.node.remove(next(node for node in graph.node if name in node.output))


@contextlib.contextmanager
def _quiet(doing: str) -> Iterator[None]:
    """The quantisers advise on the root logger and print; a graph that they weren't made for gets any exception: an ExportError here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:
        raise ExportError(f"the graph can't {doing} ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error
    finally:
        logging.disable(before)
