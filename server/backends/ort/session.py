"""How a model file becomes an onnxruntime session, and what the session takes and gives; ort.gpu opens those that run on a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

if not hasattr(ort, "InferenceSession"):
    raise ImportError(
        "the installed onnxruntime is hollow: uninstalling onnxruntime or onnxruntime-gpu beside the other removes both's files"
    )

from onnxruntime.capi import onnxruntime_pybind11_state as native

from server.backends.base import VariantSpec
from server.backends.declared import settled
from server.backends.ort.providers import CPU
from server.errors import ModelDefect
from server.tensors import TensorSpec, dtype_of_onnx

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    *(RuntimeError, ValueError, TypeError, IndexError, MemoryError, OverflowError),
)
"""All that a call into onnxruntime raises: its own classes share no base, and its bindings turn C++ exceptions into Python's."""
INPUT_ERROR: type[Exception] = native.InvalidArgument
MAX_TEXT = 500
_DEVICE = re.compile(r"cpu|cuda:([0-9]{1,3})")
_NOISE = re.compile(r"^Error in execution: |\[ONNXRuntimeError\] : [0-9]+ : [A-Z_]+ : |Please fix either the inputs/outputs or the model\.")

ort.set_default_logger_severity(3)


def open_session(spec: VariantSpec) -> Any:
    """The session of spec.path on the CPU. Raises ModelDefect where the file can't be read."""
    return create(spec, session_options(spec), [CPU])


def device_of(spec: VariantSpec) -> int | None:
    """The number of the GPU that spec.path is to run on, None for the CPU. Raises ModelDefect for another device, or without a file."""
    device = _DEVICE.fullmatch(spec.device)
    if device is None:
        raise ModelDefect(f"{spec.path}: unknown device {spec.device!r}; expected cpu or cuda:N")
    if not spec.path.is_file():
        raise ModelDefect(f"{spec.path}: no such file")
    return None if device[1] is None else int(device[1])


def text_of(error: Exception) -> str:
    """onnxruntime's own words in one line, without its codes and advice, cut at MAX_TEXT characters."""
    return " ".join(_NOISE.sub("", str(error)).split())[:MAX_TEXT]


def specs_of(session: Any, spec: VariantSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs in the file's order, those that `spec` names replaced by what it says of them.

    Raises ModelDefect for a kind of value that the protocol has no datatype for, and where `spec` contradicts the file.
    """
    inputs = [_spec_of(spec, "input", node) for node in session.get_inputs()]
    outputs = [_spec_of(spec, "output", node) for node in session.get_outputs()]
    return settled(spec, inputs, outputs)


def session_options(spec: VariantSpec) -> Any:
    """What every session of ours is opened with."""
    options = ort.SessionOptions()
    # A failed run's error goes to whoever asked; a line on stderr for each bad request would let anyone fill the disk.
    options.log_severity_level = 4
    options.intra_op_num_threads = spec.threads
    options.graph_optimization_level = {
        0: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    }.get(spec.optimization_level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # Memory patterns are kept for every combination of input shapes ever seen, and gain nothing measurable.
    options.enable_mem_pattern = False
    # Spinning threads take the cores from the event loop and from other models: 3.4 times the CPU for the same paced work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def create(spec: VariantSpec, options: Any, providers: Sequence[Any]) -> Any:
    """A session on these providers, and no other. Raises ModelDefect with onnxruntime's reason."""
    try:
        # By path: half the memory, and the shortest hold of the GIL. Without fallback: a failing provider raises.
        return ort.InferenceSession(str(spec.path), options, providers=providers, enable_fallback=0)
    except ORT_ERRORS as error:
        raise ModelDefect(f"{spec.path}: onnxruntime can't open it: {text_of(error)}") from error


def _spec_of(spec: VariantSpec, what: str, node: Any) -> TensorSpec:
    datatype = dtype_of_onnx(node.type)
    if datatype is None:
        raise ModelDefect(
            f"{spec.path}: {what} {node.name!r} is {node.type}, which the protocol has no datatype for; export it as a tensor"
        )
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else -1 for axis in node.shape)
    return TensorSpec(node.name, datatype.name, shape, batch_axis=None)
