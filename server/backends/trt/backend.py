"""The trt backend: a TensorRT engine on one NVIDIA GPU, by TensorRT's runtime and cuda-bindings.

A run: copy the inputs into pinned memory, and on one stream send them, execute, and fetch the outputs; then wait once. The profile is the
first that takes the run's shapes. Addresses never change; shapes are set for each run. Unproven on a GPU: see docs/tensorrt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, NoReturn

import numpy as np

from server.backends.base import VariantSpec
from server.backends.declared import settled
from server.backends.nvidia.buffers import Buffers
from server.backends.nvidia.cuda import Gpu, open_gpu
from server.backends.nvidia.library import Library, load
from server.backends.trt.engine import Opened, open_engine, shape_of
from server.errors import BackendFailure, InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec, elements

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRtBackend:
    """One engine with one execution context and one stream. See server.backends.base.Backend."""

    version: ClassVar[str] = "tensorrt"

    def __init__(self, spec: VariantSpec, library: Library, gpu: Gpu) -> None:
        """Raises ModelDefect; nothing stays taken then."""
        gpu.use()
        opened = open_engine(library, spec)
        self.inputs, self.outputs = settled(spec, opened.inputs, opened.outputs)
        self._label = f"model {spec.model!r} version {spec.version} ({spec.precision})"
        self._library, self._gpu, self._opened = library, gpu, opened
        self._context = _context(spec, library, opened)
        self._profile = 0
        self._stream = gpu.stream()
        self._buffers: Buffers | None = None
        try:
            self._buffers = Buffers(gpu, self._sizes())
            for name, address in self._buffers.device.items():
                self._done(self._context.set_tensor_address(name, address), f"no address for {name!r}")
        except BackendFailure as error:
            self.close()
            raise ModelDefect(f"{spec.path}: on {spec.device}: {error}") from error

    @classmethod
    def open(cls, spec: VariantSpec, gpu_of: Callable[[str], Gpu] = open_gpu) -> TensorRtBackend:
        """Open the engine spec.path on spec.device. Raises ModelDefect: no TensorRT, no such GPU, an engine that isn't for it."""
        if not spec.path.is_file():
            raise ModelDefect(f"{spec.path}: no such file")
        if not spec.device.startswith("cuda:"):
            raise ModelDefect(f"{spec.path}: a TensorRT engine runs on an NVIDIA GPU only, and the device is {spec.device}")
        library = load()
        try:
            return cls(spec, library, gpu_of(spec.device))
        except BackendFailure as error:
            raise ModelDefect(f"{spec.path}: on {spec.device}: {error}") from error

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run. Raises DeviceLost where the GPU's context is gone."""
        buffers = self._buffers
        if buffers is None:
            raise BackendFailure(f"{self._label}: it is closed")
        self._check(inputs)
        self._gpu.use()
        self._choose(inputs, rows)
        for spec in self.inputs:
            array = inputs[spec.name]
            buffers.send(spec, array, self._stream)
            self._done(self._context.set_input_shape(spec.name, array.shape), f"input {spec.name!r} can't be {list(array.shape)}")
        self._done(self._context.execute_async_v3(self._stream), "the run failed")
        found = {spec.name: buffers.fetch(spec, self._shape(spec), self._stream) for spec in self.outputs}
        self._gpu.wait(self._stream)
        return {name: self._given(name, array, (out or {}).get(name)) for name, array in found.items()}

    def close(self) -> None:
        """Give memory and the stream back."""
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        if self._stream:
            with suppress(BackendFailure):
                self._gpu.close_stream(self._stream)
            self._stream = 0

    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor in the largest run of any profile."""
        sizes: dict[str, int] = {}
        for number, profile in enumerate(self._opened.profiles):
            self._switch(number)
            for name, shape in profile.greatest.items():
                self._done(self._context.set_input_shape(name, shape), f"input {name!r} can't be {list(shape)}")
            found = {spec.name: elements(profile.greatest[spec.name]) * spec.dtype.size for spec in self.inputs}
            found |= {spec.name: self._context.get_max_output_size(spec.name) for spec in self.outputs}
            sizes = {name: max(size, sizes.get(name, 0)) for name, size in found.items()}
        return sizes

    def _choose(self, inputs: Mapping[str, Tensor], rows: int) -> None:
        """Make the first profile active that takes the inputs' shapes; the active one where it does."""
        shapes = {name: array.shape for name, array in inputs.items()}
        profiles = self._opened.profiles
        number = next((number for number, profile in enumerate(profiles) if profile.takes(shapes)), None)
        if number is None:
            got = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
            bounds = " or ".join(_bounds(profile.least, profile.greatest) for profile in profiles)
            raise InvalidRequest(f"{self._label}: {rows} rows: no profile of the engine takes {got}; it was built for {bounds}")
        self._switch(number)

    def _switch(self, number: int) -> None:
        if number != self._profile:
            self._done(self._context.set_optimization_profile_async(number, self._stream), f"profile {number} can't be used")
            self._gpu.wait(self._stream)
            self._profile = number

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        if inputs.keys() != {spec.name for spec in self.inputs}:
            wanted, got = (", ".join(map(repr, names)) or "none" for names in ([spec.name for spec in self.inputs], inputs))
            raise InvalidRequest(f"{self._label}: expected the inputs {wanted}; got {got}")
        for spec in self.inputs:
            if inputs[spec.name].dtype.newbyteorder("=") != spec.dtype.numpy:
                raise InvalidRequest(f"{self._label}: input {spec.name!r} is {inputs[spec.name].dtype}; expected {spec.datatype}")

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """An output's shape in the run that was just begun."""
        shape = shape_of(self._context.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise BackendFailure(f"{self._label}: the length of output {spec.name!r} depends on the data, {list(shape)}; it isn't served")
        return shape

    def _given(self, name: str, found: Tensor, out: Tensor | None) -> Tensor:
        """The caller's own copy of an output."""
        if out is None:
            return found.copy()
        if out.shape != found.shape or out.dtype != found.dtype:
            raise BackendFailure(f"{self._label}: output {name!r} is {found.dtype} {list(found.shape)}, not {out.dtype} {list(out.shape)}")
        np.copyto(out, found)
        return out

    def _done(self, worked: bool, what: str) -> None:
        if not worked:
            self._refuse(what)

    def _refuse(self, what: str) -> NoReturn:
        """TensorRT says that it failed, its logger why; whether the context is gone CUDA says at the next wait."""
        reason = self._library.blame()
        self._gpu.wait(self._stream)
        raise BackendFailure(f"{self._label}: {what}: {reason}")


def _context(spec: VariantSpec, library: Library, opened: Opened) -> trt.IExecutionContext:
    """Its scratch memory is TensorRT's own affair, taken here."""
    context: trt.IExecutionContext | None = opened.engine.create_execution_context()
    if context is None:
        raise ModelDefect(f"{spec.path}: TensorRT has no memory to run this engine in on {spec.device}: {library.blame()}")
    return context


def _bounds(least: Mapping[str, tuple[int, ...]], greatest: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name!r} {list(shape)} to {list(greatest[name])}" for name, shape in least.items())
