"""The onnxruntime backend: ONNX files on the CPU or on an NVIDIA GPU.

`run` is on the hot path of small models: what can be done once is done at open. onnxruntime has three ways in: a dict of arrays
(the fastest for small tensors), arrays bound as inputs and outputs (no copy of the answer), and OrtValues (the only one that takes
BF16). Its strings are UTF-8 text; ours are bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import ml_dtypes
import numpy as np
import onnxruntime as ort

from server.backends.base import VariantSpec
from server.backends.ort.session import INPUT_ERROR, ORT_ERRORS, device_of, open_session, specs_of, text_of
from server.errors import BackendFailure, InvalidRequest, TidegateError
from server.tensors import Tensor

BIND_FROM = 512 << 10  # bytes of answers: binding costs some 15 µs more than a plain run, copying as much as this about the same
ONNX_BF16 = 16
_BLAMES_INPUT = ("Invalid input", "for input:", "Unexpected input")


class OnnxRuntimeBackend:
    """One onnxruntime session. See server.backends.base.Backend."""

    version: ClassVar[str] = f"onnxruntime {ort.__version__}"

    def __init__(self, spec: VariantSpec, session: Any) -> None:
        self.inputs, self.outputs = specs_of(session, spec)
        self._label = f"model {spec.model!r} version {spec.version} ({spec.precision})"
        self._session = session
        # The public run() checks again what is checked here, for half of what a small model takes.
        self._native_run = getattr(session, "_sess", session).run
        self._options = ort.RunOptions()
        self._names = [tensor.name for tensor in self.outputs]
        # None where arrays can't be handed over as they are: no dtype is None, so `run` prepares them.
        self._expected = [(tensor.name, None if tensor.datatype == "BYTES" else tensor.dtype.numpy) for tensor in self.inputs]
        self._text_outputs = [tensor.name for tensor in self.outputs if tensor.datatype == "BYTES"]
        datatypes = {tensor.datatype for tensor in (*self.inputs, *self.outputs)}
        self._by_value = "BF16" in datatypes
        self._bindable = not datatypes & {"BF16", "BYTES"}

    @classmethod
    def open(cls, spec: VariantSpec) -> OnnxRuntimeBackend:
        """Open spec.path. Raises ModelDefect: a file that can't be read, a device that can't run it, specs that don't fit it."""
        device = device_of(spec)
        if device is None:
            return cls(spec, open_session(spec))
        from server.backends.ort.gpu import OnnxRuntimeOnGpu  # which is one of this class

        return OnnxRuntimeOnGpu.on(spec, device)

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run. Inputs may be unaligned, strided or read-only; those that are plain arrays aren't copied."""
        feed = inputs if type(inputs) is dict else dict(inputs)
        for name, dtype in self._expected:
            array = feed.get(name)
            if array is None:
                self._refuse_names(inputs)
            if array.dtype is not dtype or not array.flags.aligned:
                feed = feed | {name: self._prepared(name, array)}
        if len(feed) != len(self._expected):
            self._refuse_names(inputs)
        try:
            if out is not None:
                return self._run_into(feed, rows, out)
            if self._by_value:
                return self._run_by_value(feed)
            found = dict(zip(self._names, self._native_run(self._names, feed, self._options), strict=True))
        except ORT_ERRORS as error:
            raise self._blamed(error, rows) from error
        for name in self._text_outputs:
            found[name] = _to_bytes(found[name])
        return found

    def close(self) -> None:
        """Drop the session; it's freed when no call runs in it any more."""
        self._session = None
        self._native_run = self._closed

    def _run_into(self, feed: dict[str, Tensor], rows: int, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run with the arrays of `out` bound where onnxruntime can write to them and it pays, else copy into them."""
        large = sum(array.nbytes for array in out.values()) >= BIND_FROM
        if large and self._bindable and all(self._takes(name, array) for name, array in out.items()):
            return self._run_bound(feed, out)
        found = self.run(feed, rows)
        for name, array in out.items():
            if name not in found or found[name].shape != array.shape or found[name].dtype != array.dtype:
                raise BackendFailure(f"{self._label}: output {name!r} can't be written to {array.dtype} {list(array.shape)}")
            np.copyto(array, found[name])
        return found | dict(out)

    def _run_bound(self, feed: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._names:
            if name in out:
                array = out[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)  # given options, its wrapper takes 40 µs more
        values = zip(self._names, binding.get_outputs(), strict=True)
        return {name: out[name] if name in out else value.numpy() for name, value in values}

    def _run_by_value(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        values = {name: _to_value(array) for name, array in arrays.items()}
        found = self._session.run_with_ort_values(self._names, values)
        return {name: _from_value(value) for name, value in zip(self._names, found, strict=True)}

    def _takes(self, name: str, array: Tensor) -> bool:
        """Whether onnxruntime can write output `name` straight into `array`."""
        flags = array.flags
        dtype = next((tensor.dtype.numpy for tensor in self.outputs if tensor.name == name), None)
        return bool(array.dtype == dtype and array.size and flags.c_contiguous and flags.aligned and flags.writeable)

    def _prepared(self, name: str, array: Tensor) -> Tensor:
        """`array` as onnxruntime can read it: aligned, in this machine's byte order, strings as text."""
        spec = next(tensor for tensor in self.inputs if tensor.name == name)
        if spec.datatype == "BYTES":
            return self._to_text(name, array)
        wanted = spec.dtype.numpy
        if array.dtype.newbyteorder("=") != wanted:
            raise InvalidRequest(f"{self._label}: input {name!r} is {array.dtype}; expected {spec.datatype}")
        # Kernels may read whole vectors; a body's tensors start at any byte.
        return np.require(array, wanted, ["C", "A"])

    def _to_text(self, name: str, array: Tensor) -> Tensor:
        texts = np.empty(array.size, object)
        for index, item in enumerate(array.ravel()):
            try:
                texts[index] = item.decode() if isinstance(item, bytes) else str(item)
            except UnicodeDecodeError as error:
                where = f"{self._label}: element {index} of input {name!r}"
                raise InvalidRequest(f"{where} isn't UTF-8 ({error.reason}), which onnxruntime's strings are") from error
        return texts.reshape(array.shape)

    def _refuse_names(self, inputs: Mapping[str, Tensor]) -> NoReturn:
        wanted = ", ".join(repr(tensor.name) for tensor in self.inputs)
        got = ", ".join(repr(name) for name in inputs) or "none"
        raise InvalidRequest(f"{self._label}: expected the inputs {wanted}; got {got}")

    def _blamed(self, error: Exception, rows: int) -> TidegateError:
        """Whose doing an error is: onnxruntime's InvalidArgument and its texts about inputs are the request's."""
        text = text_of(error)
        where = f"{self._label}, {rows} rows" if rows else self._label
        if isinstance(error, INPUT_ERROR) or any(words in text for words in _BLAMES_INPUT):
            return InvalidRequest(f"{where}: {text}")
        return BackendFailure(f"{where}: the run failed: {text}")

    def _closed(self, *_: Any) -> NoReturn:
        raise BackendFailure(f"{self._label}: it is closed")


def _to_bytes(texts: Tensor) -> Tensor:
    encoded = np.empty(texts.size, object)
    encoded[:] = [text.encode() for text in texts.ravel()]
    return encoded.reshape(texts.shape)


def _to_value(array: Tensor) -> Any:
    """An OrtValue over the memory of `array`, which must outlive it."""
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_BF16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> Tensor:
    if value.data_type() != "tensor(bfloat16)":
        found: Tensor = value.numpy()
        return _to_bytes(found) if found.dtype == object else found
    array = np.empty(_shape(value), ml_dtypes.bfloat16)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _shape(value: Any) -> Sequence[int]:
    return tuple(value.shape())
