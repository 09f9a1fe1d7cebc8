"""One GPU as a backend needs it: memory on both sides, copies between them, a stream, and what the device is.

Gpu is the seam: CudaGpu is NVIDIA's runtime by cuda-bindings, which has no torch in it; tests have one in plain memory. CUDA's errors are
codes; two kinds of them matter to others: memory that isn't there (DeviceMemory), and a broken context (DeviceLost), after which every
call of the process fails until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.errors import BackendFailure, DeviceLost, DeviceMemory, ModelDefect

if TYPE_CHECKING:
    from cuda.bindings.runtime import cudaError_t

LOST = frozenset(
    {
        *("cudaErrorIllegalAddress", "cudaErrorIllegalInstruction", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc"),
        *("cudaErrorMisalignedAddress", "cudaErrorHardwareStackError", "cudaErrorAssert", "cudaErrorLaunchFailure"),
        *("cudaErrorLaunchTimeout", "cudaErrorECCUncorrectable", "cudaErrorNvlinkUncorrectable", "cudaErrorContained"),
        *("cudaErrorDevicesUnavailable", "cudaErrorTensorMemoryLeak", "cudaErrorMpsClientTerminated"),
    }
)
"""Errors that CUDA calls sticky: the context is gone, and with it all that the process had on the device."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a GPU is. `driver` is the newest CUDA that the driver runs, as in 13.0; `compute_capability` as in 7.5."""

    name: str
    compute_capability: str
    driver: str
    memory: int


class Gpu(Protocol):
    """One device. Addresses are integers; sizes are bytes. Raises DeviceMemory, DeviceLost or BackendFailure."""

    def use(self) -> None:
        """Make it the calling thread's device; CUDA keeps one a thread. The process's first use makes its context there."""
        ...

    def facts(self) -> DeviceFacts: ...

    def free_memory(self) -> int: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Host memory that the device reads and writes by itself, so that copies don't block the caller."""
        ...

    def free_pinned(self, address: int) -> None: ...

    def stream(self) -> int: ...

    def close_stream(self, stream: int) -> None: ...

    def to_device(self, target: int, source: int, size: int, stream: int) -> None: ...

    def to_host(self, target: int, source: int, size: int, stream: int) -> None: ...

    def wait(self, stream: int) -> None:
        """Until all that the stream was given is done; an error of any of it is raised here."""
        ...


class CudaGpu:
    """See Gpu."""

    def __init__(self, number: int) -> None:
        """Makes no context yet. Raises ModelDefect where cuda-bindings, a driver or this device isn't there."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise ModelDefect(
                f"device cuda:{number} needs cuda-bindings, which can't be imported: {error}; pip install 'tidegate[gpu]'"
            ) from error
        self._cuda = runtime
        self._number = number
        code, count = runtime.cudaGetDeviceCount()
        if code != runtime.cudaError_t.cudaSuccess:
            raise ModelDefect(f"device cuda:{number} can't be used: {self._text(code)}; `tidegate doctor` says what the GPU lacks")
        if number >= count:
            raise ModelDefect(f"device cuda:{number} isn't there: this machine has {count}, from cuda:0 on")

    def use(self) -> None:
        (code,) = self._cuda.cudaSetDevice(self._number)
        self._check(code)

    def facts(self) -> DeviceFacts:
        code, properties = self._cuda.cudaGetDeviceProperties(self._number)
        self._check(code)
        code, driver = self._cuda.cudaDriverGetVersion()
        self._check(code)
        return DeviceFacts(
            name=properties.name.split(b"\0")[0].decode(),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
            memory=properties.totalGlobalMem,
        )

    def free_memory(self) -> int:
        code, free, _ = self._cuda.cudaMemGetInfo()
        self._check(code)
        return free

    def allocate(self, size: int) -> int:
        code, address = self._cuda.cudaMalloc(size)
        self._check(code, size)
        return address

    def free(self, address: int) -> None:
        (code,) = self._cuda.cudaFree(address)
        self._check(code)

    def allocate_pinned(self, size: int) -> int:
        code, address = self._cuda.cudaHostAlloc(size, self._cuda.cudaHostAllocDefault)
        self._check(code, size)
        return address

    def free_pinned(self, address: int) -> None:
        (code,) = self._cuda.cudaFreeHost(address)
        self._check(code)

    def stream(self) -> int:
        code, stream = self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)
        self._check(code)
        return int(stream)

    def close_stream(self, stream: int) -> None:
        (code,) = self._cuda.cudaStreamDestroy(self._cuda.cudaStream_t(stream))
        self._check(code)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        (code,) = self._cuda.cudaMemcpyAsync(target, source, size, kind, self._cuda.cudaStream_t(stream))
        self._check(code)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        (code,) = self._cuda.cudaMemcpyAsync(target, source, size, kind, self._cuda.cudaStream_t(stream))
        self._check(code)

    def wait(self, stream: int) -> None:
        (code,) = self._cuda.cudaStreamSynchronize(self._cuda.cudaStream_t(stream))
        self._check(code)

    def _check(self, code: cudaError_t, size: int = 0) -> None:
        if code == self._cuda.cudaError_t.cudaSuccess:
            return
        where = f"device cuda:{self._number}: {self._text(code)}"
        if code == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise DeviceMemory(f"{where}" + (f", {size} bytes were asked for" if size else ""))
        raise DeviceLost(where) if code.name in LOST else BackendFailure(where)

    def _text(self, code: cudaError_t) -> str:
        """CUDA's name of an error and what it says of it."""
        return f"{code.name} ({self._cuda.cudaGetErrorString(code)[1].decode()})"


def open_gpu(device: str) -> Gpu:
    """The GPU called `device`, "cuda:N". Raises ModelDefect."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise ModelDefect(f"device {device} isn't a GPU; expected cuda:N")
    return CudaGpu(int(number))
