"""CUDA's codes as our errors, by the real cuda-bindings; what takes a GPU is in `make gpu-check`."""

from __future__ import annotations

import pytest
from cuda.bindings import runtime

from server.backends.nvidia.cuda import LOST, CudaGpu, open_gpu
from server.errors import BackendFailure, DeviceLost, DeviceMemory, ModelDefect

Code = runtime.cudaError_t
HAS_GPU = runtime.cudaGetDeviceCount()[1]


@pytest.fixture
def gpu() -> CudaGpu:
    """One whose constructor didn't run: it takes a device."""
    gpu = object.__new__(CudaGpu)
    gpu._cuda, gpu._number = runtime, 0
    return gpu


@pytest.mark.skipif(bool(HAS_GPU), reason="there is a GPU here")
def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(ModelDefect, match=r"device cuda:0 can't be used: cudaError\w+ \(.*\); `tidegate doctor` says what the GPU lacks"):
        open_gpu("cuda:0")


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda", "tpu:0"])
def test_what_is_no_gpu(device: str) -> None:
    with pytest.raises(ModelDefect, match="isn't a GPU; expected cuda:N"):
        open_gpu(device)


def test_success_is_silent(gpu: CudaGpu) -> None:
    gpu._check(Code.cudaSuccess)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.cudaErrorMemoryAllocation, DeviceMemory),
        (Code.cudaErrorIllegalAddress, DeviceLost),
        (Code.cudaErrorECCUncorrectable, DeviceLost),
        (Code.cudaErrorInvalidValue, BackendFailure),
    ],
)
def test_codes_are_errors_of_ours(gpu: CudaGpu, code: Code, kind: type[BackendFailure]) -> None:
    with pytest.raises(BackendFailure, match=f"device cuda:0: {code.name} \\(") as caught:
        gpu._check(code, 512)
    assert type(caught.value) is kind
    assert ("512 bytes were asked for" in str(caught.value)) == (kind is DeviceMemory)


def test_every_sticky_error_is_one_of_cudas() -> None:
    assert set(Code.__members__) >= LOST
