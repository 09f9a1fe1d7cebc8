"""What the GPUs are at, by NVML, sampled by a thread of its own: a driver that doesn't answer stops neither the event loop nor a scrape.

Whatever is missing is a state with a name: no library, no driver, no GPU, a GPU that fell off the bus, a figure that this GPU doesn't have
(utilization of one split by MIG). What changes of a GPU is told once; that there's none is no news.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

INTERVAL = 1.0  # seconds between samples
STALE = 10.0  # seconds after which a sample says nothing any more: the driver hangs
CLOSE_TIMEOUT = 2.0
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""Reasons that hold the clock down against its will: hardware slowdown, software and hardware heat limits, the power brake."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What it doesn't tell is None. `utilization` is a share, `energy` joules since the driver was loaded, the rest in bytes,
    watts and °C. `lost` says why a GPU that was there has no figures any more."""

    index: str
    uuid: str
    utilization: float | None = None
    memory_total: float | None = None
    memory_used: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None
    throttled: float | None = None
    ecc_errors: float | None = None
    lost: str = ""


_READS: Mapping[str, Callable[[Any, Any], float]] = {
    "utilization": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "memory_total": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    "memory_used": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "temperature": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "power": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "power_limit": lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
    "energy": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,
    "throttled": lambda nvml, gpu: float(bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & THROTTLED)),
    "ecc_errors": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_AGGREGATE_ECC),
}


def nvml_library() -> Any:
    """NVML's bindings (nvidia-ml-py), None where they aren't installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


class Gpus:
    """`start` samples from now on, where there's anything to sample; `read` is the last sample. `tell` gets each new state of GPUs, in
    words, in the sampling thread. `library` None: NVML's bindings aren't installed."""

    def __init__(self, tell: Tell, library: Any, interval: float = INTERVAL) -> None:
        self._tell = tell
        self._nvml = library
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handles: dict[int, tuple[Gpu, Any]] = {}
        self._sample: tuple[float, tuple[Gpu, ...]] = (0.0, ())
        self.state = ""

    def start(self) -> None:
        """Look for GPUs in a thread, which ends where there are none."""
        if self._nvml is None:
            self.state = "no figures of GPUs: nvidia-ml-py isn't installed (pip install nvidia-ml-py)"
            return
        self._thread = threading.Thread(target=self._work, name="gpu", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the sampling. A driver that hangs isn't waited for long."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)

    def read(self) -> Sequence[Gpu]:
        """The last sample; where it's old, the GPUs without figures. Any thread."""
        at, gpus = self._sample
        if gpus and monotonic() - at > STALE:
            return tuple(Gpu(gpu.index, gpu.uuid, lost="the driver doesn't answer") for gpu in gpus)
        return gpus

    def _work(self) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.state = f"no figures of GPUs: no NVIDIA driver here ({error})"
            return
        try:
            self._open()
            while self._handles and not self._stop.is_set():
                self._sample = (monotonic(), tuple(self._one(index) for index in self._handles))
                lost = [f"GPU {gpu.index}: {gpu.lost}" for gpu in self._sample[1] if gpu.lost]
                self._say("; ".join(lost) or f"figures of {len(self._handles)} GPUs")
                self._stop.wait(self._interval)
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            self._say(f"no figures of GPUs any more: {error}")

    def _open(self) -> None:
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._handles[index] = (Gpu(str(index), _text(nvml.nvmlDeviceGetUUID(handle))), handle)
            except nvml.NVMLError as error:  # one that is broken doesn't hide the others
                self._handles[index] = (Gpu(str(index), "", lost=str(error)), None)
        if not self._handles:
            self.state = "no figures of GPUs: there's no GPU in this machine"

    def _one(self, index: int) -> Gpu:
        known, handle = self._handles[index]
        if handle is None:
            return known
        try:
            figures: dict[str, Any] = {name: self._figure(read, handle) for name, read in _READS.items()}
        except self._nvml.NVMLError as error:  # it may come back with the next sample
            return Gpu(known.index, known.uuid, lost=str(error))
        return Gpu(known.index, known.uuid, **figures)

    def _figure(self, read: Callable[[Any, Any], float], handle: Any) -> float | None:
        """A figure, None where this GPU has none."""
        nvml = self._nvml
        missing = (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_UNKNOWN,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        )
        try:
            return float(read(nvml, handle))
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in missing:
                return None
            raise

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._tell(state)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
