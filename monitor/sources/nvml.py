"""GPU figures from this machine's driver (NVML), for where neither the server nor DCGM has them. Whatever is missing is a state with a
name: no driver, no GPU, a GPU that fell off the bus, a figure that this GPU doesn't have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from monitor.alerts import Labels, labels_of
from monitor.series.window import Reading, Sample

JOB = "nvml"
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""Reasons that hold the clock down against its will: hardware slowdown, software and hardware heat limits, the power brake."""


class Nvml:
    """One target, this machine's GPUs. With `auto`, a machine without a driver or a GPU has no readings; with `on`, that's an error."""

    def __init__(self, instance: str, mode: Literal["auto", "on"], library: Any | None = None) -> None:
        self._instance = instance
        self._mode = mode
        self._library = library
        self._ready = False
        self.state = ""

    async def read(self) -> Sequence[Reading]:
        return await asyncio.to_thread(self._read)

    async def close(self) -> None:
        if self._ready:
            self._library.nvmlShutdown()  # type: ignore[union-attr]

    def _read(self) -> list[Reading]:
        try:
            samples = self._samples()
        except _Unavailable as error:
            self.state = str(error)
            return [Reading(JOB, self._instance, error=self.state)] if self._mode == "on" or error.lost else []
        self.state = ""
        return [Reading(JOB, self._instance, samples)]

    def _samples(self) -> list[Sample]:
        library = self._open()
        try:
            count = library.nvmlDeviceGetCount()
            if not count:
                raise _Unavailable("no GPU in this machine")
            return [sample for index in range(count) for sample in self._gpu(library, index)]
        except library.NVMLError as error:
            self._ready = False  # begin anew: the driver may have been loaded again
            raise _Unavailable(f"the driver says: {error}", lost=True) from error

    def _open(self) -> Any:
        if self._library is None:
            try:
                import pynvml
            except ImportError as error:
                raise _Unavailable("nvidia-ml-py isn't installed: pip install 'tidegate[monitor]'") from error
            self._library = pynvml
        if not self._ready:
            try:
                self._library.nvmlInit()
            except self._library.NVMLError as error:
                raise _Unavailable(f"no NVIDIA driver here ({error})") from error
            self._ready = True
        return self._library

    def _gpu(self, nvml: Any, index: int) -> Iterator[Sample]:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        labels = labels_of({"job": JOB, "instance": self._instance, "gpu": str(index)})
        for name, read in _FIGURES:
            value = self._figure(nvml, lambda read=read: read(nvml, handle))  # type: ignore[misc]
            if value is not None:
                yield _sample(name, labels, value)

    def _figure(self, nvml: Any, read: Callable[[], float]) -> float | None:
        """A figure, None where this GPU has none: utilization of one split by MIG, ECC of one without."""
        missing = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_UNKNOWN)
        try:
            return read()
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in missing:
                return None
            raise


class _Unavailable(Exception):
    """No figures, and why. `lost`: there were some, or should be; that is worth an alert even with `auto`."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


def _sample(name: str, labels: Labels, value: float) -> Sample:
    return f"tidegate_gpu_{name}", labels, float(value)


_FIGURES: Sequence[tuple[str, Callable[[Any, Any], float]]] = (
    ("utilization_ratio", lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
    ("memory_used_bytes", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("memory_total_bytes", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ("temperature_celsius", lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
    ("power_watts", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    ("throttled", lambda nvml, gpu: float(bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & THROTTLED))),
    (
        "ecc_errors_total",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_AGGREGATE_ECC),
    ),
)
