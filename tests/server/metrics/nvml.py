"""NVML's bindings as the sampler sees them, with GPUs that a test breaks: the seam is the module, which needs a driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class NVMLError(Exception):
    """`value` is NVML's number of the error."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


@dataclass
class Memory:
    used: int
    total: int


@dataclass
class Rates:
    gpu: int


@dataclass
class FakeNvml:
    """Two T4s. `broken` maps a function and a GPU's index to the error that it raises."""

    NVMLError: type[NVMLError] = NVMLError
    NVML_ERROR_UNKNOWN: int = 999
    NVML_ERROR_NOT_SUPPORTED: int = 3
    NVML_ERROR_NO_PERMISSION: int = 4
    NVML_ERROR_FUNCTION_NOT_FOUND: int = 13
    NVML_TEMPERATURE_GPU: int = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int = 1
    NVML_AGGREGATE_ECC: int = 1
    count: int = 2
    running: int = 0
    broken: dict[tuple[str, int], Exception] = field(default_factory=dict)
    waits: Callable[[], object] | None = None

    def nvmlInit(self) -> None:  # noqa: N802
        self._check("nvmlInit", 0)
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check("nvmlDeviceGetCount", 0)
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._check("nvmlDeviceGetHandleByIndex", index)
        return index

    def __getattr__(self, name: str) -> Any:
        figures: dict[str, Callable[[int], Any]] = {
            "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}".encode(),
            "nvmlDeviceGetUtilizationRates": lambda gpu: Rates(40 + gpu),
            "nvmlDeviceGetMemoryInfo": lambda gpu: Memory(3 << 30, 15843721216),
            "nvmlDeviceGetTemperature": lambda gpu: 61,
            "nvmlDeviceGetPowerUsage": lambda gpu: 45_500,
            "nvmlDeviceGetPowerManagementLimit": lambda gpu: 70_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: 123_456_789,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 0x20,
            "nvmlDeviceGetTotalEccErrors": lambda gpu: 2,
        }
        figure = figures[name]

        def read(gpu: int, *_: object) -> Any:
            if self.waits is not None:
                self.waits()
            self._check(name, gpu)
            return figure(gpu)

        return read

    def _check(self, name: str, gpu: int) -> None:
        if (name, gpu) in self.broken:
            raise self.broken[name, gpu]
