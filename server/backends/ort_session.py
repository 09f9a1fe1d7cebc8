"""How a model file becomes an onnxruntime session that runs where it was asked to, and what the session takes and gives.

onnxruntime falls back to the CPU without an error when a GPU can't be used, and lists providers that can't run. So a GPU's
session is first opened with fallback forbidden, and the provider that a session names is compared with the one asked for.
"""

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
from server.errors import ModelDefect
from server.tensors import TensorSpec, dtype_of_onnx

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    *(RuntimeError, ValueError, TypeError, IndexError, MemoryError, OverflowError),
)
"""All that a call into onnxruntime raises: its own classes share no base, and its bindings turn C++ exceptions into Python's."""
INPUT_ERROR: type[Exception] = native.InvalidArgument
MAX_TEXT = 500
_DEVICE = re.compile(r"cpu|cuda:([0-9]{1,3})")
_NOISE = re.compile(r"^Error in execution: |\[ONNXRuntimeError\] : [0-9]+ : [A-Z_]+ : |Please fix either the inputs/outputs or the model\.")
_FALLBACK_FORBIDDEN = "fallback to CPU EP has been explicitly disabled"

ort.set_default_logger_severity(3)


def open_session(spec: VariantSpec) -> Any:
    """The session of spec.path on spec.device. Raises ModelDefect where the file can't be read or the device can't run it."""
    device = _DEVICE.fullmatch(spec.device)
    if device is None:
        raise ModelDefect(f"{spec.path}: unknown device {spec.device!r}; expected cpu or cuda:N")
    if not spec.path.is_file():
        raise ModelDefect(f"{spec.path}: no such file")
    if device[1] is None:
        return _create(spec, _options(spec), [CPU])
    return _open_cuda(spec, int(device[1]))


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


def _options(spec: VariantSpec) -> Any:
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


def _create(spec: VariantSpec, options: Any, providers: Sequence[Any]) -> Any:
    try:
        # By path: half the memory, and the shortest hold of the GIL. Without fallback: a failing provider raises.
        return ort.InferenceSession(str(spec.path), options, providers=providers, enable_fallback=0)
    except ORT_ERRORS as error:
        raise ModelDefect(f"{spec.path}: onnxruntime can't open it: {text_of(error)}") from error


def _open_cuda(spec: VariantSpec, device: int) -> Any:
    if CUDA not in ort.get_available_providers():
        raise ModelDefect(
            f"{spec.path}: device {spec.device} needs {CUDA}, which the installed onnxruntime {ort.__version__} doesn't have; "
            "in an environment without onnxruntime: pip install 'tidegate[gpu]'"
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    providers = [(CUDA, {"device_id": str(device)})]
    strict = _options(spec)
    strict.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = _create(spec, strict, providers)
    except ModelDefect as error:
        if _FALLBACK_FORBIDDEN not in str(error):
            raise
        session = _open_mixed(spec, providers)
    running = session.get_providers()[0]
    if running != CUDA:
        raise ModelDefect(
            f"{spec.path}: asked for {CUDA} on {spec.device}, but onnxruntime would run it on {running}; "
            "`tidegate doctor` says what the GPU lacks"
        )
    return session


def _open_mixed(spec: VariantSpec, providers: Sequence[Any]) -> Any:
    """The session of a graph of which onnxruntime places a part on the CPU by its own rules (computations of shapes).

    Raises ModelDefect where no node is placed on the provider asked for.
    """
    options = _options(spec)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = _create(spec, options, providers)
    if CUDA not in placements(session):
        raise ModelDefect(
            f"{spec.path}: asked for {CUDA} on {spec.device}, but onnxruntime places every node elsewhere; see `tidegate doctor`"
        )
    return session


def placements(session: Any) -> frozenset[str]:
    """The providers that the graph's nodes were placed on, for a session opened with that recorded."""
    return frozenset(part.ep_name for part in session.get_provider_graph_assignment_info() if part.get_nodes())


def _spec_of(spec: VariantSpec, what: str, node: Any) -> TensorSpec:
    datatype = dtype_of_onnx(node.type)
    if datatype is None:
        raise ModelDefect(
            f"{spec.path}: {what} {node.name!r} is {node.type}, which the protocol has no datatype for; export it as a tensor"
        )
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else -1 for axis in node.shape)
    return TensorSpec(node.name, datatype.name, shape, batch_axis=None)
