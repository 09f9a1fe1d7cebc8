"""The pytorch backend: a traced module (`.pt2` of torch.export, or TorchScript) on the CPU or an NVIDIA GPU, for models that don't convert.

A `.pt2` file says its inputs and outputs; a TorchScript file says its inputs' names alone, so model.yaml must say the rest. Both hold the
graph, and nothing of the user's Python is imported; but torch unpickles parts of a `.pt2`, so that one is trusted like code. Precision fp16
is torch's autocast; answers come back in the declared type. torch is imported when the first model is opened, in a process lane's child
unless model.yaml asks for a thread.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from server.backends.base import VariantSpec
from server.backends.declared import settled
from server.errors import BackendFailure, DeviceLost, DeviceMemory, InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "fp16")
SUFFIXES = (".pt2", ".pt")
MAX_TEXT = 500
_DATATYPES: Mapping[str, str] = {
    "torch.bool": "BOOL",
    "torch.uint8": "UINT8",
    "torch.int8": "INT8",
    "torch.int16": "INT16",
    "torch.int32": "INT32",
    "torch.int64": "INT64",
    "torch.float16": "FP16",
    "torch.float32": "FP32",
    "torch.float64": "FP64",
}
_SERVED = frozenset(_DATATYPES.values())


@dataclass(frozen=True, slots=True)
class Program:
    """A file's graph: `call` takes tensors in the order of `inputs` and gives them in the order of `outputs`."""

    call: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PyTorchBackend:
    """One traced module on one device. See server.backends.base.Backend."""

    version: ClassVar[str] = "pytorch"

    def __init__(self, spec: VariantSpec, program: Program) -> None:
        self.inputs, self.outputs = settled(spec, program.inputs, program.outputs)
        self._label = f"model {spec.model!r} version {spec.version} ({spec.precision})"
        self._call: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]] | None = program.call
        self._device = spec.device
        self._half = spec.precision == "fp16"
        self._threads = spec.threads

    @classmethod
    def open(cls, spec: VariantSpec) -> PyTorchBackend:
        """Open spec.path on spec.device. Raises ModelDefect: no torch, no such device, a file that isn't a traced module."""
        if spec.path.suffix not in SUFFIXES or not spec.path.is_file():
            raise ModelDefect(f"{spec.path}: no such file; expected one of torch.export (.pt2) or TorchScript (.pt)")
        if spec.precision not in PRECISIONS:
            why = "; a T4 has no BF16: ask for fp16" if spec.precision == "bf16" else ""
            raise ModelDefect(f"{spec.path}: precision {spec.precision!r}: expected {' or '.join(PRECISIONS)}, which is autocast{why}")
        _check_torch(spec)
        program = _exported(spec) if spec.path.suffix == ".pt2" else _scripted(spec)
        return cls(spec, program)

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run."""
        import torch

        call = self._call
        if call is None:
            raise BackendFailure(f"{self._label}: it is closed")
        self._check(inputs)
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the process, which is why its lanes are processes
        kind = self._device.partition(":")[0]
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.float16) if self._half else nullcontext():
            try:
                given = [_tensor(inputs[spec.name], spec).to(self._device) for spec in self.inputs]
                found = call(given)
                answers = self._arrays(found)
            except AssertionError as error:  # a guard of torch.export: the shapes are none that it was traced for
                raise InvalidRequest(f"{self._label}, {rows} rows: {_text(error)}") from error
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise self._blamed(error, rows) from error
        return self._given(answers, out or {})

    def close(self) -> None:
        """Drop the module; its memory goes with it."""
        self._call = None

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        names = [spec.name for spec in self.inputs]
        if inputs.keys() != set(names):
            got = ", ".join(map(repr, inputs)) or "none"
            raise InvalidRequest(f"{self._label}: expected the inputs {', '.join(map(repr, names))}; got {got}")
        for spec in self.inputs:
            array = inputs[spec.name]
            if array.dtype.newbyteorder("=") != spec.dtype.numpy:
                raise InvalidRequest(f"{self._label}: input {spec.name!r} is {array.dtype}; expected {spec.datatype}")
            if len(array.shape) != len(spec.shape):
                raise InvalidRequest(f"{self._label}: input {spec.name!r} has {array.ndim} axes; expected {len(spec.shape)}")

    def _arrays(self, found: Sequence[torch.Tensor]) -> list[Tensor]:
        """The caller's own arrays, in the declared types: autocast answers in FP16, and a module may answer with its input's memory."""
        if len(found) != len(self.outputs):
            raise BackendFailure(f"{self._label}: it gives {len(found)} tensors, and {len(self.outputs)} outputs are declared")
        arrays = [tensor.detach().cpu().numpy() for tensor in found]
        for array, spec in zip(arrays, self.outputs, strict=True):
            floats = array.dtype.kind == "f" and spec.dtype.numpy.kind == "f"
            if array.dtype != spec.dtype.numpy and not (self._half and floats):
                raise BackendFailure(f"{self._label}: output {spec.name!r} is {array.dtype}, and {spec.datatype} is declared")
        return [np.array(array, spec.dtype.numpy) for array, spec in zip(arrays, self.outputs, strict=True)]

    def _given(self, answers: Sequence[Tensor], out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(zip((spec.name for spec in self.outputs), answers, strict=True))
        for name, array in out.items():
            if name not in found or found[name].shape != array.shape or found[name].dtype != array.dtype:
                raise BackendFailure(f"{self._label}: output {name!r} can't be written to {array.dtype} {list(array.shape)}")
            np.copyto(array, found[name])
        return found | dict(out)

    def _blamed(self, error: Exception, rows: int) -> BackendFailure:
        """CUDA's errors come as RuntimeError; memory and a lost context are told apart by torch's own classes and words."""
        import torch

        where = f"{self._label}, {rows} rows: {_text(error)}"
        if isinstance(error, torch.OutOfMemoryError):
            return DeviceMemory(where)
        return DeviceLost(where) if "CUDA error" in str(error) else BackendFailure(where)


def _check_torch(spec: VariantSpec) -> None:
    """Raises ModelDefect where torch or the device isn't there."""
    try:
        import torch
    except ImportError as error:
        advice = "pip install 'tidegate[pytorch]'"
        raise ModelDefect(f"{spec.path}: the pytorch backend needs torch, which isn't installed: {error}; {advice}") from error
    kind, _, number = spec.device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelDefect(f"{spec.path}: device {spec.device}: the installed torch {torch.__version__} finds no GPU; see `tidegate doctor`")
    if kind == "cuda" and int(number) >= torch.cuda.device_count():
        raise ModelDefect(f"{spec.path}: device {spec.device} isn't there: this machine has {torch.cuda.device_count()}")


def _exported(spec: VariantSpec) -> Program:
    """A file of torch.export.save."""
    import torch
    from torch.export.passes import move_to_device_pass
    from torch.utils import _pytree as pytree

    if not zipfile.is_zipfile(spec.path):  # torch would log pages
        raise ModelDefect(f"{spec.path}: not a .pt2 file, or cut short; torch.export.save writes one")
    try:
        program = torch.export.load(spec.path)
        if spec.device != "cpu":
            program = move_to_device_pass(program, spec.device)
        module = program.module()
    except (RuntimeError, ValueError, OSError, KeyError, AttributeError) as error:
        raise ModelDefect(f"{spec.path}: torch {torch.__version__} can't open it as .pt2: {_text(error)}") from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    most = {str(symbol): bounds.upper for symbol, bounds in program.range_constraints.items()}
    given, found = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    names = _output_names(program.call_spec.out_spec, len(found))

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        positional, named = pytree.tree_unflatten(list(tensors), program.call_spec.in_spec)
        return pytree.tree_leaves(module(*positional, **named))

    return Program(
        call,
        tuple(_spec(spec, str(name), values.get(str(name)), most) for name in given),
        tuple(_spec(spec, name, values.get(str(node)), most) for name, node in zip(names, found, strict=True)),
    )


def _output_names(tree: Any, count: int) -> list[str]:
    """A dict's keys, as the exporter names outputs, else output_0, output_1, …"""
    keys = list(tree.context) if tree.type is dict else []
    return [str(key) for key in keys] if len(keys) == count else [f"output_{index}" for index in range(count)]


def _spec(spec: VariantSpec, name: str, value: Any, most: Mapping[str, Any]) -> TensorSpec:
    """What a graph's value says of a tensor: an axis that isn't a number varies."""
    kind = _DATATYPES.get(str(getattr(value, "dtype", "")))
    if kind is None:
        what = getattr(value, "dtype", type(value).__name__)
        raise ModelDefect(f"{spec.path}: {name!r} is {what}, which isn't served; export a module that takes and gives tensors")
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in value.shape)
    bounds = tuple(-1 if index == 0 or isinstance(axis, int) else _bound(most.get(str(axis))) for index, axis in enumerate(value.shape))
    return TensorSpec(name, kind, shape, None, bounds if any(bound > 0 for bound in bounds) else None)


def _bound(upper: Any) -> int:
    """The greatest length of an axis, -1 where there's none; torch's infinity is a number of its own kind."""
    try:
        bound = float(upper)
    except (TypeError, ValueError):
        return -1
    return int(bound) if math.isfinite(bound) and bound < 2**31 else -1


def _scripted(spec: VariantSpec) -> Program:
    """A TorchScript file, whose tensors model.yaml declares."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would have all of us use torch.export
            module: Any = torch.jit.load(str(spec.path), map_location=spec.device).eval()  # type: ignore[no-untyped-call]
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise ModelDefect(f"{spec.path}: torch {torch.__version__} can't open it as TorchScript: {_text(error)}") from error
    declared = {tensor.name: tensor for tensor in spec.inputs}
    missing = [name for name in names if name not in declared]
    if missing or not spec.outputs:
        what = f"inputs.{missing[0]}" if missing else "outputs"
        raise ModelDefect(
            f"{spec.path}: a TorchScript file doesn't say the types and shapes of its tensors: model.yaml must, and {what} is missing, "
            f"as in `inputs: {{{(missing or names or ['x'])[0]}: {{dtype: FP32, shape: [-1, 8]}}}}`"
        )

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return _flat(module(*tensors), [tensor.name for tensor in spec.outputs])

    inputs = tuple(declared[name] for name in names)
    for tensor in (*inputs, *spec.outputs):
        if tensor.datatype not in _SERVED:
            raise ModelDefect(f"{spec.path}: {tensor.name!r} is declared {tensor.datatype}, which torch isn't given; export it otherwise")
    return Program(call, inputs, spec.outputs)


def _flat(answer: Any, names: Sequence[str]) -> Sequence[torch.Tensor]:
    """One tensor, a tuple in the declared order, or a dict by the declared names."""
    if isinstance(answer, dict):
        return [answer[name] for name in names if name in answer]
    return list(answer) if isinstance(answer, tuple | list) else [answer]


def _tensor(array: Tensor, spec: TensorSpec) -> torch.Tensor:
    """Over the array's own memory where torch can have it: aligned, writable, in this machine's byte order."""
    import torch

    return torch.from_numpy(np.require(array, spec.dtype.numpy, ["C", "A", "W"]))


def _text(error: Exception) -> str:
    """torch's own words in one line: the last ones say what, those before where."""
    return " ".join(str(error).split())[-MAX_TEXT:]
