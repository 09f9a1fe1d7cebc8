"""GPU figures by NVML, against a library of the test's own: test machines have no GPU. Each thing missing is a state with a name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from monitor.sources.nvml import Nvml


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


NOT_SUPPORTED, LOST, NO_DRIVER = 3, 15, 9


class Library:
    """As much of pynvml as is used. A figure that's an int below 100 in `fails` raises that error."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION, NVML_ERROR_UNKNOWN = NOT_SUPPORTED, 4, 999
    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_AGGREGATE_ECC = 0

    def __init__(self, count: int = 1, **fails: int) -> None:
        self.count = count
        self.fails = fails
        self.inits = 0

    def _value(self, name: str, value: Any) -> Any:
        if name in self.fails:
            raise NVMLError(self.fails[name])
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._value("init", None)
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return int(self._value("handle", index))

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:  # noqa: N802
        return self._value("utilization", SimpleNamespace(gpu=95))

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=10, total=16)

    def nvmlDeviceGetTemperature(self, gpu: int, kind: int) -> int:  # noqa: N802
        return 70

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:  # noqa: N802
        return 69_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:  # noqa: N802
        return 0x21

    def nvmlDeviceGetTotalEccErrors(self, gpu: int, kind: int, counter: int) -> int:  # noqa: N802
        return int(self._value("ecc", 2))


async def test_the_figures() -> None:
    (reading,) = await Nvml("here", "auto", Library(count=2)).read()
    values = {(name.removeprefix("tidegate_gpu_"), dict(labels)["gpu"]): value for name, labels, value in reading.samples}
    assert values["utilization_ratio", "0"] == 0.95
    assert values["power_watts", "1"] == 69.5
    assert values["throttled", "0"] == 1.0
    assert values["ecc_errors_total", "1"] == 2.0
    assert len(values) == 14


async def test_a_figure_that_the_gpu_does_not_have_costs_no_other() -> None:
    """MIG has no utilization, a GPU without ECC no ECC errors."""
    (reading,) = await Nvml("here", "auto", Library(utilization=NOT_SUPPORTED, ecc=NOT_SUPPORTED)).read()
    assert reading.ok
    assert {name for name, _, _ in reading.samples}.isdisjoint({"tidegate_gpu_utilization_ratio", "tidegate_gpu_ecc_errors_total"})
    assert len(reading.samples) == 5


async def test_a_gpu_that_falls_off_the_bus_is_a_target_that_is_down() -> None:
    library = Library()
    source = Nvml("here", "auto", library)
    assert (await source.read())[0].ok
    library.fails = {"handle": LOST}
    (lost,) = await source.read()
    assert "the driver says: error 15" in lost.error
    library.fails = {}
    assert (await source.read())[0].ok
    assert library.inits == 2


async def test_no_driver_and_no_gpu() -> None:
    for library, state in ((Library(init=NO_DRIVER), "no NVIDIA driver here (error 9)"), (Library(count=0), "no GPU in this machine")):
        auto = Nvml("here", "auto", library)
        assert await auto.read() == []
        assert auto.state == state
        (reading,) = await Nvml("here", "on", library).read()
        assert reading.error == state
