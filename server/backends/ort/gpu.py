"""The onnxruntime backend on an NVIDIA GPU: a session that is there or an error, and arrays that cross through pinned memory.

onnxruntime falls back to the CPU without an error when a GPU can't be used, and lists providers that can't run. So the GPU is asked first,
a session is opened with fallback forbidden, and the provider that it names is compared with the one asked for.

A run: copy the inputs into pinned memory, and on one stream, which the session computes on too, send them, run, and fetch the outputs;
then wait once. Unproven on a GPU: see docs/tensorrt.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any, NoReturn

import numpy as np
import onnxruntime as ort

from server.backends.base import VariantSpec
from server.backends.nvidia.buffers import Buffers
from server.backends.nvidia.cuda import Gpu, open_gpu
from server.backends.nvidia.library import load
from server.backends.ort.backend import ONNX_BF16, OnnxRuntimeBackend
from server.backends.ort.engine_cache import engine_cache
from server.backends.ort.providers import CUDA, FORBID_CPU, RECORD_PLACES, TENSORRT, UNSYNCHRONIZED, gpu_providers, wants_tensorrt
from server.backends.ort.session import ORT_ERRORS, create, session_options
from server.errors import BackendFailure, DeviceMemory, InvalidRequest, ModelDefect, TidegateError
from server.tensors import Tensor, TensorSpec, elements

_FALLBACK_FORBIDDEN = "fallback to CPU EP has been explicitly disabled"
_NO_MEMORY = ("out of memory", "Failed to allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
Place = tuple[str, int]
"""A device as onnxruntime's bindings name it."""


class OnnxRuntimeOnGpu(OnnxRuntimeBackend):
    """One session on one GPU. See server.backends.base.Backend."""

    def __init__(self, spec: VariantSpec, session: Any, gpu: Gpu, stream: int, place: Place) -> None:
        super().__init__(spec, session)
        self._gpu, self._stream, self._place = gpu, stream, place
        self._buffers = Buffers(gpu, {})
        self._texts = any(tensor.datatype == "BYTES" for tensor in (*self.inputs, *self.outputs))
        self._per_row: set[str] = set()  # outputs that were seen to have as many rows as the run: their place is known before it
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry(UNSYNCHRONIZED, "1")

    @classmethod
    def on(cls, spec: VariantSpec, device: int, gpu_of: Callable[[str], Gpu] = open_gpu) -> OnnxRuntimeOnGpu:
        """Open spec.path on GPU number `device`. Raises ModelDefect; nothing stays taken then."""
        _check_listed(spec)
        try:
            gpu = gpu_of(spec.device)
        except ModelDefect as error:
            raise ModelDefect(f"{spec.path}: {error}") from error
        stream = 0
        try:
            gpu.use()
            stream = gpu.stream()
            return cls(spec, _open(spec, device, gpu, stream), gpu, stream, ("cuda", device))
        except (BackendFailure, ModelDefect) as error:
            with suppress(BackendFailure):
                if stream:
                    gpu.close_stream(stream)
            raise error if isinstance(error, ModelDefect) else ModelDefect(f"{spec.path}: on {spec.device}: {error}") from error

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run. Raises DeviceLost where the GPU's context is gone."""
        if self._session is None:
            self._closed()
        self._gpu.use()
        if self._texts:  # text is computed with on the CPU, and onnxruntime copies what isn't
            return super().run(inputs, rows, out)
        self._check(inputs)
        try:
            found = self._run_on_device(inputs, rows)
        except ORT_ERRORS as error:
            self._refuse(error, rows)
        return {name: self._given(name, array, (out or {}).get(name)) for name, array in found.items()}

    def close(self) -> None:
        """Drop the session, and give memory and the stream back."""
        super().close()
        self._buffers.close()
        if self._stream:
            with suppress(BackendFailure):
                self._gpu.close_stream(self._stream)
            self._stream = 0

    def _run_on_device(self, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The outputs in pinned memory, once the stream is done. What onnxruntime itself made on the device lives until then."""
        binding = self._session.io_binding()
        for spec in self.inputs:
            array = inputs[spec.name]
            address = self._buffers.hold(spec.name, array.nbytes)
            self._buffers.send(spec, array, self._stream)
            binding.bind_input(spec.name, *self._place, _element(spec), array.shape, address)
        for spec in self.outputs:
            self._bind_output(binding, spec, rows)
        self._session.run_with_iobinding(binding, self._run_options)
        made = binding.get_outputs()
        found = {spec.name: self._fetched(spec, value, rows) for spec, value in zip(self.outputs, made, strict=True)}
        self._gpu.wait(self._stream)
        return found

    def _bind_output(self, binding: Any, spec: TensorSpec, rows: int) -> None:
        """To its own place where its shape is known, else to one that onnxruntime makes."""
        if spec.name not in self._per_row:
            binding.bind_output(spec.name, *self._place)
            return
        shape = (rows, *spec.shape[1:])
        address = self._buffers.hold(spec.name, elements(shape) * spec.dtype.size)
        binding.bind_output(spec.name, *self._place, _element(spec), shape, address)

    def _fetched(self, spec: TensorSpec, value: Any, rows: int) -> Tensor:
        shape = tuple(value.shape())
        if spec.name in self._per_row:
            return self._buffers.fetch(spec, shape, self._stream)
        if spec.batch_axis == 0 and min(spec.shape[1:], default=0) >= 0 and rows > 1 and shape[:1] == (rows,):
            self._per_row.add(spec.name)
        self._buffers.hold(spec.name, elements(shape) * spec.dtype.size)
        return self._buffers.fetch(spec, shape, self._stream, value.data_ptr())

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        """Any view and byte order will do, for they are copied to pinned memory."""
        if inputs.keys() != {tensor.name for tensor in self.inputs}:
            self._refuse_names(inputs)
        for spec in self.inputs:
            if inputs[spec.name].dtype.newbyteorder("=") != spec.dtype.numpy:
                raise InvalidRequest(f"{self._label}: input {spec.name!r} is {inputs[spec.name].dtype}; expected {spec.datatype}")

    def _given(self, name: str, found: Tensor, out: Tensor | None) -> Tensor:
        """The caller's own copy of an output."""
        if out is None:
            return found.copy()
        if out.shape != found.shape or out.dtype != found.dtype:
            raise BackendFailure(f"{self._label}: output {name!r} can't be written to {out.dtype} {list(out.shape)}")
        np.copyto(out, found)
        return out

    def _refuse(self, error: Exception, rows: int) -> NoReturn:
        """onnxruntime says that it failed; whether the context is gone CUDA says at the next wait."""
        self._gpu.wait(self._stream)
        raise self._blamed(error, rows) from error

    def _blamed(self, error: Exception, rows: int) -> TidegateError:
        blamed = super()._blamed(error, rows)
        return DeviceMemory(str(blamed)) if any(words in str(blamed) for words in _NO_MEMORY) else blamed


def _element(spec: TensorSpec) -> Any:
    """A tensor's type as a binding takes it."""
    return ONNX_BF16 if spec.datatype == "BF16" else spec.dtype.numpy


def _check_listed(spec: VariantSpec) -> None:
    """Raises ModelDefect where the installed build has no such provider at all; one that it lists may still not run."""
    wanted = TENSORRT if wants_tensorrt(spec) else CUDA
    if wanted not in ort.get_available_providers():
        raise ModelDefect(
            f"{spec.path}: device {spec.device} needs {wanted}, which the installed onnxruntime {ort.__version__} doesn't have; "
            "in an environment without onnxruntime: pip install 'tidegate[gpu]'"
        )


def _open(spec: VariantSpec, device: int, gpu: Gpu, stream: int) -> Any:
    """A session whose nodes are on the GPU. Raises ModelDefect, also where onnxruntime would run it elsewhere."""
    with redirect_stdout(sys.stderr):  # it prints what it doesn't find
        ort.preload_dlls()
    cache: Mapping[str, str] = {}
    if wants_tensorrt(spec):  # importing it loads the libraries that the provider links
        cache = engine_cache(spec, gpu.facts(), (load().version, ort.__version__))
    providers = gpu_providers(spec, device, stream, cache)
    session = _strict(spec, providers)
    wanted, running = providers[0][0], session.get_providers()[0]
    if running != wanted:
        raise ModelDefect(
            f"{spec.path}: asked for {wanted} on {spec.device}, but onnxruntime would run it on {running}; "
            "`tidegate doctor` says what the GPU lacks"
        )
    if wanted not in placements(session):
        raise ModelDefect(f"{spec.path}: asked for {wanted} on {spec.device}, but it takes none of the nodes; see `tidegate doctor`")
    return session


def _strict(spec: VariantSpec, providers: Sequence[Any]) -> Any:
    """A session with nothing on the CPU, or else one of a graph of which onnxruntime places a part there by its own rules (computations
    of shapes)."""
    try:
        return create(spec, _recording(spec, {FORBID_CPU: "1"}), providers)
    except ModelDefect as error:
        if _FALLBACK_FORBIDDEN not in str(error):
            raise
        return create(spec, _recording(spec, {}), providers)


def _recording(spec: VariantSpec, entries: Mapping[str, str]) -> Any:
    options = session_options(spec)
    for key, value in ({RECORD_PLACES: "1"} | dict(entries)).items():
        options.add_session_config_entry(key, value)
    return options


def placements(session: Any) -> frozenset[str]:
    """The providers that the graph's nodes were placed on, for a session opened with that recorded."""
    return frozenset(part.ep_name for part in session.get_provider_graph_assignment_info() if part.get_nodes())
